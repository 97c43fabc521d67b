"""Writing sound files so that they are there whole or not at all; used as :mod:`twinsep.audio`'s ``write``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float

from twinsep.errors import InputError
from twinsep.files import replacing

FilePath = str | os.PathLike[str]
#: extension -> (libsndfile format, default subtype, options of the encoder). PCM_24 for WAV because
#: it is enough for any output and plays everywhere.
FORMATS: dict[str, tuple[str, str, dict[str, Any]]] = {
    ".wav": ("WAV", "PCM_24", {}),
    ".flac": ("FLAC", "PCM_24", {}),
    ".mp3": ("MP3", "MPEG_LAYER_III", {"bitrate_mode": "CONSTANT", "compression_level": 0.0}),  # 320 kbit/s
    ".ogg": ("OGG", "VORBIS", {"compression_level": 0.2}),  # quality 8 of 10, about 256 kbit/s
}
_BITS = {"PCM_16": 16, "PCM_24": 24}
_BYTES = {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}
_WAV_BYTES = 2**32 - 2**16  # of sound; a WAV's sizes are 32-bit
# Frames encoded at once: bounds memory, and the Vorbis encoder overflows its stack on minutes at once.
_BLOCK = 1 << 16


class Writer:
    """An open sound file that takes blocks; made by :func:`writer`.

    ``clamped`` counts the samples so far that lay beyond full scale and were set to it.
    """

    def __init__(self, path: Path, sink: _Sink, sample_rate: int, channels: int, subtype: str | None):
        self.clamped = 0
        self._path, self._sink, self._frames = path, sink, 0
        container, self._subtype, options = _encoding(path, subtype)
        self._limit = _WAV_BYTES if container == "WAV" else None
        try:
            self._file = soundfile.SoundFile(
                sink, "w", sample_rate, channels, self._subtype, format=container, **options
            )
        except soundfile.LibsndfileError as error:
            sink.check()
            raise InputError(
                f"cannot write {path}: {container} does not take {channels} channels at {sample_rate} Hz; "
                "choose .wav or .flac, or resample"
            ) from error

    def write(self, block: Float[np.ndarray, "c s"]) -> None:
        """Append (C, S) samples. Raises :class:`InputError` for NaN, infinity or a full disk."""
        if not np.isfinite(block).all():
            raise InputError(
                f"cannot write {self._path}: the sound holds NaN or infinite samples; "
                "look for them in its source, and use float32 instead of half precision"
            )
        self._frames += block.shape[1]
        if self._limit and self._frames * len(block) * _BYTES[self._subtype] > self._limit:
            raise InputError(f"cannot write {self._path}: WAV ends at 4 GiB; write .flac, or write it in parts")
        for start in range(0, block.shape[1], _BLOCK):
            self._encode(block[:, start : start + _BLOCK])

    def _encode(self, block: np.ndarray) -> None:
        if self._subtype != "FLOAT":
            over = int(np.count_nonzero(np.abs(block) > 1))
            self.clamped += over
            block = np.clip(block, -1, 1) if over else block
        bits = _BITS.get(self._subtype)
        samples = block.astype(np.float32) if bits is None else _quantised(block, bits)
        try:
            self._file.write(np.ascontiguousarray(samples.T))
        except (soundfile.LibsndfileError, AssertionError) as error:  # AssertionError: fewer samples taken
            self._sink.check()
            raise InputError(
                f"cannot write {self._path}: the encoder failed ({error}); choose another format"
            ) from error
        self._sink.check()

    def close(self) -> None:
        """Finish the header and hand every byte to the system; raises ``OSError`` if that fails."""
        with contextlib.suppress(soundfile.LibsndfileError):  # says less than the error the sink keeps
            self._file.close()
        self._sink.check()
        if self._subtype == "FLOAT":
            self._sink.forget_time()

    def abandon(self) -> None:
        """Let go of a file that will not be kept; raises nothing."""
        self._sink.error = self._sink.error or OSError("abandoned")  # so that nothing more is written
        with contextlib.suppress(soundfile.LibsndfileError, OSError):
            self._file.close()


class _Sink:
    """What libsndfile writes into. Its callbacks cannot raise, so the first error is kept for :meth:`check`."""

    def __init__(self, file: RawIOBase):
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        written = 0
        while written < len(data) and self.error is None:  # a nearly full disk takes a part first
            written += self._try(self.file.write, data[written:])
        return written

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._try(self.file.seek, offset, whence)

    def tell(self) -> int:
        return self._try(self.file.tell)

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def forget_time(self) -> None:
        """Zero the time of writing in a float WAV, so that the same sound gives the same bytes."""
        self.file.seek(0)
        found = self.file.read(_BLOCK).find(b"PEAK")
        if found >= 0:
            self.file.seek(found + 12)  # after the chunk's name, size and version
            self.file.write(bytes(4))

    def _try(self, action: Callable[..., int | None], *arguments: Any) -> int:
        if self.error is not None:
            return 0
        try:
            return action(*arguments) or 0
        except OSError as error:
            self.error = error
            return 0


def _quantised(block: np.ndarray, bits: int) -> np.ndarray:
    """To the nearest of 2^bits levels, left-justified in int32: libsndfile would round down."""
    full = 2.0 ** (bits - 1)
    levels = np.clip(np.rint(block.astype(np.float64) * full), -full, full - 1)
    return levels.astype(np.int32) << (32 - bits)


@contextlib.contextmanager
def writer(path: FilePath, sample_rate: int, channels: int, *, subtype: str | None = None) -> Iterator[Writer]:
    """Within a ``with``, a :class:`Writer` for songs too long to hold; ``path`` appears only when whole.

    The extension decides the format (.wav, .flac, .mp3 at 320 kbit/s, .ogg); ``subtype`` is PCM_16 or
    PCM_24 for WAV and FLAC, or FLOAT for WAV. Missing folders are made. Raises :class:`InputError`,
    and leaves what stood at ``path`` as it was, if any of it fails: an unknown format, a full disk,
    a place that may not be written to, a rate or channel count the format lacks.
    """
    path = Path(path)
    _encoding(path, subtype)  # refuses before anything is touched
    target = _target(path)
    # Unbuffered, so that closing the file after a failure has nothing left to fail at.
    with replacing(target) as temporary, temporary.open("w+b", buffering=0) as file:
        sound = Writer(path, _Sink(file), sample_rate, channels, subtype)
        try:
            yield sound
            sound.close()
        except BaseException:
            sound.abandon()
            raise


def write(path: FilePath, waveform: Float[np.ndarray, "c s"], sample_rate: int, *, subtype: str | None = None) -> int:
    """Write (C, S) samples; gives how many lay beyond full scale and were set to it (none in FLOAT).

    Formats and errors are those of :func:`writer`; a waveform of no samples is refused too.
    """
    if not waveform.size:
        raise InputError(f"cannot write {path}: there is no sound (0 samples)")
    with writer(path, sample_rate, len(waveform), subtype=subtype) as sound:
        sound.write(waveform)
    return sound.clamped


def _target(path: Path) -> Path:
    """The file to replace: of a link the one it names, so that the link stays. Folders and devices are refused."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"cannot write {path}: it is a folder or a device; give the name of a file")
        return path.resolve() if path.is_symlink() else path
    except OSError:  # an impossible name: opening it says why
        return path


def _encoding(path: Path, subtype: str | None) -> tuple[str, str, dict[str, Any]]:
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"cannot write {path}: its extension is none of {', '.join(FORMATS)}; choose one of these")
    container, default, options = FORMATS[path.suffix.lower()]
    subtype = subtype or default
    if subtype != default and (subtype not in _BYTES or not soundfile.check_format(container, subtype)):
        raise InputError(f"cannot write {path}: {container} has no {subtype}; leave it out for {default}")
    return container, subtype, options
