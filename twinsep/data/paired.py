"""Paired songs in folders: ``<song>/in.wav``, the mixture, and ``<song>/out.wav``, what a model is to make of it.

They lie in ``<root>/{train,val,test}/<song>`` (``valid`` for ``val`` will do) or all in ``<root>/<song>``,
where a hash of its name decides where a song goes: about 80 % train, 10 % valid, 10 % test, and no song
moves when others come or go. Either file may be a ``.flac`` instead.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path

from twinsep.errors import InputError

IN, OUT = "in.wav", "out.wav"
#: What any of a song's files may be instead of a ``.wav``.
FLAC = ".flac"
#: split -> the names its folder may have; the real excerpt is never a pair.
FOLDERS = {"train": ("train",), "valid": ("val", "valid"), "test": ("test",), "real": ()}
#: Of ten songs by hash.
_TENTHS = ("train",) * 8 + ("valid", "test")


def candidates(folder: Path, name: str) -> list[Path]:
    """What there is of the file ``name``, such as ``in.wav``: itself, the same as ``.flac``, both or neither."""
    return [file for file in (folder / name, (folder / name).with_suffix(FLAC)) if file.exists()]


def find_file(folder: Path, name: str) -> Path:
    """The file ``name``, such as ``in.wav``, or the same as ``.flac``; ``name`` where there is neither.

    Raises :class:`InputError` where there are both.
    """
    found = candidates(folder, name)
    if len(found) > 1:
        raise InputError(f"{found[0]} and {found[1].name} are both there: remove the one that is not to be used")
    return found[0] if found else folder / name


def is_pair(folder: Path) -> bool:
    """Whether the folder is a paired song: one of the two files is enough, so that the other is missed by name."""
    return any(candidates(folder, name) for name in (IN, OUT))


def is_paired_dataset(root: Path) -> bool:
    """Whether the set in ``root`` is one of pairs: any song in it, or in the folders of its splits, is one."""
    return any(is_pair(song) for folder in (root, *_sorted_into(root)) for song in _folders_in(folder))


def song_folders(root: Path, split: str, exclude: Collection[str] = ()) -> tuple[Path, ...]:
    """The songs' folders of one split of a set of pairs, in order of name, without those of a name in ``exclude``.

    Raises :class:`InputError` for a ``splits.csv``, a pair beside the splits' folders, a folder that is
    no pair among the songs, or a split without songs.
    """
    if (table := root / "splits.csv").exists():
        raise InputError(f"{table} is for songs in stems: remove it and sort the pairs into train/, val/ and test/")
    if not FOLDERS[split]:
        raise InputError(f"no {split} songs in {root}: paired songs are for train, valid and test")
    sorted_into = _sorted_into(root)
    beside = [folder for folder in _folders_in(root) if folder not in sorted_into and folder.name not in exclude]
    if sorted_into:
        if astray := next(filter(is_pair, beside), None):
            raise InputError(f"{astray} lies beside the folders of the splits: move it into train/, val/ or test/")
        songs = _pairs(song for song in list_song_folders(root, split) if song.name not in exclude)
        remedy = f"put some into {root / FOLDERS[split][0]}"
    else:
        songs = [song for song in _pairs(beside) if split_by_name(song.name) == split]
        remedy = "a hash of their names splits them, so sort a small set into folders train/, val/ and test/ yourself"
    if not songs:
        raise InputError(f"no {split} songs among the pairs in {root}: {remedy}")
    return tuple(songs)


def list_song_folders(root: Path, split: str) -> list[Path]:
    """The folders among the songs of one split, in order of name, whatever they hold."""
    if _sorted_into(root):
        songs = [song for folder in _split_folders(root, split) for song in _folders_in(folder)]
    else:
        songs = [song for song in _folders_in(root) if split_by_name(song.name) == split]
    return sorted(songs, key=lambda song: song.name)


def split_by_name(name: str) -> str:
    """train, valid or test by the SHA-256 of the song's name, its first 8 bytes as a big-endian number modulo 10."""
    # Composed first: file systems differ in how they spell an é.
    digest = hashlib.sha256(unicodedata.normalize("NFC", name).encode()).digest()
    return _TENTHS[int.from_bytes(digest[:8], "big") % len(_TENTHS)]


def _split_folders(root: Path, split: str) -> list[Path]:
    """Those of one split; a song that happens to be named ``test`` is none."""
    named = [root / name for name in FOLDERS[split]]
    return [folder for folder in named if folder.is_dir() and not is_pair(folder)]


def _sorted_into(root: Path) -> list[Path]:
    """Those of every split; none where a hash decides."""
    return [folder for split in FOLDERS for folder in _split_folders(root, split)]


def _folders_in(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _pairs(songs: Iterable[Path]) -> list[Path]:
    """``songs``, in order of name. Raises :class:`InputError` for one that is no pair."""
    songs = sorted(songs, key=lambda song: song.name)
    for song in songs:
        if not is_pair(song):
            raise InputError(f"{song} holds neither {IN} nor {OUT} as the other songs do: add both or move it away")
    return songs
