"""The types that benchmarks share: their options, their records, and the rows of their tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from twinsep.config import Config
from twinsep.utils.progress import ProgressCallback

#: What is written, in plain JSON types.
Record = dict[str, Any]
#: (what and in which unit, number of each framework)
Row = tuple[str, dict[str, float]]


class BenchmarkOptions(NamedTuple):
    """What ``step`` and ``feeding`` measure, by name; calls that do not count, beside the first, and those that do."""

    configs: Mapping[str, Config]
    warmups: int
    repetitions: int


class Benchmark(NamedTuple):
    """Of ``measure`` comes the record, and of ``rows`` what a person reads of it."""

    measure: Callable[[BenchmarkOptions, ProgressCallback], Record]
    rows: Callable[[Record], list[Row]]


def requirement(framework: str, what: str, value: float, bar: float, *, at_least: bool = False) -> Record:
    """A number beside what it has to be: at most ``bar``, or at least."""
    reached = value >= bar if at_least else value <= bar
    bound = "at least" if at_least else "at most"
    return {"framework": framework, "what": what, "value": round(value, 3), bound: bar, "reached": reached}


def requirement_rows(record: Record) -> list[Row]:
    """The figures of a record as rows of a table."""
    return [
        (
            f"{f['what']} ({next(f'{b} {f[b]}' for b in ('at most', 'at least') if b in f)})"
            f"{'' if f['reached'] else ': not reached'}",
            {f["framework"]: f["value"]},
        )
        for f in record["figures"]
    ]
