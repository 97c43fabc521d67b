"""``twinsep bench step``: time and memory of a training step and a separation, PyTorch and JAX in turns."""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections.abc import Callable

from twinsep.benchmarks.process import WorkerProcess
from twinsep.benchmarks.records import BenchmarkOptions, Record, Row, requirement, requirement_rows
from twinsep.config import Config
from twinsep.utils.backend import TWINS
from twinsep.utils.progress import ProgressCallback

#: Method of the worker → name of what it does.
WORK = {"step": "training step", "separate": "separation"}
#: Largest ratio of JAX's time to PyTorch's.
BAR = 1.7


def measure(options: BenchmarkOptions, report: ProgressCallback) -> Record:
    """Measure seconds and peak memory in MiB of a training step and of separating one segment, at batch 1 on noise."""
    rounds = 1 + options.warmups + options.repetitions
    done, total = itertools.count(1), rounds * len(WORK) * len(TWINS) * len(options.configs)
    found = {
        name: _measure_config(config, options, lambda: report(next(done), total))
        for name, config in options.configs.items()
    }
    figures = [
        requirement("jax", f"{WORK[work]} of {name}, of its time in PyTorch", record[work]["ratio_of_medians"], BAR)
        for name, record in found.items()
        for work in WORK
    ]
    counts = {"warmups": options.warmups, "repetitions": options.repetitions}
    return {"batch": 1, **counts, "configurations": found, "figures": figures}


def _measure_config(config: Config, options: BenchmarkOptions, report: Callable[[], None]) -> Record:
    """Measure one configuration. First calls compile: JAX always, PyTorch the Numba kernels that are not yet cached."""

    def interleaved(work: str, times: int) -> dict[str, list[float]]:
        answers: dict[str, list[float]] = {framework: [] for framework in workers}
        for _ in range(times):
            for framework, worker in workers.items():
                answers[framework].append(worker.ask(work))
                report()
        return answers

    with contextlib.ExitStack() as stack:
        workers = {framework: stack.enter_context(WorkerProcess(framework)) for framework in TWINS}
        settings = {framework: w.ask("open", config=config.to_dict()) for framework, w in workers.items()}
        first = {work: interleaved(work, 1 + options.warmups) for work in WORK}
        compiling = {framework: w.ask("peak") for framework, w in workers.items()}
        times = {work: interleaved(work, options.repetitions) for work in WORK}
        repeating = {framework: w.ask("peak") for framework, w in workers.items()}
        losses = {framework: w.ask("last_loss") for framework, w in workers.items()}
    return {
        "configuration": config.to_dict(),
        "hash": config.hash,
        "setting": settings,
        **{work: _timing(first[work], times[work]) for work in WORK},
        "peak_memory_mib": {"first calls and warm-ups": compiling, "repetitions": repeating},
        "last_loss": losses,
    }


def _timing(first: dict[str, list[float]], times: dict[str, list[float]]) -> Record:
    """Statistics of the calls of each framework, and JAX's ratios to PyTorch."""
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


def rows(record: Record) -> list[Row]:
    """Format the record as table rows."""
    numbers = {"median": "median_s", "minimum": "minimum_s", "first call": "first_call_s"}
    table: list[Row] = []
    for name, found in record["configurations"].items():
        table += [
            (f"{name}, {what}, {number} (s)", {framework: found[work][framework][key] for framework in TWINS})
            for work, what in WORK.items()
            for number, key in numbers.items()
        ]
        table += [(f"{name}, peak memory, {when} (MiB)", peaks) for when, peaks in found["peak_memory_mib"].items()]
    return table + requirement_rows(record)
