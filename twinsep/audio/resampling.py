"""Resampling a song block by block, so that memory does not grow with its length; by soxr at its very high quality."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import soxr
from jaxtyping import Float, Float32

from twinsep.errors import InputError

_BLOCK = 1 << 16  # samples resampled at once, so that a long block does not become a much longer one


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


class Resampler:
    """A stream of ``channels`` channels from ``from_rate`` to ``to_rate`` Hz, untouched where they are equal.

    Raises :class:`InputError` for a rate that is not positive.
    """

    def __init__(self, from_rate: int, to_rate: int, channels: int):
        if min(from_rate, to_rate) <= 0:
            raise InputError(f"cannot resample from {from_rate} Hz to {to_rate} Hz: rates must be positive")
        self._channels = channels
        self._stream = (
            None if from_rate == to_rate else soxr.ResampleStream(from_rate, to_rate, channels, "float32", "VHQ")
        )

    def push(self, block: Float[np.ndarray, "c s"]) -> Float32[np.ndarray, "c r"]:
        """What can be told of the output after the next (C, S) samples; R may be 0, the filter looks ahead."""
        return self._resampled(block, last=False)

    def finish(self) -> Float32[np.ndarray, "c r"]:
        """The rest of the output; nothing may be pushed after it."""
        return self._resampled(np.empty((self._channels, 0), np.float32), last=True)

    def _resampled(self, block: np.ndarray, last: bool) -> np.ndarray:
        samples = np.asarray(block, np.float32)
        if self._stream is None:
            return samples
        return np.ascontiguousarray(self._stream.resample_chunk(np.ascontiguousarray(samples.T), last).T)


def resample_blocks(
    blocks: Iterable[Float[np.ndarray, "c _"]], from_rate: int, to_rate: int, frames: int
) -> Iterator[Float32[np.ndarray, "c _"]]:
    """(C, S) blocks of any lengths at ``from_rate`` Hz as blocks at ``to_rate`` Hz, as soon as they can be told.

    Their lengths sum to ``frames``, by cutting or by zeros, because soxr's own length may be a sample or two off.
    Without a block there is nothing. Raises :class:`InputError` as :class:`Resampler` does.
    """
    done, channels = 0, 0
    for piece in _pieces(blocks, from_rate, to_rate):
        channels = len(piece)
        piece = piece[:, : frames - done]
        if piece.shape[1]:
            yield piece
        done += piece.shape[1]
    while channels and done < frames:
        missing = min(frames - done, _BLOCK)
        yield np.zeros((channels, missing), np.float32)
        done += missing


def _pieces(blocks: Iterable[np.ndarray], from_rate: int, to_rate: int) -> Iterator[np.ndarray]:
    resampler = None
    for block in blocks:
        if resampler is None:
            resampler = Resampler(from_rate, to_rate, len(block))
        for start in range(0, block.shape[1], _BLOCK):
            yield resampler.push(block[:, start : start + _BLOCK])
    if resampler is not None:
        yield resampler.finish()
