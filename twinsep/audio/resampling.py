"""Resampling by soxr at its quality VHQ ("very high"): at once, or block by block in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import soxr
from jaxtyping import Float, Float32

from twinsep.errors import InputError

_BLOCK = 1 << 16  # samples resampled at once, to bound memory where a long block is upsampled


def resample(
    waveform: Float[np.ndarray, "c s"], from_rate: int, to_rate: int, *, frames: int | None = None
) -> Float32[np.ndarray, "c r"]:
    """Resample (C, S) at ``from_rate`` Hz to (C, frames) at ``to_rate`` Hz.

    ``frames`` defaults to round(S · to/from); pass the original length when resampling back, so that a song keeps its
    length to the sample. Samples are unchanged if the rates are equal. Raises :class:`InputError` for a rate that is
    not positive.
    """
    _check_rates(from_rate, to_rate)
    length = round(waveform.shape[1] * to_rate / from_rate) if frames is None else frames
    samples = np.asarray(waveform, np.float32)
    if from_rate != to_rate:
        samples = soxr.resample(np.ascontiguousarray(samples.T), from_rate, to_rate, quality="VHQ").T
    padding = max(0, length - samples.shape[1])  # the length from soxr may be off by one
    return np.ascontiguousarray(np.pad(samples, ((0, 0), (0, padding)))[:, :length])


class Resampler:
    """A streaming resampler for ``channels`` channels, from ``from_rate`` to ``to_rate`` Hz.

    Samples are unchanged if the rates are equal. Raises :class:`InputError` for a rate that is not positive.
    """

    def __init__(self, from_rate: int, to_rate: int, channels: int):
        _check_rates(from_rate, to_rate)
        self._channels = channels
        self._stream = (
            None if from_rate == to_rate else soxr.ResampleStream(from_rate, to_rate, channels, "float32", "VHQ")
        )

    def push(self, block: Float[np.ndarray, "c s"]) -> Float32[np.ndarray, "c r"]:
        """Add (C, S) samples and return the output (C, R) that is ready; R may be 0 because the filter looks ahead."""
        return self._resample(block, last=False)

    def finish(self) -> Float32[np.ndarray, "c r"]:
        """Return the rest of the output (C, R); nothing may be pushed afterwards."""
        return self._resample(np.empty((self._channels, 0), np.float32), last=True)

    def _resample(self, block: np.ndarray, last: bool) -> np.ndarray:
        samples = np.asarray(block, np.float32)
        if self._stream is None:
            return samples
        return np.ascontiguousarray(self._stream.resample_chunk(np.ascontiguousarray(samples.T), last).T)


def resample_blocks(
    blocks: Iterable[Float[np.ndarray, "c _"]], from_rate: int, to_rate: int, frames: int
) -> Iterator[Float32[np.ndarray, "c _"]]:
    """Resample (C, S) blocks of any lengths from ``from_rate`` to ``to_rate`` Hz, and yield blocks as they are ready.

    The output is cut or padded with zeros to ``frames`` samples, because the length from soxr may be off by a sample
    or two. Yields nothing if there is no block. Raises :class:`InputError` for a rate that is not positive.
    """
    done, channels = 0, 0
    for block in _resampled(blocks, from_rate, to_rate):
        channels = len(block)
        block = block[:, : frames - done]
        if block.shape[1]:
            yield block
        done += block.shape[1]
    while channels and done < frames:
        missing = min(frames - done, _BLOCK)
        yield np.zeros((channels, missing), np.float32)
        done += missing


def _resampled(blocks: Iterable[np.ndarray], from_rate: int, to_rate: int) -> Iterator[np.ndarray]:
    resampler = None
    for block in blocks:
        if resampler is None:
            resampler = Resampler(from_rate, to_rate, len(block))
        for start in range(0, block.shape[1], _BLOCK):
            yield resampler.push(block[:, start : start + _BLOCK])
    if resampler is not None:
        yield resampler.finish()


def _check_rates(from_rate: int, to_rate: int) -> None:
    if min(from_rate, to_rate) <= 0:
        raise InputError(f"cannot resample from {from_rate} Hz to {to_rate} Hz: rates must be positive")
