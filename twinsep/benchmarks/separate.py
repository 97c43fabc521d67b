"""``twinsep bench separate``: speed of the presets on a CPU, compared with its limits and with other systems.

All systems have random weights, equal threads and batch 1; each separates chunks of its own design length, without
overlap.
"""

from __future__ import annotations

import contextlib
import statistics

from twinsep.benchmarks.process import WorkerProcess
from twinsep.benchmarks.records import BenchmarkOptions, Record, Row, requirement, requirement_rows
from twinsep.utils.progress import ProgressCallback

PRESETS = ("tiny", "small", "paper")
#: Systems of other packages, see ``torch_impl/baselines/packages.py``.
OTHERS = ("moises-light/paper_small", "moises-light/paper_large", "htdemucs", "bs-roformer/package")
#: (framework, name, True if freed memory is kept). Ours always keep it (:mod:`twinsep.utils.backend`); the others are
#: measured unmodified and with this setting, which alone makes some of them much faster.
System = tuple[str, str, bool]
SYSTEMS: tuple[System, ...] = (
    *(("torch", name, True) for name in PRESETS),
    *(("torch", name, kept) for name in OTHERS for kept in (False, True)),
    *(("jax", name, True) for name in PRESETS[:2]),
)
#: Counted calls of each system.
REPETITIONS = 3
#: Seconds of uncounted calls before each counted one.
WARM_UP = 2.0


def measure(_options: BenchmarkOptions, report: ProgressCallback) -> Record:
    """Measure the time of a chunk for every system, each in a process of its own, in turns; return medians.

    Uncounted calls directly precede each counted one: after minutes of waiting a process has lost its caches, and
    operating systems reclaim idle memory. Packages that are not installed are named and skipped. The machine's limits
    are measured in every turn too, because they vary.
    """
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(WorkerProcess("torch"))
        missing = [name for name in first.ask("missing_packages") if name in OTHERS]
        measured = [system for system in SYSTEMS if system[1] not in missing]
        workers = {system: stack.enter_context(WorkerProcess(system[0])) for system in measured}
        opened = {system: worker.ask("system", name=system[1], kept=system[2]) for system, worker in workers.items()}
        counted = {name: first.ask("operations", name=name) for name in PRESETS}
        times: dict[System, list[float]] = {system: [] for system in measured}
        first_calls: dict[System, float] = {}
        rates: list[dict[str, float]] = []
        for turn in range(REPETITIONS):
            for done, (system, worker) in enumerate(workers.items(), 1):
                warm_up = [worker.ask("chunk")]
                while sum(warm_up) < WARM_UP:
                    warm_up.append(worker.ask("chunk"))
                first_calls.setdefault(system, warm_up[0])
                times[system].append(worker.ask("chunk"))
                report(turn * len(measured) + done, REPETITIONS * len(measured))
            rates.append(first.ask("rates"))
    systems = [_system_record(system, opened[system], first_calls[system], times[system]) for system in measured]
    roofline = {name: statistics.median(turn[name] for turn in rates) for name in rates[0]}
    return {
        "repetitions": REPETITIONS,
        "roofline": roofline,
        "rates": rates,
        "counted": counted,
        "not_installed": missing,
        "systems": systems,
        "figures": requirements(systems, roofline, counted),
    }


def _system_record(system: System, opened: Record, first_call: float, times: list[float]) -> Record:
    """Record of one system; ``opened`` is what its worker said about it."""
    framework, name, kept = system
    return {
        "framework": framework,
        "system": name,
        "keeps_freed_memory": kept,
        **opened,
        "first_call_s": first_call,
        "times_s": times,
        "seconds_per_audio_second": round(statistics.median(times) / opened["chunk_s"], 5),
    }


def requirements(systems: list[Record], roofline: Record, counted: Record) -> list[Record]:
    """Compare the measurements with the bounds that the presets must meet."""
    speed = {(s["framework"], s["system"], s["keeps_freed_memory"]): s["seconds_per_audio_second"] for s in systems}
    ours = {name: speed["torch", name, True] for name in PRESETS}
    limit = (
        counted["paper"]["flop_per_audio_second"] / roofline["matrix_flop_per_s"]
        + counted["paper"]["exponentials_per_audio_second"] / roofline["exponentials_per_s"]
    )
    what = "paper, of the time its operations and exponentials take at the machine's best"
    found = [requirement("torch", what, ours["paper"] / limit, 1.5)]
    for name, other, bar in (
        ("paper", "bs-roformer/package", 0.85),
        ("small", "moises-light/paper_large", 1.0),
        ("small", "htdemucs", 1.0),
    ):
        for kept, variant in ((False, "unmodified"), (True, "keeping freed memory as we do")):
            if ("torch", other, kept) in speed:
                ratio = ours[name] / speed["torch", other, kept]
                found.append(requirement("torch", f"{name}, of the time of {other} {variant}", ratio, bar))
    found.append(requirement("torch", "tiny, of the time the song takes to play", ours["tiny"], 0.15))
    return found + [
        requirement("jax", f"{name} in JAX, of its time in PyTorch", speed["jax", name, True] / ours[name], 1.7)
        for name in PRESETS[:2]
    ]


def rows(record: Record) -> list[Row]:
    """Format the record as table rows."""
    table: dict[str, dict[str, float]] = {}
    for s in record["systems"]:
        variant = "" if s["keeps_freed_memory"] else ", unmodified"
        name = f"{s['system']}, {s['parameters'] / 1e6:.2f} M{variant}: s per s of audio"
        table.setdefault(name, {})[s["framework"]] = s["seconds_per_audio_second"]
    return [*table.items(), *requirement_rows(record)]
