"""What a batch of songs says while it goes on: bars for people, lines of JSON for machines."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rich.progress import Progress, TaskID

from twinsep.separation.file import SeparationResult
from twinsep.utils.files import display_path
from twinsep.utils.progress import ProgressCallback, make_progress


@runtime_checkable
class Reporter(Protocol):
    """Is told of every song, in order."""

    def message(self, sentence: str) -> None:
        """A sentence about the batch."""

    def on_start(self, song: Path, number: int, total: int) -> tuple[ProgressCallback, ProgressCallback]:
        """Gives what reading and separating report to."""

    def on_written(self, song: Path, outcome: SeparationResult) -> None:
        """A song is done."""

    def on_failed(self, song: Path, sentence: str) -> None:
        """A song could not be done."""

    def on_interrupted(self, finished: int, total: int) -> None:
        """A person has had enough."""

    def on_end(self, finished: int, total: int) -> None:
        """There are no more."""


class ProgressReporter:
    """A bar for the song and, where there are several, one for all of them, with the time left; words above them."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self.all: TaskID | None = None
        self.one: TaskID | None = None

    def message(self, sentence: str) -> None:
        self.progress.console.print(display_path(sentence), soft_wrap=True, markup=False, highlight=False)

    def on_start(self, song: Path, number: int, total: int) -> tuple[ProgressCallback, ProgressCallback]:
        if total > 1 and self.all is None:
            self.all = self.progress.add_task("all songs", total=total)
        if self.all is not None:
            self.progress.update(self.all, completed=number - 1)
        if self.one is not None:
            self.progress.remove_task(self.one)
        name = display_path(song.name if len(song.name) <= 40 else f"{song.name[:39]}…")
        self.one = one = self.progress.add_task(f"reading {name}", total=None)

        def reading(done: int, of: int) -> None:
            self.progress.update(one, completed=done, total=of)

        def separating(done: int, of: int) -> None:
            self.progress.update(one, completed=done, total=of, description=f"separating {name}")
            if self.all is not None:
                self.progress.update(self.all, completed=number - 1 + done / of)

        return reading, separating

    def on_written(self, song: Path, outcome: SeparationResult) -> None:
        for path in outcome.paths.values():
            self.message(f"wrote {path}")
        for note in outcome.notes:
            self.message(f"{song}: {note}")

    def on_failed(self, song: Path, sentence: str) -> None:
        self.message(sentence if display_path(song) in sentence else f"{song}: {sentence}")

    def on_interrupted(self, finished: int, total: int) -> None:
        """The sentence at the end says it."""

    def on_end(self, finished: int, total: int) -> None:
        if self.all is not None:
            self.progress.update(self.all, completed=total)
        if total > 1:
            self.message(f"{finished} of {total} songs separated")


class JSONReporter:
    """A JSON object a line on the standard output; ``event`` says what it is."""

    def message(self, sentence: str) -> None:
        _line("said", sentence=sentence)

    def on_start(self, song: Path, number: int, total: int) -> tuple[ProgressCallback, ProgressCallback]:
        _line("begun", song=str(song), number=number, of=total)

        def report(what: str) -> ProgressCallback:
            return lambda done, of: _line("progress", song=str(song), what=what, done=done, of=of)

        return report("reading"), report("separating")

    def on_written(self, song: Path, outcome: SeparationResult) -> None:
        stems = {stem: str(path) for stem, path in outcome.paths.items()}
        _line("written", song=str(song), stems=stems, seconds=round(outcome.seconds, 3), notes=outcome.notes)

    def on_failed(self, song: Path, sentence: str) -> None:
        _line("failed", song=str(song), sentence=sentence)

    def on_interrupted(self, finished: int, total: int) -> None:
        _line("interrupted", finished=finished, of=total)

    def on_end(self, finished: int, total: int) -> None:
        _line("ended", finished=finished, of=total)


@contextlib.contextmanager
def open_reporter(*, as_json: bool) -> Iterator[Reporter]:
    """One of the two, for as long as there is something to tell."""
    if as_json:
        yield JSONReporter()
        return
    with make_progress(percent=True) as progress:
        yield ProgressReporter(progress)


def _line(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)
