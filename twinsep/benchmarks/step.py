"""``twinsep bench step``: time and memory of a training step and a separation, PyTorch and JAX in turns.

A step of a small model on one thread, as the ablations train it, is compared with its operations at the core's peak.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
from collections.abc import Callable

from twinsep.benchmarks.process import WorkerProcess
from twinsep.benchmarks.records import BenchmarkOptions, Record, Row, requirement, requirement_rows
from twinsep.config import Config, preset
from twinsep.utils.backend import TWINS
from twinsep.utils.progress import ProgressCallback

#: Method of the worker → name of what it does.
WORK = {"step": "training step", "separate": "separation"}
#: Largest ratio of JAX's time to PyTorch's.
BAR = 1.7
#: The step on one thread: a small model, half the tokens of its preset, and the loss with which it trains.
ONE_THREAD = preset("tiny").override(
    {
        "model": {"hop": 1024, "features": "complex+level", "init": "identity"},
        "loss": {"weights": {"magnitude": 0.25, "band": 0.5, "si_sdr": 2.5}},
        "training": {"segment_seconds": 1.5, "batch_size": 1},
    }
)
#: Largest ratio of its time to that of its operations at the core's peak.
ONE_THREAD_BAR = 3.0


def measure(options: BenchmarkOptions, report: ProgressCallback) -> Record:
    """Measure seconds and peak memory in MiB of a training step and of separating one segment, at batch 1 on noise."""
    rounds = 1 + options.warmups + options.repetitions
    done, total = itertools.count(1), rounds * len(TWINS) * (len(WORK) * len(options.configs) + 1)
    found = {
        name: _measure_config(config, options, lambda: report(next(done), total))
        for name, config in options.configs.items()
    }
    alone = _measure_one_thread(options, lambda: report(next(done), total))
    figures = [
        requirement("jax", f"{WORK[work]} of {name}, of its time in PyTorch", record[work]["ratio_of_medians"], BAR)
        for name, record in found.items()
        for work in WORK
    ]
    what = "training step of tiny on one thread, of the time of its operations at the core's peak"
    figures += [requirement(framework, what, alone["ratio"][framework], ONE_THREAD_BAR) for framework in TWINS]
    counts = {"warmups": options.warmups, "repetitions": options.repetitions}
    return {"batch": 1, **counts, "configurations": found, "one_thread": alone, "figures": figures}


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


def _measure_one_thread(options: BenchmarkOptions, report: Callable[[], None]) -> Record:
    """Measure a step of :data:`ONE_THREAD` on one core in each framework, and the core's peak in every round.

    The peak is that of products of large matrices. As usual the backward pass counts as two forward passes, and
    exponentials and elementwise operations do not count.
    """
    with contextlib.ExitStack() as stack:
        workers = {framework: stack.enter_context(WorkerProcess(framework, threads=1)) for framework in TWINS}
        settings = {framework: w.ask("open", config=ONE_THREAD.to_dict()) for framework, w in workers.items()}
        operations = 3 * workers["torch"].ask("segment_operations")
        times: dict[str, list[float]] = {framework: [] for framework in workers}
        peaks: list[float] = []
        for _ in range(1 + options.warmups + options.repetitions):
            peaks.append(workers["torch"].ask("rates")["matrix_flop_per_s"])
            for framework, worker in workers.items():
                times[framework].append(worker.ask("step"))
                report()
    counted = {framework: each[-options.repetitions :] for framework, each in times.items()}
    peak = statistics.median(peaks[-options.repetitions :])
    return {
        "configuration": ONE_THREAD.to_dict(),
        "setting": settings,
        "operations": operations,
        "matrix_flop_per_s": peak,
        "times_s": counted,
        "ratio": {f: round(statistics.median(each) * peak / operations, 3) for f, each in counted.items()},
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
