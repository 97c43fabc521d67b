"""Progress reporters for a batch of songs: rich bars or JSON lines."""

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
    """Receives the events of a batch, in order."""

    def message(self, sentence: str) -> None:
        """Show a sentence about the batch."""

    def on_start(self, song: Path, number: int, total: int) -> tuple[ProgressCallback, ProgressCallback]:
        """Song ``number`` of ``total`` starts; returns the callbacks for reading and for separating it."""

    def on_written(self, song: Path, result: SeparationResult) -> None:
        """The stems of a song are written."""

    def on_skipped(self, song: Path) -> None:
        """The stems of a song were there before."""

    def on_failed(self, song: Path, sentence: str) -> None:
        """A song could not be separated."""

    def on_interrupted(self, finished: int, total: int) -> None:
        """Ctrl-C ended the batch."""

    def on_end(self, finished: int, skipped: int, total: int) -> None:
        """The batch is done: of ``total`` songs some are separated and some were before."""


class SilentReporter:
    """Shows nothing."""

    def message(self, sentence: str) -> None:
        """Show nothing."""

    def on_start(self, song: Path, number: int, total: int) -> tuple[ProgressCallback, ProgressCallback]:  # noqa: ARG002
        """Return callbacks that show nothing."""
        return lambda _done, _of: None, lambda _done, _of: None

    def on_written(self, song: Path, result: SeparationResult) -> None:
        """Show nothing."""

    def on_skipped(self, song: Path) -> None:
        """Show nothing."""

    def on_failed(self, song: Path, sentence: str) -> None:
        """Show nothing."""

    def on_interrupted(self, finished: int, total: int) -> None:
        """Show nothing."""

    def on_end(self, finished: int, skipped: int, total: int) -> None:
        """Show nothing."""


class ProgressReporter:
    """Bars: one for the current song and, for several songs, one for the batch; messages above them."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self.batch_task: TaskID | None = None
        self.song_task: TaskID | None = None

    def message(self, sentence: str) -> None:
        """Print the sentence above the bars."""
        self.progress.console.print(display_path(sentence), soft_wrap=True, markup=False, highlight=False)

    def on_start(self, song: Path, number: int, total: int) -> tuple[ProgressCallback, ProgressCallback]:
        """Replace the last song's bar by one for this song; returns the callbacks that move it."""
        if total > 1 and self.batch_task is None:
            self.batch_task = self.progress.add_task("all songs", total=total)
        if self.batch_task is not None:
            self.progress.update(self.batch_task, completed=number - 1)
        if self.song_task is not None:
            self.progress.remove_task(self.song_task)
        name = display_path(song.name if len(song.name) <= 40 else f"{song.name[:39]}…")
        self.song_task = task = self.progress.add_task(f"reading {name}", total=None)

        def reading(done: int, total_frames: int) -> None:
            """Show how many of the frames are read."""
            self.progress.update(task, completed=done, total=total_frames)

        def separating(done: int, total_chunks: int) -> None:
            """Show how many of the chunks are separated, on the bar of the batch too."""
            self.progress.update(task, completed=done, total=total_chunks, description=f"separating {name}")
            if self.batch_task is not None:
                self.progress.update(self.batch_task, completed=number - 1 + done / total_chunks)

        return reading, separating

    def on_written(self, song: Path, result: SeparationResult) -> None:
        """Print the path of each stem, and the notes."""
        for path in result.paths.values():
            self.message(f"wrote {path}")
        for note in result.notes:
            self.message(f"{song}: {note}")

    def on_skipped(self, song: Path) -> None:
        """Show nothing: the last line counts these songs."""

    def on_failed(self, song: Path, sentence: str) -> None:
        """Remove the song's bar and, in a batch, print the sentence; that of a single song ends the command."""
        if self.song_task is not None:
            self.progress.remove_task(self.song_task)
            self.song_task = None
        if self.batch_task is not None:
            self.message(sentence if display_path(song) in sentence else f"{song}: {sentence}")

    def on_interrupted(self, finished: int, total: int) -> None:
        """Show nothing: the sentence that ends the command says it."""

    def on_end(self, finished: int, skipped: int, total: int) -> None:
        """Fill the bar of the batch and print how many of several songs are separated, and how many were before."""
        if self.batch_task is not None:
            self.progress.update(self.batch_task, completed=total)
        if total > 1 or skipped:
            before = f"; {skipped} were separated before" if skipped else ""
            self.message(f"{finished} of {total} songs separated{before}")


class JSONReporter:
    """One JSON object per line on the standard output; ``event`` names its kind."""

    def message(self, sentence: str) -> None:
        """Print the event ``message``."""
        _print_event("message", sentence=sentence)

    def on_start(self, song: Path, number: int, total: int) -> tuple[ProgressCallback, ProgressCallback]:
        """Print the event ``start``; returns callbacks that print ``progress``."""
        _print_event("start", song=str(song), number=number, of=total)

        def callback(phase: str) -> ProgressCallback:
            return lambda done, of: _print_event("progress", song=str(song), phase=phase, done=done, of=of)

        return callback("reading"), callback("separating")

    def on_written(self, song: Path, result: SeparationResult) -> None:
        """Print the event ``written``: paths by stem, length in seconds, notes."""
        stems = {stem: str(path) for stem, path in result.paths.items()}
        _print_event("written", song=str(song), stems=stems, seconds=round(result.seconds, 3), notes=result.notes)

    def on_skipped(self, song: Path) -> None:
        """Print the event ``skipped``."""
        _print_event("skipped", song=str(song))

    def on_failed(self, song: Path, sentence: str) -> None:
        """Print the event ``failed``."""
        _print_event("failed", song=str(song), sentence=sentence)

    def on_interrupted(self, finished: int, total: int) -> None:
        """Print the event ``interrupted``."""
        _print_event("interrupted", finished=finished, of=total)

    def on_end(self, finished: int, skipped: int, total: int) -> None:
        """Print the event ``end``."""
        _print_event("end", finished=finished, skipped=skipped, of=total)


@contextlib.contextmanager
def open_reporter(*, as_json: bool) -> Iterator[Reporter]:
    """Within a ``with``, a :class:`JSONReporter` or, by default, a :class:`ProgressReporter`."""
    if as_json:
        yield JSONReporter()
        return
    with make_progress(percent=True) as progress:
        yield ProgressReporter(progress)


def _print_event(event: str, **values: Any) -> None:
    print(json.dumps({"event": event, **values}), flush=True)
