"""One song from file to files: checked, separated and written, each stem whole or not at all."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from twinsep import audio
from twinsep.audio import spectrogram, tags
from twinsep.audio.writing import MP3_BITRATES, Writer, writer
from twinsep.errors import InputError
from twinsep.separation.paths import SPECTROGRAMS
from twinsep.separation.separator import Separator, complement
from twinsep.utils.files import atomic_path, display_path
from twinsep.utils.progress import ProgressCallback
from twinsep.utils.threads import prefetch, write_behind

CLIP_MODES = ("clamp", "rescale", "none")
_SPOOLED = 1 << 16  # frames


@dataclass(frozen=True)
class Encoding:
    """How stems are written: ``subtype`` PCM_16, PCM_24 or FLOAT for WAV and FLAC, by default float for a WAV of a song
    in floating point and 24 bit otherwise; ``bitrate`` in kbit/s of an MP3. ``clip`` says what becomes of samples
    beyond full scale where the format has no room for them: set to full scale ("clamp"), all stems made quieter by one
    factor ("rescale"), or the song refused ("none")."""

    subtype: str | None = None
    bitrate: int = 320
    clip: str = "clamp"

    def __post_init__(self) -> None:
        if self.clip not in CLIP_MODES:
            raise InputError(f"unknown --clip-mode {self.clip!r}; known: {', '.join(CLIP_MODES)}")
        if self.bitrate not in MP3_BITRATES:
            known = ", ".join(map(str, MP3_BITRATES))
            raise InputError(f"an MP3 of {self.bitrate} kbit/s is not possible; give one of {known}")


@dataclass
class SeparationResult:
    """What became of a song: its files by stem, its length, and what a person should know about them."""

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
    most_channels: int = 2,
    reading: ProgressCallback | None = None,
    report: ProgressCallback | None = None,
) -> SeparationResult:
    """Write the stems of ``song`` that ``paths`` names, e.g. {"instrumental": …, "vocals": …}, as each extension says.

    The song is read twice: first to the end, so that whatever is wrong with it is known before the work begins
    (``reading`` is told of that), then as the separation goes on (``report``). Stems have the song's length, rate,
    channels, tags and cover. ``figure`` is where a picture of it goes. Raises :class:`InputError`, no file having
    appeared, for a song that cannot be read, is damaged or has more than ``most_channels`` channels, and for a place
    that cannot be written to or, without ``overwrite``, is taken.
    """
    found = audio.verify(song, most_channels=most_channels, report=reading)
    outcome = SeparationResult(dict(paths), found.frames / found.sample_rate)
    kept = tags.read(song)
    if kept.problem:
        outcome.notes.append(kept.problem)
    panels = spectrogram.SeparationFigure(found.frames, found.sample_rate) if figure else None
    with contextlib.ExitStack() as stack:
        writers: dict[str, Writer] = {}
        for stem, path in paths.items():
            subtype = encoding.subtype or ("FLOAT" if found.is_float and path.suffix.lower() == ".wav" else None)
            writers[stem] = stack.enter_context(
                writer(
                    path,
                    found.sample_rate,
                    found.channels,
                    subtype=subtype,
                    bitrate=encoding.bitrate,
                    frames=found.frames,
                    overwrite=overwrite,
                    finish=partial(_tag, kept, path.suffix.lower(), outcome.notes),
                )
            )
        picture = stack.enter_context(atomic_path(figure, overwrite=overwrite)) if figure else None
        sink = stack.enter_context(_sink(song, writers, encoding.clip))
        source = stack.enter_context(audio.open_audio(song, most_channels=most_channels))
        # Decoders and encoders work while the model does; the model in this thread, which Ctrl-C reaches.
        with prefetch(_as_found(source, found)) as blocks, write_behind(sink.write) as write:
            for mixture, stems in separator.stream(blocks, found.frames, found.sample_rate, progress=report):
                write({stem: complement(mixture, stems, stem) for stem in writers})
                if panels:
                    panels.push(mixture, *(complement(mixture, stems, stem) for stem in ("instrumental", "vocals")))
        sink.finish()
        if panels and picture:
            picture.write_bytes(panels.png(song.name))
    outcome.notes += sink.notes
    if figure:
        outcome.paths[SPECTROGRAMS] = figure
    return outcome


def _as_found(source: audio.AudioSource, found: audio.AudioInfo) -> Iterator[np.ndarray]:
    """The song's blocks; raises :class:`InputError` unless they are what the first reading found."""
    changed = InputError(f"{display_path(source.path)} has changed while it was read; separate it again")
    if (source.sample_rate, source.channels) != (found.sample_rate, found.channels):
        raise changed
    frames = 0
    for block in source.blocks():
        frames += block.shape[1]
        if frames > found.frames:
            raise changed
        yield block
    if frames < found.frames:
        raise changed


def _tag(kept: tags.Tags, extension: str, notes: list[str], path: Path) -> None:
    with path.open("rb+", buffering=0) as file:
        problem = tags.write(kept, file, extension)
    if problem and problem not in notes:
        notes.append(problem)


class _Direct:
    """Hands pieces on as they come; counts, or refuses, what lies beyond full scale."""

    def __init__(self, song: Path, writers: Mapping[str, Writer], clip: str):
        self.song, self.writers, self.clip = song, writers, clip

    def write(self, pieces: Mapping[str, np.ndarray]) -> None:
        for stem, piece in pieces.items():
            target = self.writers[stem]
            if self.clip == "none" and not target.is_float and piece.size and np.abs(piece).max() > 1:
                raise InputError(
                    f"{display_path(self.song)}: the {stem} goes beyond full scale, and --clip-mode none lets "
                    "nothing be clipped; write --float32, or choose --clip-mode clamp or rescale"
                )
            target.write(piece)

    def finish(self) -> None:
        """Nothing is left to do."""

    @property
    def notes(self) -> list[str]:
        advice = "--float32 or --clip-mode rescale keep them"
        return [
            f"{target.clamped} samples of the {stem} beyond full scale were set to it; {advice}"
            for stem, target in self.writers.items()
            if target.clamped
        ]


class _Spooled(_Direct):
    """Keeps all stems in a temporary file until the loudest sample of them is known."""

    def __init__(self, song: Path, writers: Mapping[str, Writer], clip: str, spool):
        super().__init__(song, writers, clip)
        self.spool, self.peak, self.channels = spool, 0.0, 0

    def write(self, pieces: Mapping[str, np.ndarray]) -> None:
        together = np.concatenate([pieces[stem] for stem in self.writers])
        self.channels = len(together)
        self.peak = max(self.peak, float(np.abs(together).max(initial=0)))
        self.spool.write(np.ascontiguousarray(together.T, np.float32).tobytes())

    def finish(self) -> None:
        self.spool.seek(0)
        factor = np.float32(1 / max(1.0, self.peak))
        while data := self.spool.read(_SPOOLED * self.channels * 4):
            together = np.frombuffer(data, np.float32).reshape(-1, self.channels).T * factor
            for target, piece in zip(self.writers.values(), np.split(together, len(self.writers)), strict=True):
                target.write(piece)

    @property
    def notes(self) -> list[str]:
        if self.peak <= 1:
            return []
        return [f"all stems were made {20 * np.log10(self.peak):.2f} dB quieter, so that none goes beyond full scale"]


@contextlib.contextmanager
def _sink(song: Path, writers: Mapping[str, Writer], clip: str) -> Iterator[_Direct]:
    if clip != "rescale" or all(target.is_float for target in writers.values()):
        yield _Direct(song, writers, clip)
        return
    with tempfile.TemporaryFile() as spool:
        yield _Spooled(song, writers, clip, spool)
