"""The songs of a command line, and the template for the path of each stem."""

from __future__ import annotations

import os
import string
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from twinsep.audio.formats import AUDIO_EXTENSIONS, MEDIA_EXTENSIONS
from twinsep.errors import InputError
from twinsep.utils.files import display_path

FIELDS = ("track", "stem", "ext")
#: The name that stands for {stem} in the path of a song's spectrograms.
SPECTROGRAMS = "spectrograms"
#: Stands for all stems in one file, and the extension of that file without a dot.
ALL_STEMS, STEM_MP4 = "stems", "stem.mp4"
#: Follows the name of a stem that lies under the picture of a film.
FILM = " film"


@dataclass(frozen=True)
class SongFile:
    """A song's file and its track name: the path below the given folder, or the file name, without extension.

    ``folder`` is the given folder, or the one of a given file; ``is_named`` is True for a given file.
    """

    path: Path
    track: str
    folder: Path
    is_named: bool


def find_songs(paths: Iterable[Path], out: Path | None, *, recursive: bool) -> list[SongFile]:
    """The given files and the audio files in the given folders, each once.

    Files in ``out``, where that lies in a given folder, are stems and are left out. A path that does not exist, and one
    of several folders if it is without songs, counts as a song, so that it is reported with the others. Raises
    :class:`InputError` if there is no song at all.
    """
    found: dict[str, SongFile] = {}  # by real path
    stems = None if out is None else os.path.realpath(out)
    empty: list[Path] = []
    for path in paths:
        if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for an impossible name
            found.setdefault(os.path.realpath(path), SongFile(path, track_name(path), path.parent, is_named=True))
            continue
        is_out = os.path.realpath(path) == stems
        files = sorted(
            file
            for file in _files(path, recursive)
            if file.suffix.lower() in AUDIO_EXTENSIONS
            and (stems is None or is_out or not _real_path(file).is_relative_to(stems))
        )
        if not files:
            empty.append(path)
            found.setdefault(os.path.realpath(path), SongFile(path, path.name or "folder", path, is_named=True))
        for file in files:
            track = (file.relative_to(path).parent / track_name(file)).as_posix()
            found.setdefault(str(_real_path(file)), SongFile(file, track, path, is_named=False))
    if empty and len(empty) == len(found):
        hint = "" if recursive else ": use --recursive to search its folders too"
        raise InputError(f"{display_path(empty[0])} holds no song{hint}")
    return list(found.values())


def track_name(path: Path) -> str:
    """The file name without the extension of a sound file.

    The whole name where a dot is part of it ("Triviul feat. The Fiend"), or where the rest would mean a folder.
    """
    is_extension = path.suffix.lower() in MEDIA_EXTENSIONS and path.stem not in (".", "..")
    return path.stem if is_extension else path.name


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
