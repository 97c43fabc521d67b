"""``twinsep bench``: what the twins cost beside each other on the CPU, in time and in memory.

Each framework has a fresh process of its own, see :mod:`twinsep.workers`. A benchmark is a function that gives a
record, and one that turns the record into the rows of a table; see :data:`BENCHMARKS`.

A time is the machine's as much as the code's: the frameworks alternate call by call, so that what disturbs one
disturbs the other, and the load is written down. To give both fewer cores use ``taskset``: ``OMP_NUM_THREADS`` is
PyTorch's alone.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from twinsep import feeding, lengths, progress, provenance, speed
from twinsep.config import Config
from twinsep.errors import InputError
from twinsep.files import write_json
from twinsep.frameworks import TWINS
from twinsep.progress import Report
from twinsep.workers import MIB, Worker, cores

#: The mixer layer of ``memory``: (sequences, length, d_model) in and out; E = expand · d_model channels, N = d_state.
LAYER = {"sequences": 68, "length": 690, "d_model": 256, "d_state": 32, "expand": 2}
#: What forward and backward of that layer may take, in MB of 10⁶ bytes.
BAR_MB = 1500

Record = dict[str, Any]
#: (what and in which unit, number of each framework)
Row = tuple[str, dict[str, float]]


class Options(NamedTuple):
    """What ``twins`` and ``feeding`` measure, calls before the ones that count (beside the first), and those."""

    config: Config
    warmups: int
    repetitions: int


class Benchmark(NamedTuple):
    """Of ``measure`` comes the record, in plain JSON types, and of ``rows`` what a person reads of it."""

    measure: Callable[[Options, Report], Record]
    rows: Callable[[Record], list[Row]]


def run(names: Sequence[str], options: Options, out: Path) -> None:
    """The command: write ``<name>.json`` into ``out`` for every benchmark named, or for all, and print their tables.

    Raises :class:`InputError` for an unknown name, a number out of range, a folder that cannot be written or a
    framework that is missing, and :class:`twinsep.errors.TwinsepError` where a worker fails.
    """
    load_average = [round(x, 2) for x in os.getloadavg()]
    for name in names:
        if name not in BENCHMARKS:
            raise InputError(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    if options.warmups < 0 or options.repetitions < 1:
        raise InputError(
            f"{options.warmups} warm-ups, {options.repetitions} repetitions: give at least 0 and at least 1"
        )
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):  # said now, not after minutes of measuring
        raise InputError(f"cannot write into {out}: {existing} is no folder that may be written; choose another place")
    for name in dict.fromkeys(names or BENCHMARKS):
        with progress.bar(name) as report:
            record = BENCHMARKS[name].measure(options, report)
        machine = {"load_average_at_start": load_average, "cores": cores()}
        write_json(out / f"{name}.json", {**record, **machine, **provenance.describe("cpu")})
        _print(name, BENCHMARKS[name].rows(record))
        Console(stderr=True).print(f"wrote {out / name}.json", soft_wrap=True)


def _print(name: str, rows: list[Row]) -> None:
    table = Table(name, *TWINS, "jax / torch")
    for what, values in rows:
        cells = [f"{values[framework]:.4g}" if framework in values else "–" for framework in TWINS]
        ratio = f"{values['jax'] / values['torch']:.2f}" if len(values) == len(TWINS) and values["torch"] else "–"
        table.add_row(what, *cells, ratio)
    Console().print(table)


# ---------------------------------------------------------------------------- benchmarks

WORK = ("step", "separate")


def twins(options: Options, report: Report) -> Record:
    """Seconds of a training step and of the separation of one segment, batch 1, white noise; peak memory in MiB.

    A first call compiles: in JAX always, in PyTorch the Numba kernels where no earlier run left them on disk.
    """
    config, rounds = options.config, 1 + options.warmups + options.repetitions
    done = itertools.count(1)

    def interleaved(work: str, times: int) -> dict[str, list[float]]:
        answers: dict[str, list[float]] = {framework: [] for framework in workers}
        for _ in range(times):
            for framework, worker in workers.items():
                answers[framework].append(worker.ask(work))
                report(next(done), rounds * len(WORK) * len(workers))
        return answers

    with contextlib.ExitStack() as stack:
        workers = {framework: stack.enter_context(Worker(framework)) for framework in TWINS}
        settings = {framework: w.ask("open", config=config.to_dict()) for framework, w in workers.items()}
        first = {work: interleaved(work, 1 + options.warmups) for work in WORK}
        compiling = {framework: w.ask("peak") for framework, w in workers.items()}
        times = {work: interleaved(work, options.repetitions) for work in WORK}
        repeating = {framework: w.ask("peak") for framework, w in workers.items()}
        losses = {framework: w.ask("last_loss") for framework, w in workers.items()}
    return {
        "configuration": config.to_dict(),
        "hash": config.hash,
        "batch": 1,
        "warmups": options.warmups,
        "repetitions": options.repetitions,
        "setting": settings,
        **{work: _timing(first[work], times[work]) for work in WORK},
        "peak_memory_mib": {"first calls and warm-ups": compiling, "repetitions": repeating},
        "last_loss": losses,
    }


def _timing(first: dict[str, list[float]], times: dict[str, list[float]]) -> Record:
    medians, minima = ({f: reduce(t) for f, t in times.items()} for reduce in (statistics.median, min))
    each = {
        framework: {
            "first_call_s": first[framework][0],
            "median_s": round(medians[framework], 6),
            "minimum_s": minima[framework],
            "times_s": times[framework],
        }
        for framework in times
    }
    ratios = {"ratio_of_medians": medians, "ratio_of_minima": minima}
    return each | {name: round(x["jax"] / x["torch"], 3) for name, x in ratios.items()}


def _twins_rows(record: Record) -> list[Row]:
    numbers = {"median": "median_s", "minimum": "minimum_s", "first call": "first_call_s"}
    rows = [
        (f"{work}, {name} (s)", {framework: record[work][framework][key] for framework in TWINS})
        for work in WORK
        for name, key in numbers.items()
    ]
    return rows + [(f"peak memory, {when} (MiB)", peaks) for when, peaks in record["peak_memory_mib"].items()]


def memory(_: Options, report: Report) -> Record:
    """Peak memory in MiB of forward and backward of one ``mamba`` mixer layer, gradients for input and weights."""
    found = {}
    for done, framework in enumerate(TWINS, 1):
        with Worker(framework) as worker:
            found[framework] = worker.ask("layer", sizes=LAYER)
        report(done, len(TWINS))
    state = 4 * math.prod(LAYER.values())  # bytes of float32 (b, l, e, n)
    return {
        "layer": {"mixer": "mamba", **LAYER},
        **{key: {framework: found[framework][key] for framework in TWINS} for key in found["torch"]},
        "subtracted": "what was resident before the run: the process with its imports, the weights, the input, the "
        "gradient at the output and the compiled program; for the compiler the same without the program",
        "bar_mb": BAR_MB,
        "bar_mib": round(BAR_MB * 1e6 / MIB, 1),
        "below_bar": {framework: x["peak_mib"] * MIB < BAR_MB * 1e6 for framework, x in found.items()},
        "materialised_state_mib": round(state / MIB, 1),
    }


def _memory_rows(record: Record) -> list[Row]:
    peaks, bar, state = (record[key] for key in ("peak_mib", "bar_mib", "materialised_state_mib"))
    return [
        ("forward and backward (MiB)", peaks),
        (f"the same, of the bar of {bar:.0f} MiB", {framework: x / bar for framework, x in peaks.items()}),
        (f"the same, of a state of {state:.0f} MiB", {framework: x / state for framework, x in peaks.items()}),
        ("compiler (MiB)", record["compiler_peak_mib"]),
    ]


#: (b, l, e, n) of the scans: a tiny model over time and over bands, and two of the reference's kind.
SCANS = ((72, 259, 32, 8), (259, 72, 32, 8), (68, 258, 128, 16), (68, 517, 512, 32))
#: Ways to compute it in JAX; PyTorch's is its kernel.
WAYS = ("sequential", "associative", "definition")


def scan(_: Options, report: Report) -> Record:
    """Seconds of the selective scan, forward and with all gradients, for each way JAX has; PyTorch's kernel beside it.

    The definition's gradients, which keep every state, are left out.
    """
    asked = [("torch", "default", False), ("torch", "default", True)]
    asked += [
        ("jax", way, backward) for way in WAYS for backward in (False, True) if (way, backward) != (WAYS[-1], True)
    ]
    found: list[Record] = []
    with contextlib.ExitStack() as stack:
        workers = {framework: stack.enter_context(Worker(framework)) for framework in TWINS}
        for shape, (framework, way, backward) in itertools.product(SCANS, asked):
            seconds = workers[framework].ask("scan", shape=shape, way=way, backward=backward, repetitions=3)
            found.append({"shape": shape, "framework": framework, "way": way, "backward": backward, "seconds": seconds})
            report(len(found), len(SCANS) * len(asked))
    return {"axes": "b, l, e, n", "least_of": 3, "times": found}


def _scan_rows(record: Record) -> list[Row]:
    times = {(tuple(t["shape"]), t["way"], t["backward"]): t["seconds"] for t in record["times"]}
    return [
        (
            f"{shape}, {way}, forward{' and backward' * backward} (s)",
            {"torch": times[shape, "default", backward], "jax": seconds},
        )
        for (shape, way, backward), seconds in times.items()
        if way != "default"
    ]


def _speed(_: Options, report: Report) -> Record:
    return speed.measure(report)


def _length(_: Options, report: Report) -> Record:
    return lengths.measure(report)


def _feeding(options: Options, report: Report) -> Record:
    return feeding.measure(options.config, options.warmups, options.repetitions, report)


#: Name → benchmark. Another is two functions and one line here.
BENCHMARKS = {
    "twins": Benchmark(twins, _twins_rows),
    "memory": Benchmark(memory, _memory_rows),
    "scan": Benchmark(scan, _scan_rows),
    "feeding": Benchmark(_feeding, feeding.rows),
    "length": Benchmark(_length, lengths.rows),
    "speed": Benchmark(_speed, speed.rows),
}
