"""Reading sound files: whole, in blocks or in segments, with libsndfile or PyAV.

libsndfile (soundfile) reads WAV, RF64, W64, AIFF, AU, CAF, FLAC, Ogg Vorbis and Opus. PyAV reads MP3 and everything
else, such as M4A or the first audio stream of a film. Errors are :class:`twinsep.errors.InputError`, one sentence that
names the file and the remedy.

Lengths: files that libsndfile reads keep their length; so do files that state the encoder's delay and padding, such as
MP3 with LAME's header, Opus and MP3 in Matroska. AAC in MP4 may end with the encoder's padding of one or two frames
(silence) if its last packet does not state it. AAC as ADTS or in Matroska, Vorbis in WebM and AC-3 include padding, and
the delay too if the file does not state it. WMA is what FFmpeg makes of it.

The sound of a film starts with its picture: silence fills what is before it, and gaps of more than 0.1 s in the
timestamps of MP4, Matroska, WebM, FLV and MPEG-TS.

A header that states no length, or the wrong one of a recorder that crashed, is corrected as
:mod:`twinsep.audio.headers` says, and the sound is read to the end of the file.

An Ogg file may count a few samples more than its packets hold: silence takes their place.

A file cut short is refused if that shows: fewer samples or seconds than the header states, half a packet or page.
It does not show in raw frames (MP3 without LAME's header, ADTS, AC-3), nor in MPEG-TS, WMA and fragmented MP4 cut
between two packets, nor in Matroska and WebM recorded live, nor if less than 0.2 s is missing from FLV or Matroska. For
Ogg cut between two pages a note says that its last page is not marked as such.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float32

from twinsep.audio import ffmpeg
from twinsep.audio.headers import Header, PatchedFile, examine
from twinsep.audio.source import (
    BLOCK,
    AudioSource,
    check_file,
    check_last_ogg_page,
    damaged_error,
    ffmpeg_command,
    no_sound_error,
)
from twinsep.audio.writing import FilePath
from twinsep.errors import InputError
from twinsep.utils.files import display_path
from twinsep.utils.progress import ProgressCallback

#: Most channels of a file that is separated in pairs of channels.
MAX_CHANNELS = 64
_RATES = (8_000, 192_000)  # Hz
_UNKNOWN_SIZE = 0xFFFF_FF00  # sizes from here on are a pipe's "unknown"
_LOG_BYTES = 2_000  # libsndfile ends its log soon after
_SIZES = r"^ *(?:{}) *: (?P<stated>\d+) \(should be (?P<found>\d+)\)"
_COUNT = r"Calculated frame count (?P<found>\d+) does not match value from 'ds64' chunk of (?P<stated>\d+)"
_OGG_TOLERANCE = 8192  # longest block of Vorbis; there are songs whose last page counts 5,806 samples too many
_OGG_DAMAGE = {"reports a hole": "pages are missing", "Junk after the last page": "something follows its last page"}


@dataclass(frozen=True)
class AudioInfo:
    """Length in samples per channel, sample rate in Hz, channels, and True if the samples are floating point.

    ``notes`` are parts of sentences for the user, such as that the header was never finished.
    """

    frames: int
    sample_rate: int
    channels: int
    is_float: bool
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def open_audio(path: FilePath, *, max_channels: int = 2) -> Iterator[AudioSource]:
    """Open ``path`` for reading block by block, in memory that does not grow with its length.

    Raises :class:`InputError` as :func:`read` does, as soon as it shows; also for more than ``max_channels``
    channels and for a sample rate outside 8 to 192 kHz.
    """
    with _open_source(path, max_channels=max_channels) as source:
        yield _check_rate(source)


def verify(path: FilePath, *, max_channels: int = 2, report: ProgressCallback | None = None) -> AudioInfo:
    """Decode all of ``path`` to find any damage before long work starts; memory does not grow with its length.

    ``report`` is called with (samples done, samples expected in total). Raises :class:`InputError` as
    :func:`open_audio` and the source's blocks do.
    """
    advice = ", or separate the channels in pairs with --pairs" if max_channels == 2 else ""
    with _open_source(path, max_channels=max_channels, advice=advice) as source:
        _check_rate(source)
        frames = 0
        for block in source.blocks():
            frames += block.shape[1]
            if report:
                report(frames, max(frames, source.expected))
    return AudioInfo(frames, source.sample_rate, source.channels, source.is_float, tuple(source.notes))


def info(path: FilePath) -> AudioInfo:
    """Length, rate and channels of ``path``; files that only PyAV reads are decoded to find their length.

    Raises :class:`InputError` as :func:`read` does, as far as errors show.
    """
    with _open_source(path) as source:
        frames = source.frames or sum(block.shape[1] for block in source.blocks())
        return AudioInfo(frames, source.sample_rate, source.channels, source.is_float, tuple(source.notes))


def read(path: FilePath, *, stream: int = 0) -> tuple[Float32[np.ndarray, "c s"], int]:
    """Read a whole file: waveform (C, S) and sample rate in Hz.

    ``stream`` picks one of several audio streams (a ``.stem.mp4`` has five). Raises :class:`InputError` if the file is
    missing, a folder, empty, without samples, damaged or cut short, has more than two channels, or holds NaN or
    infinity.
    """
    with _open_source(path, stream=stream) as source:
        return source.read(), source.sample_rate


def read_segment(path: FilePath, start: int, frames: int) -> Float32[np.ndarray, "c s"]:
    """Read samples [start, start + frames) as (C, frames): fast random access for training.

    For the formats of libsndfile (WAV, FLAC). Raises :class:`InputError` as :func:`read` does, for other formats, and
    if the file is shorter.
    """
    path = check_file(path)
    with _open_for_access(path) as file:
        if start < 0 or frames < 0 or start + frames > file.frames:
            raise InputError(
                f"{display_path(path)} has {file.frames} samples, so {frames} from {start} on cannot be read: "
                "copy it again if it should be longer"
            )
        try:
            file.seek(start)
        except soundfile.LibsndfileError as error:
            raise damaged_error(path, "seeking fails") from error
        return _source(file, path, frames).read()


def blocks(path: FilePath) -> Iterator[Float32[np.ndarray, "c s"]]:
    """Read a file in blocks (C, S) whose lengths depend on the length of the file alone.

    Raises :class:`InputError` as :func:`read_segment` does, as soon as it shows.
    """
    _open_for_access(check_file(path)).close()
    with _open_source(path) as source:
        yield from source.blocks()


@contextlib.contextmanager
def _open_source(path: FilePath, *, stream: int = 0, max_channels: int = 2, advice: str = "") -> Iterator[AudioSource]:
    path = check_file(path)
    file = _open(path)
    if file is None or stream:
        with ffmpeg.open_with_ffmpeg(path, stream) as source:
            yield _check_channels(source, max_channels, advice)
    else:
        with file:
            _check_header(file, path)
            yield _check_channels(_source(file, path, file.frames), max_channels, advice)


def _check_channels(source: AudioSource, most: int, advice: str) -> AudioSource:
    if source.channels > most:
        supported = "only mono and stereo are supported" if most == 2 else f"at most {most} are supported"
        raise InputError(
            f"{display_path(source.path)} has {source.channels} channels, but {supported}: "
            f"mix it down first, for example with {ffmpeg_command(source.path, '-ac 2 stereo.wav')}{advice}"
        )
    return source


def _check_rate(source: AudioSource) -> AudioSource:
    if not _RATES[0] <= source.sample_rate <= _RATES[1]:
        raise InputError(
            f"{display_path(source.path)} has a sample rate of {source.sample_rate} Hz, but 8 to 192 kHz are supported"
            f": resample it first, for example with {ffmpeg_command(source.path, '-ar 44100 resampled.wav')}"
        )
    return source


class _SoundFile(soundfile.SoundFile):
    """A file open in libsndfile, with its corrected header."""

    def __init__(self, path: Path, header: Header):
        #: Parts of sentences for the user.
        self.notes = [header.note] if header.note else []
        self._view = PatchedFile(path, header.patches) if header.patches else None
        try:
            # By descriptor: the name may not be UTF-8, and its extension must not decide the format.
            super().__init__(self._view or os.open(path, os.O_RDONLY))
        except soundfile.LibsndfileError:
            self._close_view()
            raise

    def close(self) -> None:
        """Close the file."""
        super().close()
        self._close_view()

    def _close_view(self) -> None:
        if self._view:
            self._view.close()


def _open(path: Path) -> _SoundFile | None:
    """Open a file with libsndfile; None if it is MP3 or libsndfile does not know its format."""
    # libsndfile drops the end of an MP3 without a length in its header and prints its complaints about damaged ones.
    with path.open("rb") as opened:
        has_mpeg_sync = int.from_bytes(opened.read(2)) >= 0xFFE0
    if has_mpeg_sync or path.suffix.lower() == ".mp3":
        return None
    try:
        file = _SoundFile(path, examine(path))
    except soundfile.LibsndfileError:
        return None
    if file.format == "MP3":
        file.close()
        return None
    return file


def _open_for_access(path: Path) -> _SoundFile:
    file = _open(path)
    if file is None:
        raise InputError(
            f"{display_path(path)} has no random access, being neither WAV nor FLAC: convert it to one of them"
        )
    return file


def _check_header(file: _SoundFile, path: Path) -> None:
    # libsndfile shortens a file that was cut off without an error; only its log says so.
    log = file.extra_info
    sizes = "data|SSND|Data Size|riff"
    if len(log.encode()) > _LOG_BYTES:  # filled with tags, so that the line for the data may be missing
        sizes += "|RIFF|FORM|Riff size"
    size = re.search(_SIZES.format(sizes), log, re.MULTILINE) or re.search(_COUNT, log)
    if size and int(size["found"]) < int(size["stated"]) < _UNKNOWN_SIZE:
        unit = "samples" if size.re.pattern == _COUNT else "bytes of sound"
        raise damaged_error(path, f"{size['found']} of {size['stated']} {unit} are there")
    if file.format == "OGG":
        check_last_ogg_page(path, file.notes)
    for sign, detail in _OGG_DAMAGE.items():
        if sign in log:
            raise damaged_error(path, detail)
    if file.frames <= 0:
        raise no_sound_error(path)


def _source(file: _SoundFile, path: Path, frames: int) -> AudioSource:
    """The next ``frames`` samples of an open file."""
    is_float = file.subtype in ("FLOAT", "DOUBLE")
    return AudioSource(
        path, file.samplerate, file.channels, is_float, frames, frames, _pieces(file, frames, path), file.notes
    )


def _pieces(file: _SoundFile, frames: int, path: Path) -> Iterator[np.ndarray]:
    """Float32 arrays (C, S) in blocks, because a damaged header may state terabytes."""
    start, done = file.tell(), 0
    while done < frames:
        try:
            block = file.read(min(frames - done, BLOCK), dtype="float32", always_2d=True)  # (s, c)
        except soundfile.LibsndfileError as error:
            raise damaged_error(path, f"decoding fails after sample {done} of {frames}") from error
        if not len(block):
            if file.format == "OGG" and start + done >= file.frames - _OGG_TOLERANCE:
                missing = frames - done
                file.notes.append(f"its packets end {missing} samples before its last page says, which are silent here")
                yield np.zeros((file.channels, missing), np.float32)
            return
        done += len(block)
        yield block.T
