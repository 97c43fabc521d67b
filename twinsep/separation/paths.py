"""The songs of a command line, and the path of each stem."""

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
#: The name that stands for {stem} in the path of a song's spectrograms.
SPECTROGRAMS = "spectrograms"


@dataclass(frozen=True)
class SongFile:
    """A song's file and its track name: the path below the given folder, or the file name, without extension."""

    path: Path
    track: str


def find_songs(paths: Iterable[Path], out: Path, *, recursive: bool) -> list[SongFile]:
    """The given files and the audio files in the given folders, each once.

    Files in ``out``, where that lies in a given folder, are stems and are left out. A path that does not exist counts
    as a song, so that it is reported with the others. Raises :class:`InputError` for a folder without songs.
    """
    found: dict[str, SongFile] = {}  # by real path
    stems = os.path.realpath(out)
    for path in paths:
        if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for an impossible name
            found.setdefault(os.path.realpath(path), SongFile(path, _track_name(path)))
            continue
        is_out = os.path.realpath(path) == stems
        files = sorted(
            file
            for file in _files(path, recursive)
            if file.suffix.lower() in AUDIO_EXTENSIONS and (is_out or not _real_path(file).is_relative_to(stems))
        )
        if not files:
            hint = "" if recursive else ": use --recursive to search its folders too"
            raise InputError(f"{display_path(path)} holds no song{hint}")
        for file in files:
            folder = file.relative_to(path).parent
            found.setdefault(str(_real_path(file)), SongFile(file, (folder / _track_name(file)).as_posix()))
    return list(found.values())


def _track_name(path: Path) -> str:
    """The file name without extension, or with it where the rest would mean a folder ("." or "..")."""
    return path.name if path.stem in (".", "..") else path.stem


def _real_path(path: Path) -> Path:
    """``path`` without links; ``Path.resolve`` raises for links that form a circle."""
    return Path(os.path.realpath(path))


def _files(folder: Path, recursive: bool) -> list[Path]:
    """All files except hidden ones, such as the ``._`` files that macOS writes beside each."""
    paths = folder.rglob("*") if recursive else folder.iterdir()
    return [p for p in paths if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)]


@dataclass(frozen=True)
class FilenameTemplate:
    """The place of stems below a folder, such as ``{track}/{stem}.{ext}``.

    Raises :class:`InputError` for a template that is no relative path, has unknown fields or no final ``.{ext}``.
    """

    text: str = "{track}/{stem}.{ext}"

    def __post_init__(self) -> None:
        example = "write it like {track}/{stem}.{ext}"
        try:
            parsed = [part[1:] for part in string.Formatter().parse(self.text) if part[1] is not None]
        except ValueError as error:
            raise InputError(f"--filename {self.text!r} has a lone brace: {example}") from error
        fields = {f"{name}{'!' + how if how else ''}{':' + width if width else ''}" for name, width, how in parsed}
        if not fields <= set(FIELDS):
            known = ", ".join(f"{{{field}}}" for field in FIELDS)
            unknown = min(fields - set(FIELDS))
            raise InputError(f"--filename {self.text!r} has the field {{{unknown}}}: choose from {known}")
        parts = Path(self.text).parts
        if not parts or Path(self.text).is_absolute() or ".." in parts or self.text.endswith("/"):
            raise InputError(f"--filename {self.text!r} is not a path below --out: {example}")
        if not self.text.endswith(".{ext}"):
            raise InputError(f"--filename {self.text!r} does not end in .{{ext}}: {example}")

    def path(self, out: Path, track: str, stem: str, extension: str) -> Path:
        """The file of one stem; ``extension`` has no dot."""
        return out / self.text.format(track=track, stem=stem, ext=extension)


def check_collisions(outputs: dict[Path, list[Path]]) -> None:
    """Raise :class:`InputError` if two stems share a path, or a stem would replace a song; song → its stems."""
    counts = Counter(os.path.normpath(path) for paths in outputs.values() for path in paths)
    twice = next((path for path, count in counts.items() if count > 1), None)
    if twice is not None:
        raise InputError(
            f"{display_path(twice)} would be written more than once: separate songs of the same name into different "
            "--out folders, and keep {stem}, and {track} for several songs, in --filename"
        )
    songs = {os.path.realpath(song) for song in outputs}
    for path in counts:
        if os.path.realpath(path) in songs:
            raise InputError(f"{display_path(path)} is one of the songs: choose another --out or --filename")
