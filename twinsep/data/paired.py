"""Data sets of paired songs: ``<song>/in.wav``, the mixture, and ``<song>/out.wav``, the target to extract from it.

Songs in two stems, as other trainers have them, count as pairs: two or three of ``mixture.wav``, ``vocals.wav`` and
``instrumental.wav``, which may also be ``accompaniment``, ``no_vocals`` or ``other`` (:mod:`twinsep.data.layout`).
Where a ``splits.csv`` or the names of MUSDB18's validation songs tell their splits, these hold, as for songs in stems.

Songs lie in ``<root>/{train,val,test}/<song>`` (``valid`` works as well as ``val``), or all in ``<root>/<song>``. In
the second case a hash of the song's name chooses its split: about 80 % train, 10 % valid, 10 % test, and no song
changes its split when others are added or removed. Any file may be a ``.flac`` instead.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path

from twinsep.data.layout import (
    MUSDB_VALIDATION,
    PAIR_MIXTURE,
    PAIR_TARGET,
    TWO_STEMS_WANTED,
    is_in_and_out,
    is_in_stems,
    is_pair,
)
from twinsep.errors import InputError

#: Split → names that its folder may have; the real excerpt is never a pair.
FOLDERS = {"train": ("train",), "valid": ("val", "valid"), "test": ("test",), "real": ()}
#: Split of each value of a name's hash modulo 10.
_SPLIT_BY_REMAINDER = ("train",) * 8 + ("valid", "test")


def is_paired_dataset(root: Path) -> bool:
    """Return True if any song in ``root``, or in one of its split folders, is a pair.

    Not if songs in stems are there too, of which one that lost its drums and bass looks like a song in two stems, nor
    if the splits of songs in two stems are known as for songs in stems.
    """
    songs = [song for folder in (root, *_all_split_folders(root)) for song in _subfolders(folder)]
    if any(map(is_in_and_out, songs)):
        return True
    has_split = (root / "splits.csv").exists() or any(song.name in MUSDB_VALIDATION for song in songs)
    return not has_split and any(map(is_pair, songs)) and not any(map(is_in_stems, songs))


def song_folders(root: Path, split: str, exclude: Collection[str] = ()) -> tuple[Path, ...]:
    """Folders of the paired songs of one split, sorted by name, without the names in ``exclude``.

    Raises :class:`InputError` for a ``splits.csv``, a pair outside the split folders, a song folder that is not a pair,
    or a split without songs.
    """
    if (table := root / "splits.csv").exists():
        raise InputError(f"{table} is for songs in stems: remove it and sort the pairs into train/, val/ and test/")
    if not FOLDERS[split]:
        raise InputError(f"{root} holds paired songs, which have no split {split!r}: choose train, valid or test")
    split_folders = _all_split_folders(root)
    others = [folder for folder in _subfolders(root) if folder not in split_folders and folder.name not in exclude]
    if split_folders:
        if stray := next(filter(is_pair, others), None):
            raise InputError(f"{stray} lies outside the split folders: move it into train/, val/ or test/")
        songs = _require_pairs(song for song in list_song_folders(root, split) if song.name not in exclude)
        remedy = f"put some into {root / FOLDERS[split][0]}"
    else:
        songs = [song for song in _require_pairs(others) if split_by_name(song.name) == split]
        remedy = "their split is a hash of the name, so sort a small set into folders train/, val/ and test/ yourself"
    if not songs:
        raise InputError(f"{root} holds no {split} songs among its pairs: {remedy}")
    return tuple(songs)


def list_song_folders(root: Path, split: str) -> list[Path]:
    """Song folders of one split, sorted by name, whether or not they hold a pair."""
    if _all_split_folders(root):
        songs = [song for folder in _split_folders(root, split) for song in _subfolders(folder)]
    else:
        songs = [song for song in _subfolders(root) if split_by_name(song.name) == split]
    return sorted(songs, key=lambda song: song.name)


def split_by_name(name: str) -> str:
    """Split (train, valid or test) of a song's name: the first 8 bytes of its SHA-256, big-endian, modulo 10."""
    # Composed first, because file systems differ in how they spell an é.
    digest = hashlib.sha256(unicodedata.normalize("NFC", name).encode()).digest()
    return _SPLIT_BY_REMAINDER[int.from_bytes(digest[:8], "big") % len(_SPLIT_BY_REMAINDER)]


def _split_folders(root: Path, split: str) -> list[Path]:
    """Folders of one split. A song that happens to be named ``test`` is not one of them."""
    named = [root / name for name in FOLDERS[split]]
    return [folder for folder in named if folder.is_dir() and not is_pair(folder)]


def _all_split_folders(root: Path) -> list[Path]:
    """Folders of every split; empty if a hash chooses the split."""
    return [folder for split in FOLDERS for folder in _split_folders(root, split)]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _require_pairs(songs: Iterable[Path]) -> list[Path]:
    """Sort ``songs`` by name. Raises :class:`InputError` for one that is not a pair."""
    songs = sorted(songs, key=lambda song: song.name)
    for song in songs:
        if not is_pair(song):
            raise InputError(
                f"{song} holds neither {PAIR_MIXTURE} nor {PAIR_TARGET}, nor {TWO_STEMS_WANTED}: "
                "add them or move the folder away"
            )
    return songs
