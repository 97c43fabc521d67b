"""``twinsep bench``: cost of the twins on the CPU, compared with each other and with other packages.

Each framework runs in a process of its own, see :mod:`twinsep.benchmarks.process`. A benchmark has a function that
returns its record and one that formats the record as table rows, see :data:`BENCHMARKS`.

Times depend on the machine as much as on the code: calls that are compared alternate, so that a disturbance affects
both, and the record holds the load. To limit the cores use ``taskset``; ``OMP_NUM_THREADS`` affects only PyTorch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from twinsep.benchmarks import (
    block,
    export,
    feeding,
    gpu,
    growth,
    length,
    memory,
    processes,
    scan,
    separate,
    step,
    stream,
)
from twinsep.benchmarks.records import Benchmark, BenchmarkOptions, Row
from twinsep.errors import InputError
from twinsep.kernels.threads import cores
from twinsep.utils import progress, provenance
from twinsep.utils.backend import TWINS
from twinsep.utils.files import write_json

#: Name → benchmark. To add one, write a module and list it here.
BENCHMARKS = {
    module.__name__.rpartition(".")[2]: Benchmark(module.measure, module.rows)
    for module in (scan, block, step, separate, growth, memory, length, feeding, stream, export, processes, gpu)
}
#: Those that need a GPU and run only when they are named.
ON_GPU = ("gpu",)


def run_benchmarks(names: Sequence[str], options: BenchmarkOptions, out: Path) -> None:
    """Run the command: write ``<name>.json`` into ``out`` for the named benchmarks, or all, and print their tables.

    Raises :class:`InputError` for an unknown name, a number out of range, a folder that cannot be written or a missing
    framework, and :class:`twinsep.errors.TwinsepError` if a worker fails.
    """
    load_average = [round(x, 2) for x in os.getloadavg()]
    for name in names:
        if name not in BENCHMARKS:
            raise InputError(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    if options.warmups < 0 or options.repetitions < 1:
        raise InputError(
            f"--warmups {options.warmups} --repetitions {options.repetitions}: use at least 0 warm-ups and 1 repetition"
        )
    existing = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):  # before minutes of measuring
        raise InputError(f"{out} cannot be written because {existing} is not a writable folder: choose another path")
    for name in dict.fromkeys(names or [name for name in BENCHMARKS if name not in ON_GPU]):
        with progress.progress_bar(name) as report:
            record = BENCHMARKS[name].measure(options, report)
        machine = {"load_average_at_start": load_average, "cores": cores()}
        write_json(
            out / f"{name}.json",
            {**record, **machine, **provenance.describe("cuda" if name in ON_GPU else "cpu", provenance.PEERS)},
        )
        _print_table(name, BENCHMARKS[name].rows(record))
        if missing := record.get("not_installed"):
            left_out = f"left out, because it is not installed: {', '.join(missing)} (twinsep/benchmarks/README.md)"
            Console(stderr=True).print(left_out, soft_wrap=True, highlight=False)
        Console(stderr=True).print(f"wrote {out / name}.json", soft_wrap=True)


def _print_table(name: str, rows: list[Row]) -> None:
    table = Table(name, *TWINS, "jax / torch")
    for what, values in rows:
        cells = [f"{values[framework]:.4g}" if framework in values else "–" for framework in TWINS]
        ratio = f"{values['jax'] / values['torch']:.2f}" if len(values) == len(TWINS) and values["torch"] else "–"
        table.add_row(what, *cells, ratio)
    Console().print(table)
