"""Which songs are meant, and where each of their stems goes."""

from __future__ import annotations

import os
import string
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from twinsep.audio.formats import AUDIO_EXTENSIONS
from twinsep.errors import InputError
from twinsep.utils.files import display_path

FIELDS = ("track", "stem", "ext")
#: The stem's name in the template, for the picture of a song.
SPECTROGRAMS = "spectrograms"


@dataclass(frozen=True)
class SongFile:
    """A file, and its track: its path in the folder that was given, without the extension; of a file its name."""

    path: Path
    track: str


def find_songs(given: Iterable[Path], out: Path, *, recursive: bool) -> list[SongFile]:
    """The files, and those in the folders that have an extension of sound, each once.

    What lies in ``out``, where that is a folder in one of them, are the stems of songs and no songs. A path that does
    not exist is taken for a song, so that it is told of with the others. Raises :class:`InputError` for a folder
    without any.
    """
    found: dict[str, SongFile] = {}  # by where they really are
    stems = os.path.realpath(out)
    for path in given:
        if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for an impossible name
            found.setdefault(os.path.realpath(path), SongFile(path, _track(path)))
            continue
        own = os.path.realpath(path) == stems
        inside = sorted(
            file
            for file in _files(path, recursive)
            if file.suffix.lower() in AUDIO_EXTENSIONS and (own or not _real(file).is_relative_to(stems))
        )
        if not inside:
            deeper = "" if recursive else " itself; give --recursive to look into its folders too"
            raise InputError(f"{display_path(path)} holds no song{deeper or ', nor do its folders'}")
        for file in inside:
            folder = file.relative_to(path).parent
            found.setdefault(str(_real(file)), SongFile(file, (folder / _track(file)).as_posix()))
    return list(found.values())


def _track(path: Path) -> str:
    """Its name without the extension; all of it where that would be the name of a folder that is always there."""
    return path.name if path.stem in (".", "..") else path.stem


def _real(path: Path) -> Path:
    """Without links; ``Path.resolve`` raises where they lead in circles."""
    return Path(os.path.realpath(path))


def _files(folder: Path, recursive: bool) -> list[Path]:
    """Files that are not hidden, such as the ``._`` ones that some systems leave beside each."""
    paths = folder.rglob("*") if recursive else folder.iterdir()
    return [p for p in paths if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)]


@dataclass(frozen=True)
class FilenameTemplate:
    """Where stems go below a folder, as in ``{track}/{stem}.{ext}``; the picture has the stem "spectrograms".

    Raises :class:`InputError` for what is no such place, or does not end in ``.{ext}``.
    """

    text: str = "{track}/{stem}.{ext}"

    def __post_init__(self) -> None:
        try:
            parsed = [part[1:] for part in string.Formatter().parse(self.text) if part[1] is not None]
        except ValueError as error:
            raise InputError(
                f"--filename {self.text!r} has a lone brace; write it as {{track}}/{{stem}}.{{ext}}"
            ) from error
        fields = {f"{name}{'!' + how if how else ''}{':' + width if width else ''}" for name, width, how in parsed}
        known = ", ".join(f"{{{field}}}" for field in FIELDS)
        if not fields <= set(FIELDS):
            raise InputError(f"--filename {self.text!r} names {{{min(fields - set(FIELDS))}}}; known are {known}")
        parts = Path(self.text).parts
        if not parts or Path(self.text).is_absolute() or ".." in parts or self.text.endswith("/"):
            raise InputError(
                f"--filename {self.text!r} is no place below --out; write it as {{track}}/{{stem}}.{{ext}}"
            )
        if not self.text.endswith(".{ext}"):
            raise InputError(
                f"--filename {self.text!r} does not end in .{{ext}}; write it as {{track}}/{{stem}}.{{ext}}"
            )

    def path(self, out: Path, track: str, stem: str, extension: str) -> Path:
        """The file of one stem; ``extension`` has no dot."""
        return out / self.text.format(track=track, stem=stem, ext=extension)


def check_collisions(places: dict[Path, list[Path]]) -> None:
    """Raise :class:`InputError` where two songs or two stems would be written to one file, or one over a song."""
    counts = Counter(os.path.normpath(path) for paths in places.values() for path in paths)
    twice = next((path for path, count in counts.items() if count > 1), None)
    if twice is not None:
        raise InputError(
            f"more than one file would be written to {display_path(twice)}: songs of the same name go into different "
            "--out folders, and --filename must hold {stem}, and {track} if there are several songs"
        )
    given = {os.path.realpath(song) for song in places}
    for path in counts:
        if os.path.realpath(path) in given:
            raise InputError(f"{display_path(path)} is one of the songs themselves; choose another --out or --filename")
