"""``twinsep check-data``: find faults in a data set before training does.

Some findings make a song unusable, and its name goes into a list for ``twinsep train --exclude``; others are only
notes. Every file is decoded to its end, block by block, so that memory does not depend on the length of a song.
"""

from __future__ import annotations

import difflib
import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from twinsep import audio
from twinsep.audio.formats import AUDIO_EXTENSIONS
from twinsep.data import paired
from twinsep.data.dataset import SPLITS, list_track_folders
from twinsep.data.layout import (
    PAIR_FILES,
    STEM_FILES,
    TWO_STEMS_WANTED,
    SongFiles,
    candidates,
    is_in_and_out,
    is_in_stems,
    is_pair,
    is_variant,
    two_stem_files,
)
from twinsep.data.sound_checks import CLIPPED_RUN, CheckedFile, Mismatch, SumMismatch
from twinsep.errors import InputError
from twinsep.utils import progress
from twinsep.utils.files import display_path, write_atomically

#: Smallest similarity of two names (difflib's ratio, 0…1) at which one is suggested for the other.
_SIMILAR = 0.5
_PLACES = 3  # in a finding, at most


class Finding(NamedTuple):
    """One finding. ``song`` is <split>/<name>; ``file`` is empty if the finding concerns the whole song."""

    song: str
    file: str
    message: str
    unusable: bool


@dataclass
class CheckedSong:
    """One song: its folder, the files that its set requires, the decoded files by name, and the findings."""

    split: str
    folder: Path
    layout: SongFiles
    sounds: dict[str, CheckedFile] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    files: int = 0

    @property
    def name(self) -> str:
        """<split>/<name>."""
        return f"{self.split}/{self.folder.name}"

    def add_finding(self, message: str, file: str = "", *, unusable: bool = False) -> None:
        """Record a finding about ``file``, or about the whole song."""
        self.findings.append(Finding(self.name, file, message, unusable))

    @functools.cached_property
    def identity(self) -> tuple[bytes, ...]:
        """Hashes that equal songs share: the mixture's, or else those of all files that are not silent."""
        digests = {name: sound.digest for name, sound in self.sounds.items() if not sound.silent}
        mixture = [digest for name, digest in digests.items() if is_variant(name, self.layout.mixture)]
        return tuple(mixture or [digests[name] for name in sorted(digests)])


def check_dataset(
    root: Path, *, sample_rate: int, segment_seconds: float, out: Path | None = None, overwrite: bool = False
) -> bool:
    """Run the command: print the findings in ``root`` and write the names of unusable songs into ``out``, one per line.

    ``sample_rate`` is in Hz, ``segment_seconds`` the length of a training segment. Returns True if every song is
    usable. Raises :class:`InputError` for a folder without songs, a faulty ``splits.csv``, an ``out`` that exists
    (unless ``overwrite``), and a name that the list cannot hold.
    """
    if out is not None and out.exists() and not overwrite:
        raise InputError(f"{out} exists: choose another file, or pass --overwrite to replace it")
    with progress.progress_bar("check") as report:
        songs, stray = find_faults(root, sample_rate, segment_seconds, report)
    findings = [*stray, *(finding for song in songs for finding in song.findings)]
    console = Console(markup=False, emoji=False, highlight=False)  # names may look like markup
    if findings:
        table = Table(*(Column(title, overflow="fold") for title in ("song", "file", "finding")))
        for song, file, message, unusable in findings:
            table.add_row(song, file, f"{'unusable' if unusable else 'note'}: {message}")
        console.print(table)
    names = sorted({song.folder.name for song in songs if any(finding.unusable for finding in song.findings)})
    counts = f"{len(songs)} songs, {sum(song.files for song in songs)} files, {len(findings)} findings"
    console.print(f"{counts}; unusable: {len(names)}", soft_wrap=True)
    if out is not None:
        write_song_list(out, names)
        Console(stderr=True).print(f"wrote {out}", soft_wrap=True)
    return not names


def find_faults(
    root: Path, rate: int, segment_seconds: float, report: progress.ProgressCallback
) -> tuple[list[CheckedSong], list[Finding]]:
    """Return the checked songs, sorted by split and name, and the findings that belong to no song.

    ``rate`` is in Hz. Raises :class:`InputError` for a folder without songs or a faulty ``splits.csv``.
    """
    listed = list_track_folders(root)
    layout_of = _layouts(paired.is_paired_dataset(root), [folder for folders in listed.values() for folder in folders])
    songs = [CheckedSong(split, folder, layout_of(folder)) for split, folders in listed.items() for folder in folders]
    if not songs:
        raise InputError(
            f"{root} holds no songs: name a folder in MUSDB18-HQ layout, of pairs <song>/in.wav, out.wav, "
            f"or of songs with {TWO_STEMS_WANTED}"
        )
    for done, song in enumerate(songs, 1):
        _check_song(song, rate, segment_seconds)
        report(done, len(songs))
    _find_duplicates(songs)
    folders = dict.fromkeys([root, *(song.folder.parent for song in songs)])
    stray = [file.relative_to(root) for folder in folders if folder.is_dir() for file in _sound_files(folder)]
    return songs, [Finding("", str(file), "lies outside the songs' folders: not used", False) for file in stray]


def _layouts(is_paired: bool, folders: Sequence[Path]) -> Callable[[Path], SongFiles]:
    """Folder → the files that it should hold; a folder without any is taken for one of the most common kind."""
    if not is_paired and (any(map(is_in_stems, folders)) or not any(map(is_pair, folders))):
        return lambda _: STEM_FILES
    are_two_stems = not any(map(is_in_and_out, folders))

    def layout(folder: Path) -> SongFiles:
        """Return the files that a song folder of a paired set should hold."""
        is_two_stems = are_two_stems or (is_pair(folder) and not is_in_and_out(folder))
        return two_stem_files(folder) if is_two_stems else PAIR_FILES

    return layout


def _check_song(song: CheckedSong, rate: int, segment_seconds: float) -> None:
    if not song.folder.is_dir():
        song.add_finding(f"is in splits.csv, but there is no folder {song.folder}", unusable=True)
        return
    files = _check_names(song)
    mismatch = _decode(song, files, rate)
    for name, sound in song.sounds.items():
        if sound.silent:
            song.add_finding("is silent", name)
        if sound.clipped:
            message = f"is clipped: {sound.clipped} runs of at least {CLIPPED_RUN} samples at full scale"
            song.add_finding(message, name)
    if len({sound.frames for sound in song.sounds.values()}) > 1:
        short, *_, long = sorted(song.sounds, key=lambda name: song.sounds[name].frames)
        lengths = f"has {song.sounds[short].frames} samples but {long} has {song.sounds[long].frames}"
        song.add_finding(f"{lengths}: cut or pad the song's files to one length", short, unusable=True)
        return
    seconds = min((sound.frames / rate for sound in song.sounds.values()), default=segment_seconds)
    if seconds < segment_seconds:
        song.add_finding(f"lasts only {seconds:.2f} s: zeros fill the training segment of {segment_seconds:g} s")
    # Only if every file was decoded once: a file that exists in two formats is unusable anyway.
    if len(song.sounds) == len(song.layout.names):
        for found in mismatch.find():
            song.add_finding(_describe(found, mismatch), mismatch.mixture)


def _describe(found: Mismatch, mismatch: SumMismatch) -> str:
    """The finding about one place where a mixture is not the sum of its stems."""
    where = ""
    if len(found.channels) < mismatch.channels:
        names = ("left", "right") if mismatch.channels == 2 else [str(n) for n in range(1, mismatch.channels + 1)]
        where += f" in the {' and '.join(names[channel] for channel in found.channels)} channel"
    if found.places != ((0, mismatch.seconds),):
        places = [f"from {_minutes(start)} to {_minutes(end)}" for start, end in found.places]
        where += " " + ", ".join(places[:_PLACES])
        where += f" and in {len(places) - _PLACES} more places" if len(places) > _PLACES else ""
    there = " there" if where else ""
    level = (
        f"the difference is at {found.decibels:.1f} dB of the mixture" if found.decibels < np.inf else "it is silent"
    )
    return f"is not the sum of the stems{where}: {level}{there}"


def _minutes(seconds: float) -> str:
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"


def _check_names(song: CheckedSong) -> list[Path]:
    """Record missing, ambiguous and unknown file names; return the existing files with known names."""
    layout = song.layout
    present = {name: found for name in layout.names if (found := candidates(song.folder, name))}
    missing = [name for name in layout.required if name not in present]
    if not present:
        song.add_finding(f"holds none of {', '.join(layout.names)}", unusable=True)
    for name in missing if present else ():
        song.add_finding("is missing", name, unusable=True)
    for name, found in present.items():
        if len(found) > 1:
            song.add_finding(f"exists as {found[1].name} too: remove one of them", name, unusable=True)
    files = [file for found in present.values() for file in found]
    song.files = len(files)
    for file in _sound_files(song.folder):
        if file not in files:
            guess = _guess(file, [name for name in layout.names if name not in present]) or _guess(file, layout.names)
            suggestion = f", perhaps meant as {guess}" if guess else ""
            song.add_finding(f"has an unknown name{suggestion}: not used", file.name, unusable=guess in missing)
    return files


def _guess(file: Path, names: Sequence[str]) -> str:
    """Return the entry of ``names`` most similar to the file's name in any format, or an empty string."""
    stems = {Path(name).stem: name for name in names}
    return next((stems[stem] for stem in difflib.get_close_matches(file.stem.lower(), stems, 1, _SIMILAR)), "")


def _sound_files(folder: Path) -> list[Path]:
    """Audio files in ``folder``, sorted, without hidden ones."""
    files = (file for file in sorted(folder.iterdir()) if file.suffix.lower() in AUDIO_EXTENSIONS and file.is_file())
    return [file for file in files if not file.name.startswith(".")]


def _decode(song: CheckedSong, files: Sequence[Path], rate: int) -> SumMismatch:
    """Decode all files in step; those that decode to their end are added to ``song.sounds``."""
    mismatch = SumMismatch(song.layout, rate)
    sounds, streams = {file: CheckedFile() for file in files}, {file: audio.blocks(file) for file in files}
    while streams:
        blocks: dict[str, np.ndarray] = {}
        for file, stream in list(streams.items()):
            try:
                blocks[file.name] = next(stream)
                sounds[file].update(blocks[file.name])
                continue
            except StopIteration:
                song.sounds[file.name] = sounds[file]
                header = audio.info(file)
                if header.sample_rate != rate:
                    message = f"is at {header.sample_rate} Hz but the model is at {rate} Hz: resample it"
                    song.add_finding(message, file.name, unusable=True)
                for note in header.notes:
                    song.add_finding(note, file.name)
            except InputError as error:
                song.add_finding(str(error).removeprefix(f"{display_path(file)} "), file.name, unusable=True)
            del streams[file]
        if blocks:
            mismatch.update(blocks)
    return mismatch


def _find_duplicates(songs: list[CheckedSong]) -> None:
    """Record songs that sound the same, and equal files in songs that do not.

    Of equal songs in several splits the one in the last split stays usable, so that no song is both trained on and
    scored.
    """
    order = list(SPLITS)  # train first
    by_identity: dict[tuple[bytes, ...], list[CheckedSong]] = defaultdict(list)
    for song in songs:
        if song.identity:
            by_identity[song.identity].append(song)
    for same in by_identity.values():
        kept = max(same, key=lambda song: order.index(song.split))
        for song in same:
            if song is not kept:
                message = f"is a duplicate: it sounds the same as {kept.name}"
                song.add_finding(message, unusable=song.split != kept.split)
    by_digest: dict[bytes, list[tuple[CheckedSong, str]]] = defaultdict(list)
    for song in songs:
        for name, sound in song.sounds.items():
            if not sound.silent:
                by_digest[sound.digest].append((song, name))
    for equal_files in by_digest.values():
        for song, name in equal_files:
            other = next((o for o in equal_files if o[0] is not song and o[0].identity != song.identity), None)
            if other is not None:
                song.add_finding(f"is a duplicate: it sounds the same as {other[0].name}/{other[1]}", name)


def write_song_list(file: Path, names: Sequence[str]) -> None:
    """Write ``names`` to ``file``, one per line.

    Raises :class:`InputError` for a name that :func:`read_song_list` would not return unchanged.
    """
    for name in names:
        if name.startswith("#") or name != name.strip() or len(name.splitlines()) != 1:
            raise InputError(f"{file} cannot hold the name {name!r}: rename that song's folder")
    write_atomically(file, "".join(f"{name}\n" for name in names).encode())


def read_song_list(file: Path) -> list[str]:
    """Read the names in ``file``, one per line; blank lines and lines that start with # are skipped.

    Raises :class:`InputError` for a file that cannot be read.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"cannot read {file}: {reason}; choose a list of songs with one name per line") from error
    return [name for line in lines if (name := line.strip()) and not name.startswith("#")]
