"""Reading, writing and resampling sound files, always by a library, never silently.

A waveform is float32 (C, S): channels 1 or 2, samples, full scale ±1. Everything wrong with a file is
an :class:`twinsep.errors.InputError` of one sentence that names the file and says what to do.

libsndfile (soundfile) reads WAV, RF64, W64, AIFF, AU, CAF, FLAC, Ogg Vorbis and Opus, and writes some of them;
PyAV reads MP3 and all else, such as M4A or the sound of a film, of which the first audio stream.

Lengths: what libsndfile reads comes back as long as it went in, and so does what tells the encoder's delay and
padding: an MP3 with the header that those written here have, Opus and MP3 in Matroska and WebM, AAC in MP4. An
MP4's length may be rounded to a millisecond where its encoder padded the last packet. The rest (AAC as ADTS or in
Matroska, Vorbis in WebM, AC-3) is as long as its frames: with the padding, and the delay where nothing tells that.
WMA is what FFmpeg makes of it.

A file cut short is refused where it shows: there are fewer samples, seconds or bytes than the header states, or
half a packet, or no last page. It cannot show in raw frames (MP3 without a header that counts them, ADTS, AC-3),
in MPEG-TS, WMA and fragmented MP4 cut between two packets, in WebM recorded live, which states no length, and in
what of FLV or a film is a fifth of a second at the end.
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
from twinsep.audio.source import BLOCK, AudioSource, command, damaged, ends_as_ogg, no_sound, regular_file
from twinsep.audio.writing import FilePath
from twinsep.errors import InputError
from twinsep.utils.files import display_path
from twinsep.utils.progress import ProgressCallback

#: Channels of a file that is taken apart in pairs, at most.
MOST_CHANNELS = 64
_RATES = (8_000, 192_000)  # Hz
_STREAMED = 0xFFFF_FF00  # a size from here on is a pipe's "unknown", not a promise
_LOG_BYTES = 2_000  # libsndfile ends its log soon after
_SIZES = r"^ *(?:{}) *: (?P<promised>\d+) \(should be (?P<there>\d+)\)"
_COUNT = r"Calculated frame count (?P<there>\d+) does not match value from 'ds64' chunk of (?P<promised>\d+)"
_OGG_DAMAGE = {"reports a hole": "pages are missing", "Junk after the last page": "something follows its last page"}


@dataclass(frozen=True)
class AudioInfo:
    """Samples per channel, sample rate in Hz, channels, and whether the samples are floating point."""

    frames: int
    sample_rate: int
    channels: int
    is_float: bool


# ---------------------------------------------------------------------------- reading


@contextlib.contextmanager
def open_audio(path: FilePath, *, most_channels: int = 2) -> Iterator[AudioSource]:
    """Within a ``with``, the sound of ``path`` to be read block by block, in bounded memory whatever its length.

    Raises :class:`InputError` as :func:`read` does, as it gets there, for more than ``most_channels`` channels,
    and for a sample rate below 8 or above 192 kHz.
    """
    with _opened(path, most_channels=most_channels) as source:
        yield _of_a_handled_rate(source)


def verify(path: FilePath, *, most_channels: int = 2, report: ProgressCallback | None = None) -> AudioInfo:
    """Decode all of ``path``, in bounded memory, so that whatever is wrong with it is known before long work.

    ``report`` is called with (samples done, samples expected in all). Raises :class:`InputError` as
    :func:`opened` and its blocks do.
    """
    advice = ", or separate the channels in pairs with --pairs" if most_channels == 2 else ""
    with _opened(path, most_channels=most_channels, advice=advice) as source:
        _of_a_handled_rate(source)
        frames = 0
        for block in source.blocks():
            frames += block.shape[1]
            if report:
                report(frames, max(frames, source.expected))
    return AudioInfo(frames, source.sample_rate, source.channels, source.is_float)


def info(path: FilePath) -> AudioInfo:
    """Length, rate and channels, without decoding where the header tells the length (not so for MP3).

    Raises :class:`InputError` as :func:`read` does, as far as that shows.
    """
    with _opened(path) as source:
        frames = source.frames or sum(block.shape[1] for block in source.blocks())
        return AudioInfo(frames, source.sample_rate, source.channels, source.is_float)


def read(path: FilePath, *, stream: int = 0) -> tuple[Float32[np.ndarray, "c s"], int]:
    """The whole file as (waveform (C, S), sample rate in Hz).

    ``stream`` picks one of several audio streams (a ``.stem.mp4`` has five). Raises
    :class:`InputError` if the file is missing, a folder, empty, of no samples, damaged, cut short,
    of more than two channels, or holds NaN or infinity.
    """
    with _opened(path, stream=stream) as source:
        return source.read(), source.sample_rate


def read_segment(path: FilePath, start: int, frames: int) -> Float32[np.ndarray, "c s"]:
    """Samples [start, start + frames) as (C, frames): quick random access for training.

    For WAV, FLAC and OGG. Raises :class:`InputError` as :func:`read` does, for other formats, or if the
    file ends earlier.
    """
    path = regular_file(path)
    with _open_for_access(path) as file:
        if start < 0 or frames < 0 or start + frames > file.frames:
            raise InputError(
                f"{display_path(path)} has {file.frames} samples, so {frames} from {start} on cannot be read: "
                "copy it again if it should be longer"
            )
        try:
            file.seek(start)
        except soundfile.LibsndfileError as error:
            raise damaged(path, "it cannot be sought in") from error
        return _source(file, path, frames).read()


def blocks(path: FilePath) -> Iterator[Float32[np.ndarray, "c s"]]:
    """The whole file piece by piece, each as (C, S), of the same lengths for all files that are equally long.

    Raises :class:`InputError` as :func:`read` does, but as it gets there, and as :func:`read_segment` does.
    """
    _open_for_access(regular_file(path)).close()
    with _opened(path) as source:
        yield from source.blocks()


@contextlib.contextmanager
def _opened(path: FilePath, *, stream: int = 0, most_channels: int = 2, advice: str = "") -> Iterator[AudioSource]:
    path = regular_file(path)
    file = _open(path)
    if file is None or stream:
        with ffmpeg.open_with_ffmpeg(path, stream) as source:
            yield _of_few_channels(source, most_channels, advice)
    else:
        with file:
            _check_header(file, path)
            yield _of_few_channels(_source(file, path, file.frames), most_channels, advice)


def _of_few_channels(source: AudioSource, most: int, advice: str) -> AudioSource:
    if source.channels > most:
        handled = "only mono and stereo are handled" if most == 2 else f"at most {most} are handled"
        raise InputError(
            f"{display_path(source.path)} has {source.channels} channels, but {handled}: "
            f"mix it down first, for example with {command(source.path, '-ac 2 stereo.wav')}{advice}"
        )
    return source


def _of_a_handled_rate(source: AudioSource) -> AudioSource:
    if not _RATES[0] <= source.sample_rate <= _RATES[1]:
        raise InputError(
            f"{display_path(source.path)} has a sample rate of {source.sample_rate} Hz, but 8 to 192 kHz are handled: "
            f"resample it first, for example with {command(source.path, '-ar 44100 resampled.wav')}"
        )
    return source


def _open(path: Path) -> soundfile.SoundFile | None:
    """The opened file, or none if it is MP3 or libsndfile does not know its format."""
    # libsndfile silently drops the end of an MP3 without a length in its header, and prints what is wrong with one.
    if ffmpeg.mpeg_start(path):
        return None
    try:
        # By number: the name may not be UTF-8, and its extension must not say what the file is.
        file = soundfile.SoundFile(os.open(path, os.O_RDONLY))
    except soundfile.LibsndfileError:
        return None
    if file.format == "MP3":  # behind zeros, say
        file.close()
        return None
    return file


def _open_for_access(path: Path) -> soundfile.SoundFile:
    file = _open(path)
    if file is None:
        raise InputError(
            f"{display_path(path)} has no random access, being neither WAV nor FLAC: convert it to one of them"
        )
    return file


def _check_header(file: soundfile.SoundFile, path: Path) -> None:
    # libsndfile shortens a cut-off file without an error; only its log tells.
    log = file.extra_info
    sizes = "data|SSND|Data Size|riff"
    if len(log.encode()) > _LOG_BYTES:  # of the tags it has copied there, so that the line for the data may be missing
        sizes += "|RIFF|FORM|Riff size"
    size = re.search(_SIZES.format(sizes), log, re.MULTILINE) or re.search(_COUNT, log)
    if size and int(size["there"]) < int(size["promised"]) < _STREAMED:
        unit = "samples" if size.re.pattern == _COUNT else "bytes of sound"
        raise damaged(path, f"{size['there']} of {size['promised']} {unit} are there")
    if file.format == "OGG" and not ends_as_ogg(path):
        raise damaged(path, "its last page is missing")
    for sign, detail in _OGG_DAMAGE.items():
        if sign in log:
            raise damaged(path, detail)
    if file.frames <= 0:
        raise no_sound(path)


def _source(file: soundfile.SoundFile, path: Path, frames: int) -> AudioSource:
    """The next ``frames`` samples of an open file."""
    is_float = file.subtype in ("FLOAT", "DOUBLE")
    return AudioSource(path, file.samplerate, file.channels, is_float, frames, frames, _pieces(file, frames, path))


def _pieces(file: soundfile.SoundFile, frames: int, path: Path) -> Iterator[np.ndarray]:
    """(C, S) float32 each: in blocks, because a damaged header may promise terabytes."""
    done = 0
    while done < frames:
        try:
            block = file.read(min(frames - done, BLOCK), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise damaged(path, f"decoding fails after sample {done} of {frames}") from error
        if not len(block):
            return
        done += len(block)
        yield block.T
