"""Stage ``cost``: operations, time and memory of the mixer table's rows in PyTorch; operations of the presets for GPUs.

Each row runs in its own process, and the processes take steps in turn, so that a disturbance affects all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
from pathlib import Path

from ablations import settings
from ablations.stages import run_stage
from torch_impl.kernels import operations
from twinsep.benchmarks.process import WorkerProcess
from twinsep.config import from_dict, preset
from twinsep.utils import progress, provenance
from twinsep.utils.files import write_json

OUT = Path("results/cost.json")
WARMUPS, REPETITIONS = 2, 15


def main() -> None:
    """Write ``results/cost.json``."""
    configurations = json.loads((settings.CONFIGS / "cost.json").read_text())
    device, load = settings.profile()["device"], [round(x, 2) for x in os.getloadavg()]
    with contextlib.ExitStack() as stack, progress.progress_bar("steps") as report:
        workers = {row: stack.enter_context(WorkerProcess("torch")) for row in configurations}
        opened = {row: w.ask("open", config=configurations[row], device=device) for row, w in workers.items()}
        times: dict[str, list[float]] = {row: [] for row in workers}
        for done in range(WARMUPS + REPETITIONS):
            for row, worker in workers.items():
                times[row].append(worker.ask("step"))
            report(done + 1, WARMUPS + REPETITIONS)
        rows = {
            row: {
                **operations.model_cost(from_dict(configurations[row])),
                "step_s": statistics.median(times[row][WARMUPS:]),
                "fastest_step_s": min(times[row][WARMUPS:]),
                "peak_memory_mib": worker.ask("peak"),
            }
            for row, worker in workers.items()
        }
    setting = {"repetitions": REPETITIONS, "load_average_at_start": load, **next(iter(opened.values()))}
    presets = {name: operations.model_cost(preset(name)) for name in ("small", "paper")}
    write_json(OUT, {"rows": rows, "presets": presets, **setting, **provenance.describe(device)})


if __name__ == "__main__":
    run_stage(main)
