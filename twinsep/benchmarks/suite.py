"""``twinsep bench``: what the twins cost on the CPU, beside each other and beside what else there is.

Each framework has a fresh process of its own, see :mod:`twinsep.benchmarks.process`. A benchmark is a function that
gives a record, and one that turns the record into the rows of a table; see :data:`BENCHMARKS`.

A time is the machine's as much as the code's: what is compared alternates call by call, so that what disturbs one
disturbs the other, and the load is written down. To give all of them fewer cores use ``taskset``: what is in
``OMP_NUM_THREADS`` is for PyTorch alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from twinsep.benchmarks import block, feeding, growth, length, memory, scan, separate, step
from twinsep.benchmarks.records import Benchmark, BenchmarkOptions, Row
from twinsep.errors import InputError
from twinsep.kernels.threads import cores
from twinsep.utils import progress, provenance
from twinsep.utils.backend import TWINS
from twinsep.utils.files import write_json

#: Name → benchmark. Another is a file and a line here.
BENCHMARKS = {
    module.__name__.rpartition(".")[2]: Benchmark(module.measure, module.rows)
    for module in (scan, block, step, separate, growth, memory, length, feeding)
}


def run_benchmarks(names: Sequence[str], options: BenchmarkOptions, out: Path) -> None:
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
        with progress.progress_bar(name) as report:
            record = BENCHMARKS[name].measure(options, report)
        machine = {"load_average_at_start": load_average, "cores": cores()}
        write_json(out / f"{name}.json", {**record, **machine, **provenance.describe("cpu", provenance.PEERS)})
        _print(name, BENCHMARKS[name].rows(record))
        Console(stderr=True).print(f"wrote {out / name}.json", soft_wrap=True)


def _print(name: str, rows: list[Row]) -> None:
    table = Table(name, *TWINS, "jax / torch")
    for what, values in rows:
        cells = [f"{values[framework]:.4g}" if framework in values else "–" for framework in TWINS]
        ratio = f"{values['jax'] / values['torch']:.2f}" if len(values) == len(TWINS) and values["torch"] else "–"
        table.add_row(what, *cells, ratio)
    Console().print(table)
