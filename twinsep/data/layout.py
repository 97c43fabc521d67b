"""Files of a song's folder: which ones a song needs, under which names, and where they are.

Each file may be a ``.flac`` instead of a ``.wav``. Training, scoring and ``twinsep check-data`` all read this
definition.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from twinsep.config import SOURCES
from twinsep.errors import InputError
from twinsep.utils.files import display_path

#: Suffix that any of a song's files may have instead of ``.wav``.
FLAC = ".flac"
#: Files of a paired song: the mixture, and the target that a model is to extract from it.
PAIR_MIXTURE, PAIR_TARGET = "in.wav", "out.wav"


class SongFiles(NamedTuple):
    """Names of a song's files, as ``.wav``."""

    #: Files without which a song cannot be used.
    required: tuple[str, ...]
    #: Files that a song may lack.
    optional: tuple[str, ...]
    mixture: str
    #: Files whose sum is the mixture; empty where the files alone do not tell.
    summands: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All names, the required ones first."""
        return (*self.required, *self.optional)


_SOURCE_FILES = tuple(f"{source}.wav" for source in SOURCES)
#: A song in stems; without ``mixture.wav`` its mixture is the sum of the stems.
STEM_FILES = SongFiles(_SOURCE_FILES, ("mixture.wav",), mixture="mixture.wav", summands=_SOURCE_FILES)
#: A paired song.
PAIR_FILES = SongFiles((PAIR_MIXTURE, PAIR_TARGET), (), mixture=PAIR_MIXTURE, summands=())


def candidates(folder: Path, name: str) -> list[Path]:
    """Existing files for ``name``, such as ``in.wav``: the file itself, its ``.flac`` twin, both or neither."""
    return [file for file in (folder / name, (folder / name).with_suffix(FLAC)) if file.exists()]


def find_files(folder: Path, files: SongFiles) -> dict[str, Path]:
    """Name → path of a song's files: every required one, and the optional ones that exist.

    Raises :class:`InputError` for a missing required file, and for a file that exists as ``.wav`` and as ``.flac``.
    """
    found = {name: existing for name in files.names if (existing := candidates(folder, name))}
    for both in found.values():
        if len(both) > 1:
            raise InputError(f"{both[0]} and {both[1].name} both exist: remove one of them")
    if missing := [name for name in files.required if name not in found]:
        raise InputError(
            f"{display_path(folder)} lacks {', '.join(missing)}: add what is missing, or list the unusable songs with "
            "`twinsep check-data --list` and leave them out of training with --exclude"
        )
    return {name: existing[0] for name, existing in found.items()}


def is_pair(folder: Path) -> bool:
    """Return True if the folder is a paired song.

    One of its two files is enough, so that the other is reported as missing.
    """
    return any(candidates(folder, name) for name in PAIR_FILES.required)


def is_variant(name: str, known: str) -> bool:
    """Return True if ``name`` is the file ``known`` in any format."""
    return Path(name).stem == Path(known).stem
