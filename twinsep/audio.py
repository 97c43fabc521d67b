"""Reading, writing and resampling sound files, always by a library, never silently.

A waveform is float32 (C, S): channels 1 or 2, samples, full scale ±1. Everything wrong with a file is
an :class:`twinsep.errors.InputError` of one sentence that names the file and says what to do.

libsndfile (soundfile) reads and writes WAV, FLAC and OGG and writes MP3; PyAV reads MP3 (libsndfile
silently drops the end of one without a length in its header) and all else, such as M4A. Lengths: WAV,
FLAC and OGG come back as long as they went in. So does an MP3 whose header tells the encoder's delay
and padding, as those written here do; another is as long as its frames, padding included. An M4A is
cut to the length its container states, which some encoders round to a millisecond.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Float32

from twinsep.audio_writing import FORMATS, FilePath, Writer, write, writer
from twinsep.errors import InputError

__all__ = [
    "FORMATS",
    "AudioInfo",
    "FilePath",
    "Writer",
    "blocks",
    "info",
    "read",
    "read_segment",
    "resample",
    "write",
    "writer",
]

_BLOCK = 1 << 20  # frames decoded at once
_STREAMED = 0xFFFF_FF00  # a data size from here on is a pipe's "unknown", not a promise
_OGG_DAMAGE = {"lacks an end-of-stream bit": "its last page is missing", "reports a hole": "pages are missing"}
_MP3_SLACK = 2304  # two frames: by so much may a length estimated from the bit rate be off


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header says; ``frames`` is samples per channel."""

    frames: int
    sample_rate: int
    channels: int


# ---------------------------------------------------------------------------- reading


def info(path: FilePath) -> AudioInfo:
    """Length, rate and channels, without decoding where the header tells the length (not so for MP3).

    Raises :class:`InputError` as :func:`read` does, as far as that shows.
    """
    path = _regular_file(path)
    file = _open(path)
    if file is None or file.format == "MP3":
        waveform, rate = read(path)
        return AudioInfo(waveform.shape[1], rate, len(waveform))
    with file:
        return _checked_header(file, path)


def read(path: FilePath, *, stream: int = 0) -> tuple[Float32[np.ndarray, "c s"], int]:
    """The whole file as (waveform (C, S), sample rate in Hz).

    ``stream`` picks one of several audio streams (a ``.stem.mp4`` has five). Raises
    :class:`InputError` if the file is missing, a folder, empty, of no samples, damaged, cut short,
    of more than two channels, or holds NaN or infinity.
    """
    path = _regular_file(path)
    file = _open(path)
    if file is None:
        waveform, rate = _read_by_av(path, stream, 0)
    else:
        with file:
            header = _checked_header(file, path)
            if stream or file.format == "MP3":
                waveform, rate = _read_by_av(path, stream, header.frames)
            else:
                waveform, rate = _decode(file, header.frames, path), header.sample_rate
    return _finite(waveform, path), rate


def read_segment(path: FilePath, start: int, frames: int) -> Float32[np.ndarray, "c s"]:
    """Samples [start, start + frames) as (C, frames): quick random access for training.

    For WAV, FLAC and OGG. Raises :class:`InputError` as :func:`read` does, for other formats, or if the
    file ends earlier.
    """
    path = _regular_file(path)
    with _open_for_access(path) as file:
        if start < 0 or frames < 0 or start + frames > file.frames:
            raise InputError(
                f"{path} has {file.frames} samples, so {frames} from {start} on cannot be read: "
                "copy it again if it should be longer"
            )
        try:
            file.seek(start)
        except soundfile.LibsndfileError as error:
            raise _damaged(path, "it cannot be sought in") from error
        return _finite(_decode(file, frames, path), path)


def blocks(path: FilePath) -> Iterator[Float32[np.ndarray, "c s"]]:
    """The whole file piece by piece, each as (C, S), of the same lengths for all files that are equally long.

    Raises :class:`InputError` as :func:`read` does, but as it gets there, and as :func:`read_segment` does.
    """
    path = _regular_file(path)
    with _open_for_access(path) as file:
        for block in _blocks(file, _checked_header(file, path).frames, path):
            yield _finite(np.ascontiguousarray(block.T), path)


def _regular_file(path: FilePath) -> Path:
    path = Path(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path} does not exist: check the path") from error
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}): check the path and its permissions") from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path} is a folder: name an audio file in it")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a regular file: save the sound to a file and name that")
    if status.st_size == 0:
        raise InputError(f"{path} is empty (0 bytes): copy or export it again")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} may not be read: check its permissions")
    return path


def _open(path: Path) -> soundfile.SoundFile | None:
    """The opened file, or none if libsndfile does not know its format."""
    try:
        return soundfile.SoundFile(path)
    except (soundfile.LibsndfileError, TypeError):  # TypeError: it takes .raw for headerless samples
        return None


def _open_for_access(path: Path) -> soundfile.SoundFile:
    file = _open(path)
    if file is None or file.format == "MP3":
        raise InputError(f"{path} has no random access, being neither WAV nor FLAC: convert it to one of them")
    return file


def _checked_header(file: soundfile.SoundFile, path: Path) -> AudioInfo:
    # libsndfile shortens a cut-off file without an error; only its log tells.
    size = re.search(r"^data\s*: (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if size and int(size[2]) < int(size[1]) < _STREAMED:
        raise _damaged(path, f"{size[2]} of {size[1]} bytes of sound are there")
    for sign, detail in _OGG_DAMAGE.items():
        if sign in file.extra_info:
            raise _damaged(path, detail)
    return _checked(AudioInfo(file.frames, file.samplerate, file.channels), path)


def _checked(header: AudioInfo, path: Path) -> AudioInfo:
    if header.frames <= 0:
        raise InputError(f"{path} holds no sound (0 samples): export it again")
    if header.channels > 2:
        raise InputError(
            f"{path} has {header.channels} channels, but only mono and stereo are handled: "
            f"mix it down first, for example with `ffmpeg -i {path.name} -ac 2 stereo.wav`"
        )
    return header


def _decode(file: soundfile.SoundFile, frames: int, path: Path) -> np.ndarray:
    """The next ``frames`` samples, (C, frames) float32."""
    parts = [np.empty((file.channels, 0), np.float32), *(block.T for block in _blocks(file, frames, path))]
    return np.ascontiguousarray(np.concatenate(parts, axis=1))


def _blocks(file: soundfile.SoundFile, frames: int, path: Path) -> Iterator[np.ndarray]:
    """The next ``frames`` samples, each (S, C) float32: in blocks, because a damaged header may promise terabytes."""
    done = 0
    while done < frames:
        wanted = min(frames - done, _BLOCK)
        try:
            block = file.read(wanted, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise _damaged(path, f"decoding fails after sample {done} of {frames}") from error
        done += len(block)
        if len(block) < wanted:
            raise _damaged(path, f"decoding stops at sample {done} of {frames}")
        yield block


def _finite(waveform: np.ndarray, path: Path) -> np.ndarray:
    if not np.isfinite(waveform).all():
        raise InputError(f"{path} holds NaN or infinite samples: export it again, if possible as 24-bit integers")
    return waveform


def _damaged(path: Path, detail: str) -> InputError:
    return InputError(
        f"{path} is damaged or cut short ({detail}): get a whole copy, or save what is left of it "
        f"with `ffmpeg -i {path.name} rest.wav`"
    )


def _read_by_av(path: Path, index: int, promised: int) -> tuple[np.ndarray, int]:
    """(waveform, rate) of audio stream ``index``; ``promised`` samples if libsndfile says so, else 0."""
    import av  # here because most runs never need it

    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise InputError(f"{path} holds no sound, only something else: name an audio file")
            if not 0 <= index < len(container.streams.audio):
                raise InputError(f"{path} has {len(container.streams.audio)} audio streams, none of number {index}")
            stream = container.streams.audio[index]
            rate, layout = stream.codec_context.sample_rate, stream.codec_context.layout
            _checked(AudioInfo(1, rate, layout.nb_channels), path)
            waveform = _frames_by_av(container.decode(stream), layout, rate)
            stated = round((stream.duration or 0) * float(stream.time_base or 0) * rate)
            if "mp4" in container.format.name:
                return _cut(waveform, stated, path), rate
    except (av.FFmpegError, OSError) as error:
        raise InputError(
            f"{path} cannot be read as sound, being damaged or of no known format: get another copy, "
            f"or convert it with `ffmpeg -i {path.name} converted.wav`"
        ) from error
    _checked(AudioInfo(waveform.shape[1], rate, layout.nb_channels), path)
    # Two libraries that agree to the sample have read it in the header; otherwise they estimated.
    if stated == promised and waveform.shape[1] < stated - _MP3_SLACK:
        raise _damaged(path, f"{waveform.shape[1]} of {stated} samples are there")
    return waveform, rate


def _frames_by_av(frames: Iterable[Any], layout: Any, rate: int) -> np.ndarray:
    import av

    planar = av.AudioResampler(format="fltp", layout=layout, rate=rate)  # converts the samples, no more
    parts = [part.to_ndarray() for frame in (*frames, None) for part in planar.resample(frame)]
    return np.concatenate([np.empty((layout.nb_channels, 0), np.float32), *parts], axis=1)


def _cut(waveform: np.ndarray, frames: int, path: Path) -> np.ndarray:
    """To the length an MP4 container states: after it comes only the encoder's padding."""
    _checked(AudioInfo(min(frames, waveform.shape[1]), 1, len(waveform)), path)
    if waveform.shape[1] < frames:
        raise _damaged(path, f"{waveform.shape[1]} of {frames} samples are there")
    return np.ascontiguousarray(waveform[:, :frames])


# ---------------------------------------------------------------------------- resampling


def resample(
    waveform: Float[np.ndarray, "c s"], from_rate: int, to_rate: int, *, frames: int | None = None
) -> Float32[np.ndarray, "c r"]:
    """(C, S) at ``from_rate`` Hz as (C, frames) at ``to_rate`` Hz, by soxr at its very high quality.

    ``frames`` is round(S · to/from) unless given, as one does on the way back so that a song keeps its
    length to the sample. At equal rates the samples are untouched. Raises :class:`InputError` for a
    rate that is not positive.
    """
    if min(from_rate, to_rate) <= 0:
        raise InputError(f"cannot resample from {from_rate} Hz to {to_rate} Hz: rates must be positive")
    length = round(waveform.shape[1] * to_rate / from_rate) if frames is None else frames
    samples = np.asarray(waveform, np.float32)
    if from_rate != to_rate:
        samples = soxr.resample(np.ascontiguousarray(samples.T), from_rate, to_rate, quality="VHQ").T
    padding = max(0, length - samples.shape[1])  # soxr's own length may be one sample off
    return np.ascontiguousarray(np.pad(samples, ((0, 0), (0, padding)))[:, :length])
