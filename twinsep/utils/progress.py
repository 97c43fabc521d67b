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

#: A function that is called with (items done, items in all).
ProgressCallback = Callable[[int, int], None]


def make_progress(
    *columns: ProgressColumn, console: Console | None = None, percent: bool = False, disable: bool = False
) -> Progress:
    """A rich display of description, bar, count (or ``percent``), ``columns``, time spent and time left.

    It is shown on ``console``, the standard error by default, and not at all if ``disable`` is set.
    """
    count = TaskProgressColumn() if percent else MofNCompleteColumn()
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    description = TextColumn("{task.description}", markup=False)
    return Progress(
        description, BarColumn(), count, *columns, *times, console=console or Console(stderr=True), disable=disable
    )


@contextlib.contextmanager
def progress_bar(description: str, *, disable: bool = False) -> Iterator[ProgressCallback]:
    """Within a ``with``, a bar; the callback that it yields moves it."""
    with make_progress(disable=disable) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
