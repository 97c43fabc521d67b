"""One song, from file to files: verified, separated and written, each stem whole or not at all."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from twinsep import audio
from twinsep.audio import spectrogram, tags
from twinsep.audio.mp4 import stem_file
from twinsep.audio.writing import MP3_BITRATES, Writer, writer
from twinsep.config import CLIP_MODES, ClipMode
from twinsep.errors import InputError
from twinsep.separation.paths import ALL_STEMS, SPECTROGRAMS
from twinsep.separation.separator import Separator, complement
from twinsep.utils.files import atomic_path, display_path
from twinsep.utils.progress import ProgressCallback
from twinsep.utils.threads import prefetch, write_behind

_SPOOL_FRAMES = 1 << 16  # frames read back from the spool at once


@dataclass(frozen=True)
class Encoding:
    """Encoding of written stems; raises :class:`InputError` for an unknown mode or bit rate."""

    #: PCM_16, PCM_24 or FLOAT for WAV and FLAC; if None, FLOAT for a WAV of a floating-point song, else PCM_24.
    subtype: str | None = None
    #: Bit rate of an MP3 in kbit/s.
    bitrate: int = 320
    #: Samples beyond full scale, where the format has no room for them: "clamp" them, "rescale" all stems by one
    #: factor, or refuse the song ("none").
    clip_mode: ClipMode = "clamp"

    def __post_init__(self) -> None:
        if self.clip_mode not in CLIP_MODES:
            raise InputError(f"unknown --clip-mode {self.clip_mode!r}: choose from {', '.join(CLIP_MODES)}")
        if self.bitrate not in MP3_BITRATES:
            known = ", ".join(map(str, MP3_BITRATES))
            raise InputError(f"MP3 has no bit rate of {self.bitrate} kbit/s: choose from {known}")


@dataclass(frozen=True)
class Excerpt:
    """A part of a song: ``length`` seconds from ``start`` on, or the rest if None.

    Raises :class:`InputError` for a negative start and a length that is not positive.
    """

    start: float = 0.0
    length: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start < math.inf:
            raise InputError(f"--start {self.start:g} is no place in a song: choose seconds from 0 on")
        if self.length is not None and not 0 < self.length < math.inf:
            raise InputError(f"--length {self.length:g} is no length: choose seconds above 0")

    @property
    def name(self) -> str:
        """Text that tells the excerpt's files from those of the whole song; empty for the whole song."""
        if self.length is None:
            return f" (from {self.start:g} s)" if self.start else ""
        return f" ({self.start:g}-{self.start + self.length:g} s)"

    def frames(self, song: Path, info: audio.AudioInfo) -> tuple[int, int]:
        """First sample and the one after the last; raises :class:`InputError` for a song that ends before."""
        begin = round(self.start * info.sample_rate)
        if begin >= info.frames:
            seconds = info.frames / info.sample_rate
            raise InputError(f"{display_path(song)} lasts {seconds:.2f} s: choose a --start before its end")
        if self.length is None:
            return begin, info.frames
        return begin, min(info.frames, begin + max(1, round(self.length * info.sample_rate)))


@dataclass
class SeparationResult:
    """The files of a separated song by stem, its length in seconds, and notes for the user."""

    paths: dict[str, Path]
    seconds: float
    notes: list[str] = field(default_factory=list)


def separate_file(
    song: Path,
    paths: Mapping[str, Path],
    separator: Separator,
    encoding: Encoding,
    *,
    overwrite: bool = False,
    figure: Path | None = None,
    stem_mp4: tuple[Path, tuple[str, ...]] | None = None,
    max_channels: int = 2,
    excerpt: Excerpt | None = None,
    checked: audio.AudioInfo | None = None,
    reading: ProgressCallback | None = None,
    separating: ProgressCallback | None = None,
) -> SeparationResult:
    """Write the stems of ``song`` that ``paths`` names, such as {"vocals": …}, in the format of each extension.

    The song is decoded twice: once to its end, so that faults show before the work begins (``reading`` reports it),
    and once while it is separated (``separating``). ``checked`` is what :func:`twinsep.audio.verify` returned, if that
    has been called. Stems keep the song's length, or that of ``excerpt``, its sample rate, channels, tags and cover.
    ``figure`` is the path of a PNG of spectrograms, ``stem_mp4`` the path of a file of Stems and the stems in it.
    Raises :class:`InputError`, and writes nothing, for a song that cannot be read, is damaged or has more than
    ``max_channels`` channels, and for a path that cannot be written or, without ``overwrite``, exists.
    """
    info = checked or audio.verify(song, max_channels=max_channels, report=reading)
    begin, end = (excerpt or Excerpt()).frames(song, info)
    frames = end - begin
    result = SeparationResult(dict(paths), frames / info.sample_rate, [*info.notes])
    song_tags = tags.read(song)
    if song_tags.problem:
        result.notes.append(song_tags.problem)
    drawing = spectrogram.SeparationFigure(frames, info.sample_rate) if figure else None
    with contextlib.ExitStack() as stack:
        writers: dict[str, Writer] = {}
        for stem, path in paths.items():
            subtype = encoding.subtype or ("FLOAT" if info.is_float and path.suffix.lower() == ".wav" else None)
            stem_writer = writer(
                path,
                info.sample_rate,
                info.channels,
                subtype=subtype,
                bitrate=encoding.bitrate,
                frames=frames,
                overwrite=overwrite,
                finish=partial(_write_tags, song_tags, result.notes),
            )
            writers[stem] = stack.enter_context(stem_writer)
        if stem_mp4:
            path, names = stem_mp4
            finish = partial(_write_tags, song_tags, result.notes)
            streams = stem_file(
                path, info.sample_rate, info.channels, ("mixture", *names), overwrite=overwrite, finish=finish
            )
            writers |= stack.enter_context(streams)
            result.paths[ALL_STEMS] = path
        picture = stack.enter_context(atomic_path(figure, overwrite=overwrite)) if figure else None
        sink = stack.enter_context(_open_sink(song, writers, encoding.clip_mode))
        source = stack.enter_context(audio.open_audio(song, max_channels=max_channels))
        # Decoding and encoding run in threads of their own; the model runs in this one, which Ctrl-C reaches.
        cut = _cut(_check_unchanged(source, info), begin, end, info.frames)
        with prefetch(cut) as blocks, write_behind(sink.write) as write:
            for mixture, stems in separator.stream(blocks, frames, info.sample_rate, on_progress=separating):
                write({stem: complement(mixture, stems, stem) for stem in writers})
                if drawing:
                    drawing.push(mixture, *(complement(mixture, stems, stem) for stem in ("instrumental", "vocals")))
        sink.finish()
        if drawing and picture:
            picture.write_bytes(drawing.png(song.name))
    result.notes += sink.notes
    if figure:
        result.paths[SPECTROGRAMS] = figure
    return result


def _check_unchanged(source: audio.AudioSource, info: audio.AudioInfo) -> Iterator[np.ndarray]:
    """The blocks of ``source``; raises :class:`InputError` unless they match what the first pass found."""
    changed = InputError(f"{display_path(source.path)} has changed while it was read: separate it again")
    if (source.sample_rate, source.channels) != (info.sample_rate, info.channels):
        raise changed
    frames = 0
    for block in source.blocks():
        frames += block.shape[1]
        if frames > info.frames:
            raise changed
        yield block
    if frames < info.frames:
        raise changed


def _cut(blocks: Iterator[np.ndarray], begin: int, end: int, total: int) -> Iterator[np.ndarray]:
    """Samples [begin, end) of a stream of blocks (C, n), ``total`` samples in all; the rest need not be decoded."""
    place = 0
    for block in blocks:
        part = block[:, max(0, begin - place) : max(0, end - place)]
        place += block.shape[1]
        if part.shape[1]:
            yield part
        if total > end <= place:
            break


def _write_tags(song_tags: tags.Tags, notes: list[str], path: Path) -> None:
    problem = tags.write(song_tags, path)
    if problem and problem not in notes:
        notes.append(problem)


class _DirectSink:
    """Writes stems as they arrive; counts samples beyond full scale, or refuses the song."""

    def __init__(self, song: Path, writers: Mapping[str, Writer], clip_mode: ClipMode):
        self.song, self.writers, self.clip_mode = song, writers, clip_mode

    def write(self, pieces: Mapping[str, np.ndarray]) -> None:
        """Write one piece (C, S) of every stem; raises :class:`InputError` for samples that "none" refuses."""
        for stem, piece in pieces.items():
            target = self.writers[stem]
            if self.clip_mode == "none" and not target.is_float and piece.size and np.abs(piece).max() > 1:
                raise InputError(
                    f"{display_path(self.song)}: the {stem} exceed full scale, which --clip-mode none refuses: "
                    "use --float32, or --clip-mode clamp or rescale"
                )
            target.write(piece)

    def finish(self) -> None:
        """Do nothing: everything is written."""

    @property
    def notes(self) -> list[str]:
        """One sentence for each stem of which samples were clamped."""
        return [
            f"{target.clamped} samples of the {stem} beyond full scale were clamped; "
            "--float32 or --clip-mode rescale keep them"
            for stem, target in self.writers.items()
            if target.clamped
        ]


class _RescalingSink(_DirectSink):
    """Spools all stems to a temporary file until the peak of them all is known."""

    def __init__(self, song: Path, writers: Mapping[str, Writer], clip_mode: ClipMode, spool: BinaryIO):
        super().__init__(song, writers, clip_mode)
        self.spool, self.peak, self.channels = spool, 0.0, 0

    def write(self, pieces: Mapping[str, np.ndarray]) -> None:
        """Spool one piece (C, S) of every stem."""
        together = np.concatenate([pieces[stem] for stem in self.writers])  # (stems · c, n)
        self.channels = len(together)
        self.peak = max(self.peak, float(np.abs(together).max(initial=0)))
        self.spool.write(np.ascontiguousarray(together.T, np.float32).tobytes())

    def finish(self) -> None:
        """Write the spooled stems, divided by the largest peak if that exceeds full scale."""
        self.spool.seek(0)
        factor = np.float32(1 / max(1.0, self.peak))
        while data := self.spool.read(_SPOOL_FRAMES * self.channels * 4):
            together = np.frombuffer(data, np.float32).reshape(-1, self.channels).T * factor  # (stems · c, n)
            for target, piece in zip(self.writers.values(), np.split(together, len(self.writers)), strict=True):
                target.write(piece)

    @property
    def notes(self) -> list[str]:
        """One sentence if the stems were attenuated."""
        if self.peak <= 1:
            return []
        return [f"all stems were attenuated by {20 * np.log10(self.peak):.2f} dB so that none exceeds full scale"]


@contextlib.contextmanager
def _open_sink(song: Path, writers: Mapping[str, Writer], clip_mode: ClipMode) -> Iterator[_DirectSink]:
    if clip_mode != "rescale" or all(target.is_float for target in writers.values()):
        yield _DirectSink(song, writers, clip_mode)
        return
    with tempfile.TemporaryFile() as spool:
        yield _RescalingSink(song, writers, clip_mode, spool)
