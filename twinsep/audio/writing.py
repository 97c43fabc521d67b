"""Writing sound files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jaxtyping import Float

from twinsep.audio import mp4
from twinsep.audio.sink import FilePath, Writer, check_space
from twinsep.errors import InputError
from twinsep.utils.files import atomic_path, display_path

#: Extension -> (libsndfile format, default subtype, options of the encoder). WAV defaults to PCM_24, which is precise
#: enough for any output and plays everywhere.
FORMATS: dict[str, tuple[str, str, dict[str, Any]]] = {
    ".wav": ("WAV", "PCM_24", {}),
    ".flac": ("FLAC", "PCM_24", {}),
    ".mp3": ("MP3", "MPEG_LAYER_III", {"bitrate_mode": "CONSTANT"}),
    ".ogg": ("OGG", "VORBIS", {"compression_level": 0.2}),  # quality 8 of 10, about 256 kbit/s
}
# The same, with what PyAV writes.
_ENCODINGS = FORMATS | {".m4a": ("MP4", "AAC", {})}
_BITS = {"PCM_16": 16, "PCM_24": 24}
_BYTES = {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}
_HEADER = 1 << 16  # bytes that hold the header of a WAV
_WAV_BYTES = 2**32 - 2**16  # of sound; a WAV's sizes are 32-bit
# Lowest sample rate of each MPEG version in Hz -> (lowest bit rate of libsndfile's range, bit rates written), kbit/s.
# Below 64 kbit/s the first frame has no room for the header that states the length.
_MP3_RATES = {
    32_000: (32, (64, 80, 96, 112, 128, 160, 192, 224, 256, 320)),
    16_000: (8, (64, 80, 96, 112, 128, 144, 160)),
    0: (8, (64,)),
}
#: Bit rates of MP3 in kbit/s, each at some sample rates.
MP3_BITRATES = sorted({rate for _, rates in _MP3_RATES.values() for rate in rates})
# Highest bit rate of each of LAME's presets -> the factor that undoes how much quieter it makes the sound.
_MP3_GAINS = {160: 1 / 0.95, 192: 1 / 0.97, 224: 1 / 0.98, 320: 1.0}


@dataclass(frozen=True)
class _Encoding:
    container: str
    subtype: str
    options: dict[str, Any]
    gain: float = 1.0  # applied to samples before they are encoded

    def size(self, frames: int, channels: int) -> int:
        """Size of uncompressed sound in bytes."""
        return frames * channels * _BYTES[self.subtype]

    def supports_rate(self, sample_rate: int) -> bool:
        """Return False for a rate at which libsndfile crashes, or fails only at the first samples."""
        if self.container == "OGG":
            return sample_rate <= 200_000
        return self.container != "FLAC" or sample_rate < 65_536 or sample_rate % 10 == 0


class _SndfileWriter(Writer):
    """A file that libsndfile writes."""

    def __init__(self, path: Path, temporary: Path, encoding: _Encoding, sample_rate: int, channels: int):
        """Write the header into ``temporary``; raise :class:`InputError` if the format lacks the rate or channels."""
        super().__init__(path, temporary)
        self._encoding, self._frames = encoding, 0
        container = encoding.container
        refused = InputError(
            f"cannot write {display_path(path)}: {container} does not take {channels} channels "
            f"at {sample_rate} Hz; choose .wav{'' if container == 'FLAC' else ' or .flac'}, or resample"
        )
        if not encoding.supports_rate(sample_rate):
            raise refused
        # By descriptor, because the name may not be UTF-8.
        descriptor = os.open(temporary, os.O_RDWR | getattr(os, "O_BINARY", 0))
        try:
            self._file = soundfile.SoundFile(
                descriptor, "w", sample_rate, channels, encoding.subtype, format=container, **encoding.options
            )
        except soundfile.LibsndfileError as error:
            check_space(temporary)
            raise refused from error

    @property
    def is_float(self) -> bool:
        """True if samples beyond full scale are kept."""
        return self._encoding.subtype == "FLOAT"

    def _check_size(self, block: np.ndarray) -> None:
        self._frames += block.shape[1]
        if self._encoding.container == "WAV" and self._encoding.size(self._frames, len(block)) > _WAV_BYTES:
            raise InputError(
                f"cannot write {display_path(self._path)}: WAV ends at 4 GiB; write .flac, or write it in parts"
            )

    def _encode(self, block: np.ndarray) -> None:
        block = self._clamp(block)
        bits = _BITS.get(self._encoding.subtype)
        gain = np.float32(self._encoding.gain)
        samples = gain * block.astype(np.float32) if bits is None else _quantise(block, bits)
        with self._explained():
            self._file.write(np.ascontiguousarray(samples.T))  # (s, c)

    def close(self) -> None:
        """Complete the file; errors as in :meth:`write`."""
        with self._explained():
            self._file.close()
        check_space(self._temporary)  # libsndfile does not say whether its last bytes were written
        if self.is_float:
            _clear_time(self._temporary)

    def abandon(self) -> None:
        """Close a file that will not be kept; raises nothing."""
        with contextlib.suppress(soundfile.LibsndfileError):
            self._file.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (soundfile.LibsndfileError, AssertionError) as error:  # AssertionError: not all samples were taken
            check_space(self._temporary)
            raise InputError(
                f"cannot write {display_path(self._path)}: the encoder failed ({error}); choose another format"
            ) from error


def _clear_time(path: Path) -> None:
    """Zero the time of writing in a float WAV, so that equal sound gives equal bytes."""
    with path.open("rb+") as file:
        header = file.read(_HEADER)
        found = header.find(b"PEAK", 0, header.find(b"data"))  # an RF64 has none
        if found >= 0:
            file.seek(found + 12)  # after the chunk's name, size and version
            file.write(bytes(4))


def _quantise(block: np.ndarray, bits: int) -> np.ndarray:
    """Round to the nearest of 2^bits levels, left-justified in int32; libsndfile would round down."""
    full = 2.0 ** (bits - 1)
    levels = np.clip(np.rint(block.astype(np.float64) * full), -full, full - 1)
    return levels.astype(np.int32) << (32 - bits)


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
    """Open a sound file for writing in blocks: within a ``with``, a :class:`Writer`.

    The file appears at ``path`` when it is complete; missing folders are made. The extension decides the format (.wav,
    .flac, .mp3, .ogg, .m4a); ``subtype`` is PCM_16 or PCM_24 for WAV and FLAC, or FLOAT for WAV. ``bitrate`` is the
    constant bit rate of an MP3 in kbit/s, 64 to 320; it is lowered to 160 below a sample rate of 32 kHz and to 64 below
    16 kHz.
    ``frames`` is the expected length in samples per channel: a WAV that would exceed 4 GiB becomes an RF64. ``finish``
    is called with the path of the complete, closed temporary file before it is renamed, to write tags, for example.

    Raises :class:`InputError` for an unknown format, a sample rate, bit rate or channel count that the format lacks, a
    full disk, a path that cannot be written, and with ``overwrite`` False for a file at ``path``. On any failure
    ``path`` stays as it was. Exceptions of ``finish`` are passed on, except ``OSError``, which becomes
    :class:`InputError`.
    """
    path = Path(path)
    encoding = _encoding(path, sample_rate, subtype, bitrate)  # refuses before anything is touched
    if encoding.container == "WAV" and encoding.size(frames, channels) > _WAV_BYTES:
        encoding = replace(encoding, container="RF64")
    with atomic_path(_target(path), overwrite=overwrite) as temporary:
        if encoding.container == "MP4":
            with mp4.open_container(path, temporary, "ipod") as container:
                stream = mp4.Mp4Writer(path, temporary, container, sample_rate, channels)
                yield stream
                stream.close()
        else:
            sound = _SndfileWriter(path, temporary, encoding, sample_rate, channels)
            try:
                yield sound
                sound.close()
            except BaseException:
                sound.abandon()
                raise
        if finish:
            finish(temporary)


def write(path: FilePath, waveform: Float[np.ndarray, "c s"], sample_rate: int, *, subtype: str | None = None) -> int:
    """Write samples (C, S); return how many exceeded full scale and were set to it (0 for FLOAT).

    Formats and errors are those of :func:`writer`; a waveform without samples is refused too.
    """
    if not waveform.size:
        raise InputError(f"cannot write {display_path(path)}: there is no sound (0 samples)")
    with writer(path, sample_rate, len(waveform), subtype=subtype, frames=waveform.shape[1]) as sound:
        sound.write(waveform)
    return sound.clamped


def _target(path: Path) -> Path:
    """The file to replace: the target of a link, so that the link stays."""
    try:
        follow = path.is_symlink() and (path.is_file() or not path.exists())
        return Path(os.path.realpath(path)) if follow else path
    except OSError:  # an impossible name: opening it says why
        return path


def supports(extension: str, subtype: str) -> bool:
    """Return True if files with an extension of :func:`writer` can hold samples of ``subtype``."""
    container, default, _ = _ENCODINGS[extension]
    return subtype == default or (subtype in _BYTES and soundfile.check_format(container, subtype))


def _encoding(path: Path, sample_rate: int, subtype: str | None, bitrate: int) -> _Encoding:
    extension = path.suffix.lower()
    if extension not in _ENCODINGS:
        raise InputError(
            f"cannot write {display_path(path)}: its extension is none of {', '.join(_ENCODINGS)}; choose one of these"
        )
    container, default, options = _ENCODINGS[extension]
    subtype = subtype or default
    if not supports(extension, subtype):
        raise InputError(f"cannot write {display_path(path)}: {container} has no {subtype}; leave it out for {default}")
    if container == "MP3":
        level, chosen = _mp3_level(path, sample_rate, bitrate)
        gain = next(gain for most, gain in _MP3_GAINS.items() if chosen <= most)
        return _Encoding(container, subtype, options | {"compression_level": level}, gain)
    return _Encoding(container, subtype, options)


def _mp3_level(path: Path, sample_rate: int, bitrate: int) -> tuple[float, int]:
    """(libsndfile's compression level 0 to 1, bit rate in kbit/s): ``bitrate``, or the highest if that is lower."""
    least, bitrates = next(rates for lowest, rates in _MP3_RATES.items() if sample_rate >= lowest)
    most = bitrates[-1]
    bitrate = min(bitrate, most)
    if bitrate not in bitrates:
        raise InputError(
            f"cannot write {display_path(path)}: an MP3 at {sample_rate} Hz cannot have {bitrate} kbit/s; "
            f"choose one of {', '.join(map(str, bitrates))}"
        )
    # The level means a bit rate, rounded down; the encoder takes the nearest valid one.
    return (most - bitrate) / (most - least), bitrate
