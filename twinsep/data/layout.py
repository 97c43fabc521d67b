"""Files of a song's folder: which ones a song needs, under which names, and where they are.

A song is in stems (MUSDB18-HQ), a pair (``in.wav`` and ``out.wav``), or in two stems: two or three of ``mixture.wav``,
``vocals.wav`` and the rest under one of the names that other trainers give it. Each file may be a ``.flac`` instead of
a ``.wav``. Training, scoring and ``twinsep check-data`` all read this definition.
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
#: Names of the rest of a song in two stems, the first existing one of which counts.
INSTRUMENTAL_NAMES = ("instrumental.wav", "accompaniment.wav", "no_vocals.wav", "other.wav")
#: Two of these are enough for a song in two stems.
TWO_STEMS_WANTED = f"two of mixture.wav, vocals.wav and {INSTRUMENTAL_NAMES[0]}"

#: The customary validation songs among MUSDB18's 100 training songs (package musdb 0.4.3, configs/mus.yaml).
MUSDB_VALIDATION = (
    "Actions - One Minute Smile",
    "Clara Berry And Wooldog - Waltz For My Victims",
    "Johnny Lokke - Promises & Lies",
    "Patrick Talbot - A Reason To Leave",
    "Triviul - Angelsaint",
    "Alexander Ross - Goodbye Bolero",
    "Fergessen - Nos Palpitants",
    "Leaf - Summerghost",
    "Skelpolu - Human Mistakes",
    "Young Griffo - Pennies",
    "ANiMAL - Rockshow",
    "James May - On The Line",
    "Meaxic - Take A Step",
    "Traffic Experiment - Sirens",
)


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


def two_stem_files(folder: Path) -> SongFiles:
    """The files of a song in two stems: the two or three that exist; mixture and another if fewer do."""
    rest = next((name for name in INSTRUMENTAL_NAMES if candidates(folder, name)), INSTRUMENTAL_NAMES[0])
    names = ("mixture.wav", "vocals.wav", rest)
    present = tuple(name for name in names if candidates(folder, name))
    if len(present) < 2:
        present = ("mixture.wav", "vocals.wav" if not candidates(folder, rest) else rest)
    optional = tuple(name for name in names if name not in present)
    return SongFiles(present, optional, mixture="mixture.wav", summands=("vocals.wav", rest))


def is_in_and_out(folder: Path) -> bool:
    """Return True if the folder is a pair ``in.wav``, ``out.wav``.

    One of its two files is enough, so that the other is reported as missing.
    """
    return any(candidates(folder, name) for name in PAIR_FILES.required)


def is_in_stems(folder: Path) -> bool:
    """Return True if the folder holds files that only a song in stems has."""
    return any(candidates(folder, name) for name in ("drums.wav", "bass.wav"))


def is_pair(folder: Path) -> bool:
    """Return True if the folder holds a pair or a song in two stems: a mixture in two parts, under any names."""
    if is_in_and_out(folder):
        return True
    files = two_stem_files(folder)
    return not is_in_stems(folder) and all(candidates(folder, name) for name in files.required)


def is_variant(name: str, known: str) -> bool:
    """Return True if ``name`` is the file ``known`` in any format."""
    return Path(name).stem == Path(known).stem
