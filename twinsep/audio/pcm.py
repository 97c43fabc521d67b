"""Uncompressed sound in pipes: samples as bytes, and WAV headers that need no second look at the stream."""

from __future__ import annotations

import io
import struct
from typing import BinaryIO, NamedTuple

import numpy as np

from twinsep.config import SampleFormat
from twinsep.errors import InputError

#: Bytes that come or go, such as those of a pipe.
Bytes = BinaryIO | io.BufferedIOBase
#: Sample formats by FFmpeg's names: NumPy's dtype and the WAV format tag (1: integers, 3: floating point).
SAMPLE_FORMATS: dict[SampleFormat, tuple[str, int]] = {"s16le": ("<i2", 1), "f32le": ("<f4", 3)}
#: Full scale of 16-bit samples.
_SCALE = 32768
#: Size in a header that states no length, and the least that stands for none.
_UNKNOWN, _LEAST_UNKNOWN = 0xFFFF_FFFF, 0x7FFF_0000
_EXTENSIBLE = 0xFFFE


class PCM(NamedTuple):
    """How samples are stored: interleaved channels."""

    rate: int  # Hz
    channels: int
    sample_format: SampleFormat

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return self.channels * np.dtype(SAMPLE_FORMATS[self.sample_format][0]).itemsize

    def decode(self, data: bytes) -> np.ndarray:
        """Samples (channels, n) in float32, full scale ±1, of whole frames."""
        x = np.frombuffer(data, SAMPLE_FORMATS[self.sample_format][0]).reshape(-1, self.channels).T
        return np.ascontiguousarray(x, np.float32) / (_SCALE if self.sample_format == "s16le" else 1)

    def encode(self, samples: np.ndarray) -> bytes:
        """Bytes of samples (channels, n); 16-bit ones are rounded and clamped to full scale."""
        x = samples.T
        if self.sample_format == "s16le":
            x = np.clip(np.rint(x * _SCALE), -_SCALE, _SCALE - 1)
        return x.astype(SAMPLE_FORMATS[self.sample_format][0]).tobytes()

    def header(self) -> bytes:
        """A WAV header that states no length."""
        bits = 8 * self.frame_bytes // self.channels
        tag = SAMPLE_FORMATS[self.sample_format][1]
        form = struct.pack(
            "<HHIIHH", tag, self.channels, self.rate, self.rate * self.frame_bytes, self.frame_bytes, bits
        )
        return (
            struct.pack("<4sI4s4sI", b"RIFF", _UNKNOWN, b"WAVE", b"fmt ", len(form))
            + form
            + struct.pack("<4sI", b"data", _UNKNOWN)
        )


def read_wav_header(file: Bytes) -> tuple[PCM, int | None]:
    """Read ``file`` up to its sound; return how it is stored, and its length in bytes unless the header states none.

    ``file`` need not be seekable. Raises :class:`InputError` unless it is a WAV file with 16-bit or 32-bit
    floating-point samples.
    """
    riff, _, wave = struct.unpack("<4sI4s", _read(file, 12))
    if (riff, wave) != (b"RIFF", b"WAVE"):
        raise InputError("the standard input is no WAV file: pipe one in, or name the format of raw samples by --raw")
    found: PCM | None = None
    while True:
        name, size = struct.unpack("<4sI", _read(file, 8))
        if name == b"data":
            break
        content = _read(file, size + size % 2)
        if name == b"fmt ":
            found = _parse_format(content)
    if found is None:
        raise InputError("the WAV file in the standard input has no format before its sound: write it again")
    return found, None if size == 0 or size >= _LEAST_UNKNOWN else size


def _parse_format(content: bytes) -> PCM:
    tag, channels, rate, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", content.ljust(16, b"\0"))
    if tag == _EXTENSIBLE and len(content) >= 26:
        (tag,) = struct.unpack_from("<H", content, 24)
    for name, (dtype, known) in SAMPLE_FORMATS.items():
        if (tag, bits) == (known, 8 * np.dtype(dtype).itemsize) and channels in (1, 2):
            found = PCM(rate, channels, name)
            if found.frame_bytes == frame_bytes:
                return found
    raise InputError(
        f"the WAV file in the standard input has {channels} channels of {bits} bits (format {tag}): pipe in one or two "
        "channels of 16-bit or 32-bit floating-point samples"
    )


def _read(file: Bytes, count: int) -> bytes:
    content = file.read(count)
    if len(content) < count:
        raise InputError("the standard input ends in the header of a WAV file: pipe in a whole one")
    return content
