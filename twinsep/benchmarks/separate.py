"""``twinsep bench separate``: how quickly the presets separate on a CPU, beside its limits and other systems.

All have random weights, equal threads and batch 1, and chunks of the length that each was made for, without overlap.
"""

from __future__ import annotations

import contextlib
import statistics

from twinsep.benchmarks.process import WorkerProcess
from twinsep.benchmarks.records import BenchmarkOptions, Record, Row, requirement, requirement_rows
from twinsep.utils.progress import ProgressCallback

PRESETS = ("tiny", "small", "paper")
#: Of other packages, see ``torch_impl/baselines/packages.py``.
OTHERS = ("moises-light paper_small", "moises-light paper_large", "htdemucs", "bs-roformer")
#: (framework, name, whether freed memory is kept). Ours always keep it (:mod:`twinsep.utils.backend`); the others are
#: measured as they come and once more with it, as that alone makes some of them much faster.
System = tuple[str, str, bool]
SYSTEMS: tuple[System, ...] = (
    *(("torch", name, True) for name in PRESETS),
    *(("torch", name, kept) for name in OTHERS for kept in (False, True)),
    *(("jax", name, True) for name in PRESETS[:2]),
)
REPETITIONS = 3
#: Seconds of calls before each that counts.
WARM_UP = 2.0


def measure(_options: BenchmarkOptions, report: ProgressCallback) -> Record:
    """Seconds of a chunk of every system, each in a process of its own, in turns; medians, by second of audio, and the
    figures that they are to reach.

    Directly before each call that counts come others, for two seconds at least: after minutes of waiting a process has
    lost its caches, and systems that reclaim idle memory have taken some of that. Packages that are not installed are
    left out, and named. The machine's limits are measured in every turn too, as they are not constant.
    """
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(WorkerProcess("torch"))
        missing = first.ask("missing_packages")
        asked = [system for system in SYSTEMS if system[1] not in missing]
        workers = {system: stack.enter_context(WorkerProcess(system[0])) for system in asked}
        opened = {system: worker.ask("system", name=system[1], kept=system[2]) for system, worker in workers.items()}
        counted = {name: first.ask("operations", name=name) for name in PRESETS}
        times: dict[System, list[float]] = {system: [] for system in asked}
        first_calls: dict[System, float] = {}
        rates: list[dict[str, float]] = []
        for turn in range(REPETITIONS):
            for done, (system, worker) in enumerate(workers.items(), 1):
                before = [worker.ask("chunk")]
                while sum(before) < WARM_UP:
                    before.append(worker.ask("chunk"))
                first_calls.setdefault(system, before[0])
                times[system].append(worker.ask("chunk"))
                report(turn * len(asked) + done, REPETITIONS * len(asked))
            rates.append(first.ask("rates"))
    systems = [
        {
            "framework": system[0],
            "system": system[1],
            "keeps_freed_memory": system[2],
            **opened[system],
            "first_call_s": first_calls[system],
            "times_s": times[system],
            "seconds_per_audio_second": round(statistics.median(times[system]) / opened[system]["chunk_s"], 5),
        }
        for system in asked
    ]
    roofline = {name: statistics.median(turn[name] for turn in rates) for name in rates[0]}
    record = {"repetitions": REPETITIONS, "roofline": roofline, "rates": rates, "counted": counted}
    record["not_installed"] = missing
    return record | {"systems": systems, "figures": figures(systems, roofline, counted)}


def figures(systems: list[Record], roofline: Record, counted: Record) -> list[Record]:
    """What the presets have to reach."""
    speed = {(s["framework"], s["system"], s["keeps_freed_memory"]): s["seconds_per_audio_second"] for s in systems}
    ours = {name: speed["torch", name, True] for name in PRESETS}
    limit = (
        counted["paper"]["flop_per_audio_second"] / roofline["matrix_flop_per_s"]
        + counted["paper"]["exponentials_per_audio_second"] / roofline["exponentials_per_s"]
    )
    what = "paper, of the time its operations and exponentials take at the machine's best"
    found = [requirement("torch", what, ours["paper"] / limit, 1.5)]
    for name, other, bar in (
        ("paper", "bs-roformer", 0.85),
        ("small", "moises-light paper_large", 1.0),
        ("small", "htdemucs", 1.0),
    ):
        for kept, how in ((False, "as it comes"), (True, "keeping freed memory as we do")):
            if ("torch", other, kept) in speed:
                ratio = ours[name] / speed["torch", other, kept]
                found.append(requirement("torch", f"{name}, of the time of {other} {how}", ratio, bar))
    found.append(requirement("torch", "tiny, of the time the song takes to play", ours["tiny"], 0.15))
    return found + [
        requirement("jax", f"{name} in JAX, of its time in PyTorch", speed["jax", name, True] / ours[name], 1.7)
        for name in PRESETS[:2]
    ]


def rows(record: Record) -> list[Row]:
    """The record as rows of a table."""
    table: dict[str, dict[str, float]] = {}
    for s in record["systems"]:
        how = "" if s["keeps_freed_memory"] else ", as it comes"
        name = f"{s['system']}, {s['parameters'] / 1e6:.2f} M{how}: s per s of audio"
        table.setdefault(name, {})[s["framework"]] = s["seconds_per_audio_second"]
    return [*table.items(), *requirement_rows(record)]
