"""Progress bars on the standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

#: Function of (items done, total items).
ProgressCallback = Callable[[int, int], None]


def make_progress(
    *columns: ProgressColumn, console: Console | None = None, percent: bool = False, disable: bool = False
) -> Progress:
    """Make a rich display with description, bar, count (or ``percent``), ``columns``, elapsed and remaining time.

    It appears on ``console``, by default the standard error, or nowhere if ``disable`` is set.
    """
    count = TaskProgressColumn() if percent else MofNCompleteColumn()
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    description = TextColumn("{task.description}", markup=False)
    return Progress(
        description, BarColumn(), count, *columns, *times, console=console or Console(stderr=True), disable=disable
    )


@contextlib.contextmanager
def progress_bar(description: str, *, disable: bool = False) -> Iterator[ProgressCallback]:
    """Show a bar within a ``with``; the yielded callback advances it."""
    with make_progress(disable=disable) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
