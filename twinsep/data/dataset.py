"""Songs in folders: MUSDB18-HQ, the generated songs, pairs of mixture and target, and how they are split.

As stems: ``<root>/{train,test}/<track>/{mixture,drums,bass,other,vocals}.wav``, with ``<root>/splits.csv``
(columns ``track`` and ``split``: train, valid, test or real) saying which is which; valid songs lie in
``train/``, real ones in ``test/``. Without that table the split is MUSDB18's own. As pairs: see
:mod:`twinsep.data.paired`. Any of the files may be a ``.flac`` instead of a ``.wav``. What is wrong with a data set is
an :class:`InputError` of one sentence naming the file.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float32

from twinsep import audio
from twinsep.config import SOURCES, Config
from twinsep.data import paired
from twinsep.errors import InputError

#: split -> the folder its songs lie in.
SPLITS = {"train": "train", "valid": "train", "test": "test", "real": "test"}
#: The customary validation songs among MUSDB18's 100 training songs, a fact of its tools
#: (package musdb 0.4.3, configs/mus.yaml).
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
#: A validation excerpt has voice if its vocals' root mean square is above this: −40 dB full scale.
_VOICE = 0.01
_REMEDY = (
    "make the default songs with `dvc repro data`, or set data.root to a folder in MUSDB18-HQ layout "
    f"or of pairs <song>/{paired.IN}, {paired.OUT}"
)

# ---------------------------------------------------------------------------- one song


def sources_of(stem: str, sources: tuple[str, ...] = SOURCES) -> tuple[str, ...]:
    """The ``sources`` (vocals last) whose sum is ``stem``: all but the vocals for instrumental, all for mixture,
    else the stem itself."""
    return {"instrumental": sources[:-1], "mixture": sources}.get(stem, (stem,))


@dataclass(frozen=True)
class Track:
    """One song in stems; every stem has ``frames`` samples at ``sample_rate`` Hz.

    ``sources`` are what it can be taken apart into, the vocals last; their sum is the mixture. ``files`` says
    where what is in a file of its own lies.
    """

    name: str
    folder: Path
    frames: int
    sample_rate: int
    files: Mapping[str, Path] = field(default_factory=dict, compare=False, repr=False)
    sources: ClassVar[tuple[str, ...]] = SOURCES

    def read(self, stem: str, start: int = 0, frames: int | None = None) -> Float32[np.ndarray, "2 s"]:
        """Samples [start, start + frames) of a stem, (2, frames); to the end unless ``frames`` is given.

        A stem is a source, ``instrumental``, which is all of them but the vocals, or ``mixture``, which is its
        own file or else the sum of all; mono becomes two equal channels. Raises :class:`InputError` for an
        unknown stem, a range beyond the end, or a file that cannot be read.
        """
        known = tuple(dict.fromkeys((*self.sources, "instrumental", "mixture")))
        if stem not in known:
            raise InputError(f"unknown stem {stem!r}; known: {', '.join(known)}")
        frames = self.frames - start if frames is None else frames
        total = np.zeros((2, frames), np.float32)
        for sign, file in self._terms(stem):
            total += sign * audio.read_segment(file, start, frames)  # mono is broadcast
        return total

    def _terms(self, stem: str) -> list[tuple[int, Path]]:
        """(sign, file) of what a known stem is the sum of."""
        return [(1, self.files[source]) for source in ((stem,) if stem in self.files else sources_of(stem))]


@dataclass(frozen=True)
class Pair(Track):
    """One paired song: ``out.wav`` is ``target``, instrumental or vocals, and ``in.wav`` − ``out.wav`` the other one.

    The sources' sum is ``in.wav``, to the bit if the files are of 16 bits.
    """

    target: str = "instrumental"
    sources: ClassVar[tuple[str, ...]] = ("instrumental", "vocals")

    def _terms(self, stem: str) -> list[tuple[int, Path]]:
        if stem in self.files:
            return [(1, self.files[stem])]
        return [(1, self.files["mixture"]), (-1, self.files[self.target])]


def open_track(
    folder: str | os.PathLike[str], sample_rate: int = 44_100, targets: tuple[str, ...] = ("instrumental",)
) -> Track:
    """The song in ``folder``, stems or a pair, its headers checked; a pair's ``out.wav`` is the one of ``targets``.

    Raises :class:`InputError` for a missing file (``mixture.wav`` may be missing), one that is there as
    ``.wav`` and as ``.flac``, files of unequal length, a rate other than ``sample_rate`` (Hz), more than
    two channels, a file cut short, or targets that a pair cannot give. Silent stems are accepted: songs
    have them.
    """
    folder = Path(folder)
    if paired.is_pair(folder):
        if len(targets) != 1 or targets[0] not in Pair.sources:
            raise InputError(
                f"{folder / paired.OUT} can be one target, {' or '.join(Pair.sources)}, not {', '.join(targets)}: "
                "set model.targets to one of these"
            )
        files = {"mixture": paired.find_file(folder, paired.IN), targets[0]: paired.find_file(folder, paired.OUT)}
        return Pair(folder.name, folder, _checked_frames(files.values(), sample_rate), sample_rate, files, targets[0])
    files = {stem: paired.find_file(folder, f"{stem}.wav") for stem in (*SOURCES, "mixture")}
    if not files["mixture"].exists():
        del files["mixture"]
    return Track(folder.name, folder, _checked_frames(files.values(), sample_rate), sample_rate, files)


def _checked_frames(files: Collection[Path], sample_rate: int) -> int:
    """Samples of each of a song's files. Raises as :func:`open_track` does."""
    headers = {file: audio.info(file) for file in files}
    for file, header in headers.items():
        if header.sample_rate != sample_rate:
            raise InputError(
                f"{file} is at {header.sample_rate} Hz but the model is at {sample_rate} Hz: "
                f"resample the song's files, for example with `ffmpeg -i {file.name} -ar {sample_rate} new.wav`"
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
    """The songs of one split, in order of name, each opened by :func:`open_track`: all stems or all pairs.

    Raises :class:`InputError` for a split or folder that does not exist, a faulty ``splits.csv``, a
    split without songs, pairs that lie amiss (:func:`twinsep.data.paired.folders`), or a song that does not open.
    """
    return tuple(open_track(folder, sample_rate, targets) for folder in track_folders(root, split))


def track_folders(root: str | os.PathLike[str], split: str, exclude: Collection[str] = ()) -> tuple[Path, ...]:
    """The songs' folders of one split, in order of name, unopened, without those of a name in ``exclude``.

    Raises as :func:`tracks` does, and for a name in ``exclude`` that no song of any split has.
    """
    root = Path(root)
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    everything = listed_folders(root)
    if astray := sorted(set(exclude) - {folder.name for folders in everything.values() for folder in folders}):
        raise InputError(f"data.exclude names {astray[0]!r}, but {root} has no such song: remove or correct the name")
    if paired.is_paired_dataset(root):
        return paired.song_folders(root, split, exclude)
    table = root / "splits.csv"
    where = table if table.exists() else root / SPLITS[split]
    folders = tuple(folder for folder in everything[split] if folder.name not in exclude)
    if everything[split] and not folders:
        raise InputError(f"data.exclude leaves no {split} songs of those in {where}: exclude fewer or add some")
    if not folders:
        raise InputError(f"no {split} songs in {where}: {_REMEDY}")
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{table} lists a {split} song without its folder {folder}: {_REMEDY}")
    return folders


def listed_folders(root: str | os.PathLike[str]) -> dict[str, list[Path]]:
    """Split → its songs' folders, in order of name, be they there and whole or not.

    Raises :class:`InputError` for a folder that does not exist or a faulty ``splits.csv``.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"there is no data folder {root}: {_REMEDY}")
    if paired.is_paired_dataset(root):
        return {split: paired.list_song_folders(root, split) for split in SPLITS}
    table = root / "splits.csv"
    if not table.exists():
        return {split: [root / SPLITS[split] / name for name in _musdb_split(root, split)] for split in SPLITS}
    splits = sorted(_read_splits(table).items())
    return {split: [root / SPLITS[split] / name for name, its in splits if its == split] for split in SPLITS}


def scored_splits(root: str | os.PathLike[str]) -> list[str]:
    """What is scored where nothing else is asked for: test, and real where ``splits.csv`` lists such songs."""
    table = Path(root) / "splits.csv"
    return ["test", "real"] if table.exists() and "real" in _read_splits(table).values() else ["test"]


def _read_splits(table: Path) -> dict[str, str]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} cannot be read as a UTF-8 table ({error}): write it again") from error
    splits: dict[str, str] = {}
    for line, row in enumerate(rows, start=2):
        name, split = row.get("track"), row.get("split")
        if not name or split not in SPLITS:
            known = ", ".join(SPLITS)
            raise InputError(f"{table}, line {line}: give the columns track and split, split being one of {known}")
        if name in splits:
            raise InputError(f"{table}, line {line}: {name!r} is listed twice; keep one of its lines")
        splits[name] = split
    return splits


def _musdb_split(root: Path, split: str) -> list[str]:
    folder = root / SPLITS[split]
    if split == "real" or not folder.is_dir():
        return []
    names = sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    if SPLITS[split] == "test":
        return names
    return [name for name in names if (name in MUSDB_VALIDATION) == (split == "valid")]


# ---------------------------------------------------------------------------- validation


class ValidationSegment(NamedTuple):
    """An excerpt to validate on, at most ``validation_seconds`` long."""

    track: str
    mixture: Float32[np.ndarray, "2 s"]
    target: Float32[np.ndarray, "n 2 s"]


def validation_segments(config: Config) -> list[ValidationSegment]:
    """One excerpt of each of up to ``validation_tracks`` songs, the same ones every time.

    The songs are spread evenly over the split ``valid``; the excerpt is the one nearest the middle of
    the song that has voice, or the middle itself. A shorter song is taken whole. Raises
    :class:`InputError` as :func:`track_folders` and :func:`open_track` do.
    """
    model, wanted = config.model, config.training.validation_tracks
    folders = track_folders(config.data.root, "valid", config.data.exclude)
    chosen = [folders[i * len(folders) // wanted] for i in range(wanted)] if wanted < len(folders) else folders
    return [_excerpt(open_track(folder, model.sample_rate, model.targets), config) for folder in chosen]


def _excerpt(track: Track, config: Config) -> ValidationSegment:
    length = min(track.frames, round(config.training.validation_seconds * track.sample_rate))
    start = next(
        (start for start in _from_the_middle(track.frames, length) if _has_voice(track, start, length)),
        (track.frames - length) // 2,
    )
    target = np.stack([track.read(stem, start, length) for stem in config.model.targets])
    return ValidationSegment(track.name, track.read("mixture", start, length), target)


def _from_the_middle(frames: int, length: int) -> Iterator[int]:
    """Starts of excerpts side by side, the middle one first, then outwards by turns."""
    middle = (frames - length) // 2
    for distance in range(0, middle + 1, length):
        yield middle + distance
        if distance:
            yield middle - distance


def _has_voice(track: Track, start: int, length: int) -> bool:
    return float(np.sqrt(np.mean(np.square(track.read("vocals", start, length))))) > _VOICE
