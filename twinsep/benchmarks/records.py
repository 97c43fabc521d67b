"""Shared types of the benchmarks: options, records, requirements and table rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from twinsep.config import Config
from twinsep.utils.progress import ProgressCallback

#: Content of a benchmark's file, in JSON types.
Record = dict[str, Any]
#: (quantity and unit, value per framework).
Row = tuple[str, dict[str, float]]


class BenchmarkOptions(NamedTuple):
    """Configurations by name for ``step`` and ``feeding``, uncounted calls after the first, and counted calls."""

    configs: Mapping[str, Config]
    warmups: int
    repetitions: int


class Benchmark(NamedTuple):
    """A benchmark: ``measure`` returns its record, ``rows`` formats the record as table rows."""

    measure: Callable[[BenchmarkOptions, ProgressCallback], Record]
    rows: Callable[[Record], list[Row]]


def requirement(framework: str, what: str, value: float, bar: float, *, at_least: bool = False) -> Record:
    """Record of a value and its bound: at most ``bar``, or at least."""
    reached = value >= bar if at_least else value <= bar
    bound = "at least" if at_least else "at most"
    return {"framework": framework, "what": what, "value": round(value, 3), bound: bar, "reached": reached}


def requirement_rows(record: Record) -> list[Row]:
    """Format the requirements of a record as table rows."""
    return [
        (
            f"{f['what']} ({next(f'{b} {f[b]}' for b in ('at most', 'at least') if b in f)})"
            f"{'' if f['reached'] else ': not reached'}",
            {f["framework"]: f["value"]},
        )
        for f in record["figures"]
    ]
