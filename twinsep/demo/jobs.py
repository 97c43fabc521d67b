"""Songs of visitors to a page: separated one at a time, kept for as long as their visitor stays."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from twinsep import audio
from twinsep.errors import InputError, TwinsepError
from twinsep.separation import batch, file
from twinsep.separation.file import Encoding
from twinsep.separation.paths import SPECTROGRAMS, FilenameTemplate, SongFile
from twinsep.separation.separator import Separator
from twinsep.utils.files import display_path
from twinsep.utils.progress import ProgressCallback

#: How long files stay at most, unless the song is being separated.
KEPT_SECONDS = 3600.0


class JobCancelled(TwinsepError):
    """Nobody waits for the song any more."""


@dataclass(frozen=True)
class JobResult:
    """The files of a song: one for each player, and the picture; ``notes`` as of :class:`one_song.Outcome`."""

    mixture: Path
    instrumental: Path
    vocals: Path
    picture: Path
    notes: list[str]


class JobQueue:
    """Separates the songs of visitors into files below ``folder``, which a page keeps their uploads in too.

    Raises :class:`InputError` for a separator without vocals.
    """

    def __init__(self, separator: Separator, folder: Path):
        self.separator, self.folder = separator, folder
        self.stems = separator.names("vocals")
        self.working = threading.Lock()
        self.busy: tuple[Path, ...] = ()
        self.stopped: set[str] = set()
        self.closed = False
        #: Files and folders by visitor.
        self.owned: defaultdict[str, list[Path]] = defaultdict(list)

    def separate(
        self, visitor: str, song: Path, *, reading: ProgressCallback, separating: ProgressCallback
    ) -> JobResult:
        """The stems of an upload, as ``twinsep separate --two-stems vocals`` writes them; waits for its turn.

        The two reports are those of :func:`one_song.separate`. What the visitor had before is removed once this is
        done. Raises :class:`Stopped` after :meth:`forget` or :meth:`close`, and :class:`InputError` as
        :func:`one_song.separate` does, in words without the folders here.
        """
        with self.working:
            self.stopped.discard(visitor)
            if not song.is_file():
                raise InputError(f"{display_path(song.name)} is no longer here; drop it once more")
            made = Path(tempfile.mkdtemp(prefix="song-", dir=self.folder))
            before = self.owned[visitor]
            self.owned[visitor] = [*before, song, made]
            self.busy = (song, made)
            kept = [song]
            try:
                result = self._separate(visitor, song, made, reading, separating)
                kept.append(made)
                return result
            except InputError as error:
                raise InputError(
                    str(error).replace(display_path(song), display_path(song.name)).replace(f"{made}/", "")
                ) from error
            finally:
                self.busy = ()
                if visitor in self.stopped:
                    self.owned.pop(visitor, None)
                else:
                    self.owned[visitor] = kept
                self._give_up([*before, song, made])

    def _separate(
        self, visitor: str, song: Path, made: Path, reading: ProgressCallback, separating: ProgressCallback
    ) -> JobResult:
        def heeding(report: ProgressCallback) -> ProgressCallback:
            def heed(done: int, total: int) -> None:
                if self.closed or visitor in self.stopped:
                    raise JobCancelled("stopped")
                report(done, total)

            return heed

        options = batch.SeparationOptions(out=made, filename="{track} ({stem}).{ext}", figure=True)
        paths = batch.output_paths(SongFile(song, song.stem), options, FilenameTemplate(options.filename), self.stems)
        picture = paths.pop(SPECTROGRAMS)
        outcome = file.separate_file(
            song,
            paths,
            self.separator,
            Encoding(),
            figure=picture,
            reading=heeding(reading),
            separating=heeding(separating),
        )
        return JobResult(_for_browsers(song, made), paths["instrumental"], paths["vocals"], picture, outcome.notes)

    def forget(self, visitor: str) -> None:
        """Stop what is done for the visitor and remove their files."""
        self.stopped.add(visitor)
        self._give_up(self.owned.pop(visitor, []))

    def sweep(self, seconds: float = KEPT_SECONDS) -> None:
        """Remove what is older than that, whosever it is, but for the song that is worked on."""
        for path in self.folder.iterdir():
            if any(path == one or path in one.parents for one in self.busy):
                continue
            with contextlib.suppress(FileNotFoundError):  # a visitor may leave meanwhile
                if path.stat().st_mtime < time.time() - seconds:
                    _remove(path)

    def close(self) -> None:
        """Stop, and return once nothing is written any more."""
        self.closed = True
        with self.working:
            pass

    def _give_up(self, paths: Iterable[Path]) -> None:
        """Remove what no visitor has any more: equal uploads are one file."""
        for path in set(paths).difference(*self.owned.values()):
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _for_browsers(song: Path, folder: Path) -> Path:
    """The song, if any browser plays its format, or a copy as FLAC."""
    if song.suffix.lower() in audio.FORMATS:
        return song
    copy = folder / f"{song.stem}.flac"
    with (
        audio.open_audio(song) as source,
        audio.writer(copy, source.sample_rate, source.channels, subtype="PCM_16") as sound,
    ):
        for block in source.blocks():
            sound.write(block)
    return copy
