"""Stage ``cost``: operations, time and memory of the systems, trained ones and pretrained ones.

Each system runs in a process of its own; the processes take turns, so that a disturbance affects all of them.
"""

from __future__ import annotations

import contextlib
import os
import statistics

import torch

from ablations import settings
from ablations.stages import run_stage
from ablations.systems import rows
from torch_impl.kernels import operations
from torch_impl.layers import initialise
from torch_impl.networks import build
from twinsep.benchmarks.process import WorkerProcess
from twinsep.benchmarks.workloads import noise
from twinsep.config import PRESETS, Config
from twinsep.utils import progress, provenance
from twinsep.utils.files import write_json

OUT = rows.ROOT / "cost.json"
WARMUPS, REPETITIONS = 1, 5
#: Length of the separated chunk in seconds: a test song.
SECONDS = 12.0


def main() -> None:
    """Write ``results/systems/cost.json``."""
    configurations = {name: rows.untrained(name, "steps") for name in rows.table()["systems"]}
    for name in rows.table()["pretrained"]:
        configurations[name] = PRESETS[name].override({"training": {"segment_seconds": SECONDS}})
    load = [round(x, 2) for x in os.getloadavg()]
    with contextlib.ExitStack() as stack, progress.progress_bar("chunks") as report:
        workers = {name: stack.enter_context(WorkerProcess(rows.FRAMEWORK)) for name in configurations}
        opened = {
            name: worker.ask("network", config=configurations[name].to_dict(), seconds=SECONDS)
            for name, worker in workers.items()
        }
        times: dict[str, list[float]] = {name: [] for name in workers}
        for done in range(WARMUPS + REPETITIONS):
            for name, worker in workers.items():
                times[name].append(worker.ask("chunk"))
            report(done + 1, WARMUPS + REPETITIONS)
        found = {
            name: {
                "parameters": opened[name]["parameters"],
                "mac_per_audio_second": _multiply_adds(configurations[name]),
                "real_time_factor": round(statistics.median(times[name][WARMUPS:]) / SECONDS, 5),
                "peak_memory_mib": worker.ask("peak"),
            }
            for name, worker in workers.items()
        }
    setting = {"chunk_s": SECONDS, "repetitions": REPETITIONS, "load_average_at_start": load}
    write_json(OUT, {"systems": found, **setting, **provenance.describe(settings.profile()["device"])})


def _multiply_adds(config: Config) -> float:
    """Multiply-adds per second of audio of a forward pass over noise.

    It is computed, because networks of packages may ask for values, which a pass over shapes alone does not have.
    """
    model, mixture = build(config), torch.from_numpy(noise(1, 2, config.segment_samples, seed=0))
    initialise(model, 0, config.model.init)
    with torch.inference_mode():
        return operations.count(lambda: model(mixture)) / 2 / config.training.segment_seconds


if __name__ == "__main__":
    run_stage(main)
