"""``twinsep bench speed``: how quickly the presets separate on this machine's CPU, beside its limits and other systems.

All have random weights, equal threads and batch 1, and chunks of the length that each was made for, without overlap.
"""

from __future__ import annotations

import contextlib
import statistics
from typing import Any

from twinsep.progress import Report
from twinsep.workers import Worker

PRESETS = ("tiny", "small", "paper")
#: Of other packages, see ``torch_impl/baselines/packages.py``.
OTHERS = ("moises-light paper_small", "moises-light paper_large", "htdemucs", "bs-roformer")
SYSTEMS = (
    *(("torch", name) for name in (*PRESETS, *OTHERS)),
    *(("jax", name) for name in PRESETS[:2]),
)
WARMUPS, REPETITIONS = 1, 3

Record = dict[str, Any]


def measure(report: Report) -> Record:
    """Seconds of a chunk of every system, each in a process of its own, in turns; medians, by second of audio, and the
    figures that they are to reach."""
    total = (WARMUPS + REPETITIONS) * len(SYSTEMS)
    with contextlib.ExitStack() as stack:
        workers = {system: stack.enter_context(Worker(system[0])) for system in SYSTEMS}
        opened = {system: worker.ask("system", name=system[1]) for system, worker in workers.items()}
        first = workers["torch", PRESETS[0]]
        roofline = first.ask("roofline")
        counted = {name: first.ask("operations", name=name) for name in PRESETS}
        times: dict[tuple[str, str], list[float]] = {system: [] for system in SYSTEMS}
        for turn in range(WARMUPS + REPETITIONS):
            for done, (system, worker) in enumerate(workers.items(), 1):
                times[system].append(worker.ask("chunk"))
                report(turn * len(SYSTEMS) + done, total)
    systems = [
        {
            "framework": framework,
            "system": name,
            **opened[framework, name],
            "times_s": times[framework, name],
            "seconds_per_audio_second": round(
                statistics.median(times[framework, name][WARMUPS:]) / opened[framework, name]["chunk_s"], 5
            ),
        }
        for framework, name in SYSTEMS
    ]
    record = {"warmups": WARMUPS, "repetitions": REPETITIONS, "roofline": roofline, "counted": counted}
    return record | {"systems": systems, "figures": figures(systems, roofline, counted)}


def figures(systems: list[Record], roofline: Record, counted: Record) -> list[Record]:
    """Each as {what, value, bar, reached}."""
    speed = {(s["framework"], s["system"]): s["seconds_per_audio_second"] for s in systems}
    ours = {name: speed["torch", name] for name in PRESETS}
    limits = {
        name: c["flop_per_audio_second"] / roofline["matrix_flop_per_s"]
        + c["exponentials_per_audio_second"] / roofline["exponentials_per_s"]
        for name, c in counted.items()
    }
    asked = [
        (
            "paper, of the time its operations and exponentials take at the machine's best",
            ours["paper"] / limits["paper"],
            1.5,
        ),
        ("paper, of the time of bs-roformer", ours["paper"] / speed["torch", "bs-roformer"], 0.85),
        (
            "small, of the time of moises-light paper_large",
            ours["small"] / speed["torch", "moises-light paper_large"],
            1.0,
        ),
        ("small, of the time of htdemucs", ours["small"] / speed["torch", "htdemucs"], 1.0),
        ("tiny, of the time the song takes to play", ours["tiny"], 0.15),
        *((f"{name} in JAX, of its time in PyTorch", speed["jax", name] / ours[name], 1.7) for name in PRESETS[:2]),
    ]
    return [{"what": what, "value": round(value, 3), "bar": bar, "reached": value <= bar} for what, value, bar in asked]


def rows(record: Record) -> list[tuple[str, dict[str, float]]]:
    """The record as rows of a table."""
    table: dict[str, dict[str, float]] = {}
    for s in record["systems"]:
        name = f"{s['system']}, {s['parameters'] / 1e6:.2f} M: s per s of audio"
        table.setdefault(name, {})[s["framework"]] = s["seconds_per_audio_second"]
    return [*table.items(), *((f"{f['what']} (bar {f['bar']})", {"torch": f["value"]}) for f in record["figures"])]
