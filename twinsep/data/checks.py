"""``twinsep check-data``: what is wrong with the songs of a set, found before a training is.

Some findings make a song unusable, and its name goes into a list for ``twinsep train --exclude``; others are only
worth knowing. Every file is decoded to its end, in blocks, so that memory does not depend on the length of a song.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from twinsep import audio
from twinsep.audio.formats import AUDIO_EXTENSIONS
from twinsep.config import SOURCES
from twinsep.data import paired
from twinsep.data.augment import STEP
from twinsep.data.dataset import SPLITS, listed_folders
from twinsep.errors import InputError
from twinsep.utils import progress
from twinsep.utils.files import display_path, write_atomically

#: So many samples at full scale in a row are a clipped peak; fewer may be chance.
CLIPPED_RUN = 3
#: The stems' sum may differ from the mixture by so much of its energy: −40 dB.
SUM_TOLERANCE = 1e-4
_ALIKE = 0.5  # difflib's ratio, from which on a name is guessed


class Finding(NamedTuple):
    """``song`` is <split>/<name>; ``file`` may be empty, where all of the song is meant."""

    song: str
    file: str
    what: str
    unusable: bool


@dataclass
class CheckedFile:
    """One file as heard so far, block by block: length, peak, clipped runs and a hash of the samples."""

    channels: int = 0
    frames: int = 0
    peak: float = 0.0
    clipped: int = 0
    _hash: hashlib.blake2b = field(default_factory=lambda: hashlib.blake2b(digest_size=16))
    _last: np.ndarray | None = None

    def hear(self, block: np.ndarray) -> None:
        """The next block, (C, S)."""
        self.channels = len(block)
        self.frames += block.shape[1]
        size = np.abs(block)
        self.peak = max(self.peak, float(size.max()))
        last = np.zeros((len(block), CLIPPED_RUN), bool) if self._last is None else self._last
        full = np.concatenate([last, size >= 1 - STEP], axis=1)
        self._last = full[:, -CLIPPED_RUN:]
        # A run counts at its third sample, where the one before the run is not at full scale.
        self.clipped += int((full[:, 3:] & full[:, 2:-1] & full[:, 1:-2] & ~full[:, :-3]).sum())
        self._hash.update(block.T.tobytes())

    @property
    def silent(self) -> bool:
        """Whether it never reaches one step of 16-bit sound."""
        return self.peak < STEP

    @property
    def digest(self) -> bytes:
        """The same for files of the same samples, whatever their format."""
        return self._hash.digest() + bytes([self.channels])


@dataclass
class CheckedSong:
    """One song: its place, the files that could be heard to their end, and what was found."""

    split: str
    folder: Path
    sounds: dict[str, CheckedFile] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    files: int = 0

    @property
    def name(self) -> str:
        """<split>/<name>."""
        return f"{self.split}/{self.folder.name}"

    def add(self, what: str, file: str = "", *, unusable: bool = False) -> None:
        """Note a finding."""
        self.findings.append(Finding(self.name, file, what, unusable))

    @functools.cached_property
    def identity(self) -> tuple[bytes, ...]:
        """Of songs that sound the same it is the same: that of the mixture, or else of all that is not silent."""
        heard = {name: sound.digest for name, sound in self.sounds.items() if not sound.silent}
        mixture = [digest for name, digest in heard.items() if Path(name).stem in ("mixture", "in")]
        return tuple(mixture or [heard[name] for name in sorted(heard)])


def check_dataset(
    root: Path, *, sample_rate: int, segment_seconds: float, out: Path | None = None, overwrite: bool = False
) -> bool:
    """The command: print what is found in ``root`` and write the names of unusable songs into ``out``, one a line.

    Gives whether every song is usable. Raises :class:`InputError` for a folder that is no set or has no songs, a faulty
    ``splits.csv``, an ``out`` that exists unless ``overwrite``, and a name that such a list cannot hold.
    """
    if out is not None and out.exists() and not overwrite:
        raise InputError(f"{out} exists; give --overwrite to replace it, or the name of another file")
    with progress.progress_bar("check") as report:
        songs, astray = find_faults(root, sample_rate, segment_seconds, report)
    findings = [*astray, *(finding for song in songs for finding in song.findings)]
    console = Console(markup=False, emoji=False, highlight=False)  # names are shown as they are
    if findings:
        table = Table(*(Column(title, overflow="fold") for title in ("song", "file", "finding")))
        for song, file, what, unusable in findings:
            table.add_row(song, file, f"{'unusable' if unusable else 'note'}: {what}")
        console.print(table)
    names = sorted({song.folder.name for song in songs if any(finding.unusable for finding in song.findings)})
    counted = f"{len(songs)} songs, {sum(song.files for song in songs)} files, {len(findings)} findings"
    console.print(f"{counted}; unusable: {len(names)}", soft_wrap=True)
    if out is not None:
        write_song_list(out, names)
        Console(stderr=True).print(f"wrote {out}", soft_wrap=True)
    return not names


def find_faults(
    root: Path, rate: int, segment_seconds: float, report: progress.ProgressCallback
) -> tuple[list[CheckedSong], list[Finding]]:
    """(every song of the set, in order of split and name; findings of no song). Raises as :func:`run` does."""
    songs = [CheckedSong(split, folder) for split, folders in listed_folders(root).items() for folder in folders]
    if not songs:
        raise InputError(f"no songs in {root}: name a folder in MUSDB18-HQ layout or of pairs <song>/in.wav, out.wav")
    known = (
        (paired.IN, paired.OUT)
        if paired.is_paired_dataset(root)
        else tuple(f"{stem}.wav" for stem in (*SOURCES, "mixture"))
    )
    for done, song in enumerate(songs, 1):
        _check_song(song, known, rate, segment_seconds)
        report(done, len(songs))
    _find_doubles(songs)
    folders = dict.fromkeys([root, *(song.folder.parent for song in songs)])
    beside = [file.relative_to(root) for folder in folders if folder.is_dir() for file in _sound_files(folder)]
    return songs, [Finding("", str(file), "lies in no song's folder: it is not used", False) for file in beside]


def _check_song(song: CheckedSong, known: Sequence[str], rate: int, segment_seconds: float) -> None:
    if not song.folder.is_dir():
        song.add(f"is in splits.csv, but there is no folder {song.folder}", unusable=True)
        return
    files = _check_names(song, known)
    apart = _hear(song, files, rate)
    for name, sound in song.sounds.items():
        if sound.silent:
            song.add("is silent", name)
        if sound.clipped:
            song.add(f"is clipped: {sound.clipped} runs of at least {CLIPPED_RUN} samples at full scale", name)
    if len({sound.frames for sound in song.sounds.values()}) > 1:
        short, *_, long = sorted(song.sounds, key=lambda name: song.sounds[name].frames)
        lengths = f"has {song.sounds[short].frames} samples but {long} {song.sounds[long].frames}"
        song.add(f"{lengths}: cut or pad the song's files to one length", short, unusable=True)
        return
    seconds = min((sound.frames / rate for sound in song.sounds.values()), default=segment_seconds)
    if seconds < segment_seconds:
        song.add(f"is too short: {seconds:.2f} s, and zeros up to a training segment's {segment_seconds:g} s")
    # Only where all of them could be heard: a file that is there twice is unusable anyway.
    if len(song.sounds) == len(known) and apart.relative > SUM_TOLERANCE:
        decibels = 10 * np.log10(apart.relative)
        song.add(f"is not the stems' sum: the difference is at {decibels:.1f} dB of it", apart.mixture)


def _check_names(song: CheckedSong, known: Sequence[str]) -> list[Path]:
    """The files that are there of the known ones."""
    present = {name: found for name in known if (found := paired.candidates(song.folder, name))}
    missing = [name for name in known if name not in present and name != "mixture.wav"]
    if not present:
        song.add(f"holds none of {', '.join(known)}", unusable=True)
    for name in missing if present else ():
        song.add("is missing", name, unusable=True)
    for name, found in present.items():
        if len(found) > 1:
            song.add(f"is there as {found[1].name} too: remove one of them", name, unusable=True)
    files = [file for found in present.values() for file in found]
    song.files = len(files)
    for file in _sound_files(song.folder):
        if file not in files:
            guess = _guess(file, [name for name in known if name not in present]) or _guess(file, known)
            perhaps = f", perhaps for {guess}" if guess else ""
            song.add(f"is of no known name{perhaps}: not used", file.name, unusable=guess in missing)
    return files


def _guess(file: Path, names: Sequence[str]) -> str:
    """The one of ``names`` that is most like the file's, whatever its format; empty where none is."""
    stems = {Path(name).stem: name for name in names}
    return next((stems[stem] for stem in difflib.get_close_matches(file.stem.lower(), stems, 1, _ALIKE)), "")


def _sound_files(folder: Path) -> list[Path]:
    files = (file for file in sorted(folder.iterdir()) if file.suffix.lower() in AUDIO_EXTENSIONS and file.is_file())
    return [file for file in files if not file.name.startswith(".")]


@dataclass
class _Sum:
    """How far the mixture is from the sum of the stems, heard block by block."""

    mixture: str = ""
    difference: float = 0.0
    energy: float = 0.0

    def hear(self, blocks: dict[str, np.ndarray]) -> None:
        """The same place of all files, by their names."""
        self.mixture = next((name for name in blocks if Path(name).stem == "mixture"), "")
        if not self.mixture or len({block.shape[1] for block in blocks.values()}) > 1:
            return
        mixture = blocks[self.mixture].astype(np.float64)
        difference = mixture - sum(block for name, block in blocks.items() if name != self.mixture)
        self.difference += float(np.square(difference).sum())
        self.energy += float(np.square(mixture).sum())

    @property
    def relative(self) -> float:
        """Energy of the difference over that of the mixture; 0 where there is no mixture."""
        return self.difference / self.energy if self.energy else float("inf") if self.difference else 0.0


def _hear(song: CheckedSong, files: Sequence[Path], rate: int) -> _Sum:
    """All files at once, in step; those that can be heard to their end become ``song.sounds``."""
    whole = _Sum()
    sounds, streams = {file: CheckedFile() for file in files}, {file: audio.blocks(file) for file in files}
    while streams:
        blocks: dict[str, np.ndarray] = {}
        for file, stream in list(streams.items()):
            try:
                blocks[file.name] = next(stream)
                sounds[file].hear(blocks[file.name])
                continue
            except StopIteration:
                song.sounds[file.name] = sounds[file]
                if (its := audio.info(file).sample_rate) != rate:
                    song.add(f"is at {its} Hz but the model is at {rate} Hz: resample it", file.name, unusable=True)
            except InputError as error:
                song.add(str(error).removeprefix(f"{display_path(file)} "), file.name, unusable=True)
            del streams[file]
        if blocks:
            whole.hear(blocks)
    return whole


def _find_doubles(songs: list[CheckedSong]) -> None:
    """Songs that sound the same, and single files that do in songs that do not.

    Of songs in several splits the one in the last of them is kept, so that no song is both learnt and scored.
    """
    order = list(SPLITS)  # train first
    twins: dict[tuple[bytes, ...], list[CheckedSong]] = defaultdict(list)
    for song in songs:
        if song.identity:
            twins[song.identity].append(song)
    for same in twins.values():
        kept = max(same, key=lambda song: order.index(song.split))
        for song in same:
            if song is not kept:
                song.add(f"is a duplicate: it sounds the same as {kept.name}", unusable=song.split != kept.split)
    places: dict[bytes, list[tuple[CheckedSong, str]]] = defaultdict(list)
    for song in songs:
        for name, sound in song.sounds.items():
            if not sound.silent:
                places[sound.digest].append((song, name))
    for same_sound in places.values():
        for song, name in same_sound:
            other = next((o for o in same_sound if o[0] is not song and o[0].identity != song.identity), None)
            if other is not None:
                song.add(f"is a duplicate: it sounds the same as {other[0].name}/{other[1]}", name)


def write_song_list(file: Path, names: Sequence[str]) -> None:
    """``names``, one a line. Raises :class:`InputError` for one that :func:`read_names` would not give back."""
    for name in names:
        if name.startswith("#") or name != name.strip() or len(name.splitlines()) != 1:
            raise InputError(f"{file} cannot hold the name {name!r}: rename that song's folder")
    write_atomically(file, "".join(f"{name}\n" for name in names).encode())


def read_song_list(file: Path) -> list[str]:
    """The names in ``file``, one a line, without blank lines and those that start with #.

    Raises :class:`InputError` for a file that cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as UTF-8 text: give a list of songs, one name a line") from error
    return [name for line in lines if (name := line.strip()) and not name.startswith("#")]
