"""Writing sound files so that they are there whole or not at all; used as :mod:`twinsep.audio`'s ``write``."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
from jaxtyping import Float

from twinsep.errors import InputError
from twinsep.utils.files import File, atomic_path, display_path

FilePath = str | os.PathLike[str]
#: extension -> (libsndfile format, default subtype, options of the encoder). PCM_24 for WAV because
#: it is enough for any output and plays everywhere.
FORMATS: dict[str, tuple[str, str, dict[str, Any]]] = {
    ".wav": ("WAV", "PCM_24", {}),
    ".flac": ("FLAC", "PCM_24", {}),
    ".mp3": ("MP3", "MPEG_LAYER_III", {"bitrate_mode": "CONSTANT"}),
    ".ogg": ("OGG", "VORBIS", {"compression_level": 0.2}),  # quality 8 of 10, about 256 kbit/s
}
_BITS = {"PCM_16": 16, "PCM_24": 24}
_BYTES = {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}
_WAV_BYTES = 2**32 - 2**16  # of sound; a WAV's sizes are 32-bit
# Lowest sample rate of each version of MPEG in Hz -> (least of libsndfile's range, the bit rates written), kbit/s.
# Of fewer than 64 the first frame has no room for the header that tells the length.
_MP3_RATES = {
    32_000: (32, (64, 80, 96, 112, 128, 160, 192, 224, 256, 320)),
    16_000: (8, (64, 80, 96, 112, 128, 144, 160)),
    0: (8, (64,)),
}
#: Of an MP3 at one sample rate or another, in kbit/s.
MP3_BITRATES = sorted({rate for _, rates in _MP3_RATES.values() for rate in rates})
# Bit rate up to which LAME makes what it encodes quieter, by its presets → by what that is undone.
_MP3_GAINS = {160: 1 / 0.95, 192: 1 / 0.97, 224: 1 / 0.98, 320: 1.0}
# Frames encoded at once: bounds memory, and the Vorbis encoder overflows its stack on minutes at once.
_BLOCK = 1 << 16


@dataclass(frozen=True)
class _Encoding:
    container: str
    subtype: str
    options: dict[str, Any]
    gain: float = 1.0  # of samples on the way to the encoder

    def size(self, frames: int, channels: int) -> int:
        """Bytes of uncompressed sound."""
        return frames * channels * _BYTES[self.subtype]

    def takes(self, sample_rate: int) -> bool:
        """Whether a rate is not one that libsndfile crashes at, or fails at only when the first samples come."""
        if self.container == "OGG":
            return sample_rate <= 200_000
        return self.container != "FLAC" or sample_rate < 65_536 or sample_rate % 10 == 0


class Writer:
    """An open sound file that takes blocks; made by :func:`writer`.

    ``clamped`` counts the samples so far that lay beyond full scale and were set to it.
    """

    def __init__(self, path: Path, sink: _Sink, encoding: _Encoding):
        self.clamped = 0
        self._path, self._sink, self._encoding = path, sink, encoding
        self._file: Any = None
        self._frames = 0

    def open(self, sample_rate: int, channels: int) -> None:
        """Write the header. Raises :class:`InputError` for a rate or a channel count that the format lacks."""
        encoding, container = self._encoding, self._encoding.container
        refused = InputError(
            f"cannot write {display_path(self._path)}: {container} does not take {channels} channels "
            f"at {sample_rate} Hz; choose .wav{'' if container == 'FLAC' else ' or .flac'}, or resample"
        )
        if not encoding.takes(sample_rate):
            raise refused
        try:
            with _uninterrupted():
                self._file = soundfile.SoundFile(
                    self._sink, "w", sample_rate, channels, encoding.subtype, format=container, **encoding.options
                )
        except soundfile.LibsndfileError as error:
            self._sink.check()
            raise refused from error

    @property
    def is_float(self) -> bool:
        """Whether samples beyond full scale are kept as they are."""
        return self._encoding.subtype == "FLOAT"

    def write(self, block: Float[np.ndarray, "c s"]) -> None:
        """Append (C, S) samples. Raises :class:`InputError` for NaN, infinity or a full disk."""
        if not np.isfinite(block).all():
            raise InputError(
                f"cannot write {display_path(self._path)}: the sound holds NaN or infinite samples; "
                "look for them in its source, and use float32 instead of half precision"
            )
        self._frames += block.shape[1]
        if self._encoding.container == "WAV" and self._encoding.size(self._frames, len(block)) > _WAV_BYTES:
            raise InputError(
                f"cannot write {display_path(self._path)}: WAV ends at 4 GiB; write .flac, or write it in parts"
            )
        for start in range(0, block.shape[1], _BLOCK):
            self._encode(block[:, start : start + _BLOCK])

    def _encode(self, block: np.ndarray) -> None:
        if not self.is_float:
            over = int(np.count_nonzero(np.abs(block) > 1))
            self.clamped += over
            block = np.clip(block, -1, 1) if over else block
        bits = _BITS.get(self._encoding.subtype)
        gain = np.float32(self._encoding.gain)
        samples = gain * block.astype(np.float32) if bits is None else _quantised(block, bits)
        try:
            with _uninterrupted():
                self._file.write(np.ascontiguousarray(samples.T))
        except (soundfile.LibsndfileError, AssertionError) as error:  # AssertionError: fewer samples taken
            self._sink.check()
            raise InputError(
                f"cannot write {display_path(self._path)}: the encoder failed ({error}); choose another format"
            ) from error
        self._sink.check()

    def close(self) -> None:
        """Finish the header and hand every byte to the system; raises ``OSError`` if that fails."""
        with contextlib.suppress(soundfile.LibsndfileError), _uninterrupted():  # says less than what the sink keeps
            self._file.close()
        self._sink.check()
        if self.is_float:
            self._sink.forget_time()

    def abandon(self) -> None:
        """Let go of a file that will not be kept; raises nothing."""
        self._sink.error = self._sink.error or OSError("abandoned")  # so that nothing more is written
        if self._file:
            with contextlib.suppress(soundfile.LibsndfileError, OSError), _uninterrupted():
                self._file.close()


class _Sink:
    """What libsndfile writes into. Its callbacks cannot raise, so the first error is kept for :meth:`check`."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        return self._try(self.file.write, data)

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
        header = self.file.read(_BLOCK)
        found = header.find(b"PEAK", 0, header.find(b"data"))  # an RF64 has none
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
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back: raised in what libsndfile calls, where Python sees it first, it would be printed and lost."""
    if threading.current_thread() is not threading.main_thread():  # no other thread sees signals
        yield
        return
    held = []
    before = signal.signal(signal.SIGINT, lambda *_: held.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)  # none: not set by Python
        if held:
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def writer(
    path: FilePath,
    sample_rate: int,
    channels: int,
    *,
    subtype: str | None = None,
    bitrate: int = 320,
    frames: int = 0,
    overwrite: bool = True,
    finish: Callable[[Path], None] | None = None,
) -> Iterator[Writer]:
    """Within a ``with``, a :class:`Writer` for songs too long to hold; ``path`` appears only when whole.

    The extension decides the format (.wav, .flac, .mp3, .ogg); ``subtype`` is PCM_16 or PCM_24 for WAV
    and FLAC, or FLOAT for WAV. ``bitrate`` is an MP3's constant one in kbit/s, 64 to 320; the most there
    is below a sample rate of 32 kHz is 160, and below 16 kHz 64, and more gives that. ``frames`` is the
    expected number of samples per channel: where a WAV does not hold them it becomes an RF64, which is
    the same beyond 4 GiB. Missing folders are made. ``finish`` is called with the path of the complete
    temporary file, which has the extension of ``path``, before the file gets its name.

    Raises :class:`InputError`, and leaves what stood at ``path`` as it was, if any of it fails: an
    unknown format, a full disk, a place that may not be written to, a sample rate, bit rate or channel
    count the format lacks, a file at ``path`` with ``overwrite`` off. What ``finish`` raises fails the
    writing too, and is passed on unless it is an ``OSError``, which becomes an :class:`InputError`.
    """
    path = Path(path)
    encoding = _encoding(path, sample_rate, subtype, bitrate)  # refuses before anything is touched
    if encoding.container == "WAV" and encoding.size(frames, channels) > _WAV_BYTES:
        encoding = replace(encoding, container="RF64")
    with atomic_path(_target(path), overwrite=overwrite) as temporary:
        with File(temporary, "x+") as file:
            sound = Writer(path, _Sink(file), encoding)
            try:
                sound.open(sample_rate, channels)
                yield sound
                sound.close()
            except BaseException:
                sound.abandon()
                raise
        if finish:
            finish(temporary)


def write(path: FilePath, waveform: Float[np.ndarray, "c s"], sample_rate: int, *, subtype: str | None = None) -> int:
    """Write (C, S) samples; gives how many lay beyond full scale and were set to it (none in FLOAT).

    Formats and errors are those of :func:`writer`; a waveform of no samples is refused too.
    """
    if not waveform.size:
        raise InputError(f"cannot write {display_path(path)}: there is no sound (0 samples)")
    with writer(path, sample_rate, len(waveform), subtype=subtype, frames=waveform.shape[1]) as sound:
        sound.write(waveform)
    return sound.clamped


def _target(path: Path) -> Path:
    """The file to replace: of a link the one it names, so that the link stays."""
    try:
        follow = path.is_symlink() and (path.is_file() or not path.exists())
        return Path(os.path.realpath(path)) if follow else path
    except OSError:  # an impossible name: opening it says why
        return path


def supports(extension: str, subtype: str) -> bool:
    """Whether files of one of :data:`FORMATS` may hold samples of that kind."""
    container, default, _ = FORMATS[extension]
    return subtype == default or (subtype in _BYTES and soundfile.check_format(container, subtype))


def _encoding(path: Path, sample_rate: int, subtype: str | None, bitrate: int) -> _Encoding:
    extension = path.suffix.lower()
    if extension not in FORMATS:
        raise InputError(
            f"cannot write {display_path(path)}: its extension is none of {', '.join(FORMATS)}; choose one of these"
        )
    container, default, options = FORMATS[extension]
    subtype = subtype or default
    if not supports(extension, subtype):
        raise InputError(f"cannot write {display_path(path)}: {container} has no {subtype}; leave it out for {default}")
    if container == "MP3":
        level, chosen = _mp3_level(path, sample_rate, bitrate)
        gain = next(gain for most, gain in _MP3_GAINS.items() if chosen <= most)
        return _Encoding(container, subtype, options | {"compression_level": level}, gain)
    return _Encoding(container, subtype, options)


def _mp3_level(path: Path, sample_rate: int, bitrate: int) -> tuple[float, int]:
    """libsndfile's compression level, 0 to 1, for ``bitrate`` kbit/s, or the highest there is at that rate; which."""
    least, bitrates = next(rates for lowest, rates in _MP3_RATES.items() if sample_rate >= lowest)
    most = bitrates[-1]
    bitrate = min(bitrate, most)
    if bitrate not in bitrates:
        raise InputError(
            f"cannot write {display_path(path)}: an MP3 at {sample_rate} Hz cannot have {bitrate} kbit/s; "
            f"choose one of {', '.join(map(str, bitrates))}"
        )
    # Of what the level gives, rounded down, the encoder takes the nearest there is.
    return (most - bitrate) / (most - least), bitrate
