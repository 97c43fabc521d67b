"""Data sets of songs in folders: MUSDB18-HQ, the generated songs and paired songs, with their splits.

Songs in stems lie in ``<root>/{train,test}/<track>/{mixture,drums,bass,other,vocals}.wav``. The table
``<root>/splits.csv`` has the columns ``track`` and ``split`` (train, valid, test or real); valid songs lie in
``train/``, real ones in ``test/``. Without the table the split is MUSDB18's own. For pairs see
:mod:`twinsep.data.paired`. Any file may be a ``.flac`` instead of a ``.wav``. A faulty data set raises
:class:`InputError`, one sentence that names the file.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from twinsep import audio
from twinsep.audio.source import ffmpeg_command
from twinsep.config import SOURCES
from twinsep.data import paired
from twinsep.data.layout import (
    INSTRUMENTAL_NAMES,
    MUSDB_VALIDATION,
    PAIR_FILES,
    PAIR_MIXTURE,
    PAIR_TARGET,
    STEM_FILES,
    TWO_STEMS_WANTED,
    find_files,
    is_in_and_out,
    is_pair,
    two_stem_files,
)
from twinsep.errors import InputError

#: Split → folder of its songs.
SPLITS = {"train": "train", "valid": "train", "test": "test", "real": "test"}
_REMEDY = (
    "make the default songs with `dvc repro data`, or set data.root to a folder in MUSDB18-HQ layout "
    f"or of pairs <song>/{PAIR_MIXTURE}, {PAIR_TARGET}, or of songs with {TWO_STEMS_WANTED}"
)

# ---------------------------------------------------------------------------- one song


def sources_of(stem: str, sources: tuple[str, ...] = SOURCES) -> tuple[str, ...]:
    """Return the ``sources`` (vocals last) whose sum is ``stem``.

    These are all except the vocals for ``instrumental``, all for ``mixture``, and otherwise the stem itself.
    """
    return {"instrumental": sources[:-1], "mixture": sources}.get(stem, (stem,))


@dataclass(frozen=True)
class Track:
    """One song in stems; every stem has ``frames`` samples at ``sample_rate`` Hz.

    The mixture is the sum of ``sources``, the vocals last. ``files`` holds the path of each stem that has its own file.
    """

    name: str
    folder: Path
    frames: int
    sample_rate: int
    files: Mapping[str, Path] = field(default_factory=dict, compare=False, repr=False)
    sources: ClassVar[tuple[str, ...]] = SOURCES

    def read(self, stem: str, start: int = 0, frames: int | None = None) -> Float32[np.ndarray, "2 s"]:
        """Read samples [start, start + frames) of a stem as (2, frames), by default to the end of the song.

        ``stem`` is a source, ``instrumental`` (the sum of all sources except the vocals) or ``mixture`` (its own file,
        or the sum of all sources). A mono file becomes two equal channels. Raises :class:`InputError` for an unknown
        stem, a range beyond the end, or a file that cannot be read.
        """
        known = tuple(dict.fromkeys((*self.sources, "instrumental", "mixture")))
        if stem not in known:
            raise InputError(f"unknown stem {stem!r}; known: {', '.join(known)}")
        frames = self.frames - start if frames is None else frames
        total = np.zeros((2, frames), np.float32)
        for sign, file in self._signed_files(stem):
            total += sign * audio.read_segment(file, start, frames)  # mono is broadcast
        return total

    def _signed_files(self, stem: str) -> list[tuple[int, Path]]:
        """Files that add up to ``stem``, each with its sign."""
        return [(1, self.files[source]) for source in ((stem,) if stem in self.files else sources_of(stem))]


@dataclass(frozen=True)
class PairedTrack(Track):
    """One song in instrumental and vocals, of which ``files`` holds two, or one and the mixture, or all.

    What has no file is the sum or the difference of the others. Of a pair the files are the mixture, ``in.wav``, and
    the target, ``out.wav``: the sum of its sources equals ``in.wav``, to the bit if both files have 16-bit samples.
    """

    sources: ClassVar[tuple[str, ...]] = ("instrumental", "vocals")

    def _signed_files(self, stem: str) -> list[tuple[int, Path]]:
        if stem in self.files:
            return [(1, self.files[stem])]
        if stem == "mixture":
            return [(1, self.files[source]) for source in self.sources]
        other = next(source for source in self.sources if source != stem)
        return [(1, self.files["mixture"]), (-1, self.files[other])]


def open_track(
    folder: str | os.PathLike[str], sample_rate: int = 44_100, targets: tuple[str, ...] = ("instrumental",)
) -> Track:
    """Open the song in ``folder``, stems or a pair, and check the headers of its files.

    ``sample_rate`` is in Hz. The ``out.wav`` of a pair is the one entry of ``targets``; for songs in two stems see
    :mod:`twinsep.data.layout`. Silent stems are accepted,
    because songs have them. Raises :class:`InputError` for a missing file (except ``mixture.wav``), a file that exists
    as ``.wav`` and as ``.flac``, files of unequal length, another sample rate, more than two channels, a file cut
    short, or targets that a pair does not have.
    """
    folder = Path(folder)
    if not is_pair(folder):
        found = {Path(name).stem: file for name, file in find_files(folder, STEM_FILES).items()}
        return Track(folder.name, folder, _common_length(found.values(), sample_rate), sample_rate, found)
    if is_in_and_out(folder):
        if len(targets) != 1 or targets[0] not in PairedTrack.sources:
            raise InputError(
                f"{folder / PAIR_TARGET} holds a single target, {' or '.join(PairedTrack.sources)}, "
                f"not {', '.join(targets)}: set model.targets to one of these"
            )
        pair = find_files(folder, PAIR_FILES)
        files = {"mixture": pair[PAIR_MIXTURE], targets[0]: pair[PAIR_TARGET]}
    else:
        if not set(targets) <= set(PairedTrack.sources):
            raise InputError(
                f"{folder} holds vocals and the rest of the song, not {', '.join(targets)}: "
                f"set model.targets to {' or '.join(PairedTrack.sources)}"
            )
        stems = find_files(folder, two_stem_files(folder)).items()
        files = {"instrumental" if name in INSTRUMENTAL_NAMES else Path(name).stem: file for name, file in stems}
    return PairedTrack(folder.name, folder, _common_length(files.values(), sample_rate), sample_rate, files)


def check_kinds(songs: Sequence[Track]) -> None:
    """Raise :class:`InputError` if ``songs`` are not all in stems or all pairs."""
    stems = [song for song in songs if not isinstance(song, PairedTrack)]
    pairs = [song for song in songs if isinstance(song, PairedTrack)]
    if stems and pairs:
        raise InputError(
            f"{pairs[0].folder} lacks drums.wav and bass.wav, which {stems[0].name!r} has: add them, "
            "or leave the song out of training with --exclude"
        )


def _common_length(files: Collection[Path], sample_rate: int) -> int:
    """Length in samples that all of a song's files have. Raises as :func:`open_track` does."""
    headers = {file: audio.info(file) for file in files}
    for file, header in headers.items():
        if header.sample_rate != sample_rate:
            raise InputError(
                f"{file} is at {header.sample_rate} Hz but the model is at {sample_rate} Hz: "
                f"resample the song's files, for example with {ffmpeg_command(file, f'-ar {sample_rate} new.wav')}"
            )
    shortest = min(headers, key=lambda file: headers[file].frames)
    longest = max(headers, key=lambda file: headers[file].frames)
    if headers[shortest].frames != headers[longest].frames:
        raise InputError(
            f"{shortest} has {headers[shortest].frames} samples but {longest.name} has "
            f"{headers[longest].frames}: cut or pad the song's files to one length"
        )
    return headers[shortest].frames


# ---------------------------------------------------------------------------- a data set


def tracks(
    root: str | os.PathLike[str],
    split: str,
    *,
    sample_rate: int = 44_100,
    targets: tuple[str, ...] = ("instrumental",),
) -> tuple[Track, ...]:
    """Open the songs of one split, sorted by name; all are in stems or all are pairs.

    Raises :class:`InputError` for an unknown split, a missing folder, a faulty ``splits.csv``, a split without songs,
    misplaced pairs (:func:`twinsep.data.paired.song_folders`), or a song that :func:`open_track` refuses.
    """
    found = tuple(open_track(folder, sample_rate, targets) for folder in track_folders(root, split))
    check_kinds(found)
    return found


def track_folders(root: str | os.PathLike[str], split: str, exclude: Collection[str] = ()) -> tuple[Path, ...]:
    """Song folders of one split, sorted by name and not yet opened, without the names in ``exclude``.

    Raises :class:`InputError` as :func:`tracks` does, and for a name in ``exclude`` that no song of any split has.
    """
    root = Path(root)
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    listed = list_track_folders(root)
    if unknown := sorted(set(exclude) - {folder.name for folders in listed.values() for folder in folders}):
        raise InputError(f"data.exclude names {unknown[0]!r}, but {root} has no such song: remove or correct the name")
    if paired.is_paired_dataset(root):
        return paired.song_folders(root, split, exclude)
    table = root / "splits.csv"
    where = table if table.exists() else root / SPLITS[split]
    folders = tuple(folder for folder in listed[split] if folder.name not in exclude)
    if listed[split] and not folders:
        raise InputError(f"data.exclude leaves no {split} songs in {where}: exclude fewer or add some")
    if not folders:
        raise InputError(f"{where} holds no {split} songs: {_REMEDY}")
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{table} lists the {split} song {folder.name!r}, but {folder} does not exist: {_REMEDY}")
    return folders


def list_track_folders(root: str | os.PathLike[str]) -> dict[str, list[Path]]:
    """Split → folders of its songs, sorted by name, whether or not they exist and are complete.

    Raises :class:`InputError` for a missing ``root`` or a faulty ``splits.csv``.
    """
    root = Path(root)
    if not root.is_dir():
        fault = "is a file, not a folder of songs" if root.exists() else "does not exist"
        raise InputError(f"data folder {root} {fault}: {_REMEDY}")
    if paired.is_paired_dataset(root):
        return {split: paired.list_song_folders(root, split) for split in SPLITS}
    table = root / "splits.csv"
    if not table.exists():
        return {split: [root / SPLITS[split] / name for name in _musdb_split(root, split)] for split in SPLITS}
    rows = sorted(_read_splits(table).items())
    return {split: [root / SPLITS[split] / name for name, listed in rows if listed == split] for split in SPLITS}


def scored_splits(root: str | os.PathLike[str]) -> list[str]:
    """Splits scored by default: test, and real where ``splits.csv`` lists real songs.

    Raises :class:`InputError` for a faulty ``splits.csv``.
    """
    table = Path(root) / "splits.csv"
    return ["test", "real"] if table.exists() and "real" in _read_splits(table).values() else ["test"]


def _read_splits(table: Path) -> dict[str, str]:
    """Track → split, in the table's order."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} cannot be read as a UTF-8 table ({error}): save it as CSV in UTF-8") from error
    splits: dict[str, str] = {}
    for line, row in enumerate(rows, start=2):
        name, split = row.get("track"), row.get("split")
        if not name or split not in SPLITS:
            known = ", ".join(SPLITS)
            raise InputError(
                f"{table}, line {line} lacks a track or a valid split: fill both columns, split with {known}"
            )
        if name in splits:
            raise InputError(f"{table}, line {line}: {name!r} is listed twice: keep one of its lines")
        splits[name] = split
    return splits


def _musdb_split(root: Path, split: str) -> list[str]:
    """Names of the songs of one split of MUSDB18, sorted."""
    folder = root / SPLITS[split]
    if split == "real" or not folder.is_dir():
        return []
    names = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    if SPLITS[split] == "test":
        return names
    return [name for name in names if (name in MUSDB_VALIDATION) == (split == "valid")]
