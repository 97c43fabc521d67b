"""Songs as stems in folders: MUSDB18-HQ, the generated songs, and how both are split.

``<root>/{train,test}/<track>/{mixture,drums,bass,other,vocals}.wav``, with ``<root>/splits.csv`` (columns
``track`` and ``split``: train, valid, test or real) saying which is which; valid songs lie in ``train/``,
real ones in ``test/``. Without that table the split is MUSDB18's own. What is wrong with a data set is
an :class:`InputError` of one sentence naming the file.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from twinsep import audio
from twinsep.config import SOURCES, STEMS, Config
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
_REMEDY = "make the default songs with `dvc repro data`, or set data.root to a folder in MUSDB18-HQ layout"

# ---------------------------------------------------------------------------- one song


def parts(stem: str) -> tuple[str, ...]:
    """The sources whose sum is ``stem``: three for instrumental, all for mixture, else the stem itself."""
    return {"instrumental": SOURCES[:3], "mixture": SOURCES}.get(stem, (stem,))


@dataclass(frozen=True)
class Track:
    """One song; every stem has ``frames`` samples at ``sample_rate`` Hz."""

    name: str
    folder: Path
    frames: int
    sample_rate: int

    def read(self, stem: str, start: int = 0, frames: int | None = None) -> Float32[np.ndarray, "2 s"]:
        """Samples [start, start + frames) of a stem, (2, frames); to the end unless ``frames`` is given.

        ``instrumental`` is drums + bass + other, ``mixture`` its own file or else the sum of all; mono
        becomes two equal channels. Raises :class:`InputError` for an unknown stem, a range beyond
        the end, or a file that cannot be read.
        """
        if stem not in (*STEMS, "mixture"):
            raise InputError(f"unknown stem {stem!r}; known: {', '.join((*STEMS, 'mixture'))}")
        frames = self.frames - start if frames is None else frames
        files = (stem,) if stem == "mixture" and _file(self.folder, stem).exists() else parts(stem)
        total = np.zeros((2, frames), np.float32)
        for source in files:
            total += audio.read_segment(_file(self.folder, source), start, frames)  # mono is broadcast
        return total


def open_track(folder: str | os.PathLike[str], sample_rate: int = 44_100) -> Track:
    """The song in ``folder``, its headers checked.

    Raises :class:`InputError` for a missing stem (``mixture.wav`` may be missing), stems of unequal
    length, a rate other than ``sample_rate`` (Hz), more than two channels, or a file cut short. Silent
    stems are accepted: songs have them.
    """
    folder = Path(folder)
    stems = (*SOURCES, "mixture") if _file(folder, "mixture").exists() else SOURCES
    headers = {stem: audio.info(_file(folder, stem)) for stem in stems}
    for stem, header in headers.items():
        if header.sample_rate != sample_rate:
            raise InputError(
                f"{_file(folder, stem)} is at {header.sample_rate} Hz but the model is at {sample_rate} Hz: "
                f"resample the song's files, for example with `ffmpeg -i {stem}.wav -ar {sample_rate} new.wav`"
            )
    shortest = min(headers, key=lambda stem: headers[stem].frames)
    longest = max(headers, key=lambda stem: headers[stem].frames)
    if headers[shortest].frames != headers[longest].frames:
        raise InputError(
            f"{_file(folder, shortest)} has {headers[shortest].frames} samples but {longest}.wav has "
            f"{headers[longest].frames}: cut or pad the song's stems to one length"
        )
    return Track(folder.name, folder, headers[shortest].frames, sample_rate)


def _file(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.wav"


# ---------------------------------------------------------------------------- a data set


def tracks(root: str | os.PathLike[str], split: str, *, sample_rate: int = 44_100) -> tuple[Track, ...]:
    """The songs of one split, in order of name, each opened by :func:`open_track`.

    Raises :class:`InputError` for a split or folder that does not exist, a faulty ``splits.csv``, a
    split without songs, or a song that does not open.
    """
    return tuple(open_track(folder, sample_rate) for folder in track_folders(root, split))


def track_folders(root: str | os.PathLike[str], split: str) -> tuple[Path, ...]:
    """The songs' folders of one split, in order of name, unopened. Raises as :func:`tracks` does."""
    root = Path(root)
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    if not root.is_dir():
        raise InputError(f"there is no data folder {root}: {_REMEDY}")
    table = root / "splits.csv"
    if table.exists():
        names, where = sorted(name for name, its in _read_splits(table).items() if its == split), table
    else:
        names, where = _musdb_split(root, split), root / SPLITS[split]
    if not names:
        raise InputError(f"no {split} songs in {where}: {_REMEDY}")
    folders = tuple(root / SPLITS[split] / name for name in names)
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{table} lists a {split} song without its folder {folder}: {_REMEDY}")
    return folders


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
    :class:`InputError` as :func:`tracks` does.
    """
    rate, wanted = config.model.sample_rate, config.training.validation_tracks
    folders = track_folders(config.data.root, "valid")
    chosen = [folders[i * len(folders) // wanted] for i in range(wanted)] if wanted < len(folders) else folders
    return [_excerpt(open_track(folder, rate), config) for folder in chosen]


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
