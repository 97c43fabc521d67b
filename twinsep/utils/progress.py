"""A progress bar on the standard error, for anything that counts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

#: Called with (how many are done, how many there are).
ProgressCallback = Callable[[int, int], None]


@contextlib.contextmanager
def progress_bar(description: str) -> Iterator[ProgressCallback]:
    """A bar with count, time spent and time left; what it yields moves it."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
