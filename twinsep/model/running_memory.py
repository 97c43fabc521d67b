"""The memory of a causal network: running means of the past, as constant NumPy arrays that both twins compute with.

Token i of a level with n tokens is an exponentially weighted mean of the level's frames x_s, s ≤ t, with rate α_i:

    m_i[t] = Σ_s α_i (1 − α_i)^(t−s) x_s / (1 − (1 − α_i)^(t+1))

The time constants 1/α_i lie geometrically between one frame (i = 0, the present frame itself) and ``HORIZON`` seconds
(i = n − 1); a single token has the longest. In a stream the sum and its weight are the whole state,
s ← (1 − α) s + α x, w ← (1 − α) w + α, and m = s/w. A whole song is computed in chunks, as the dual of Mamba-2 is.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

#: Longest time constant of a token, s.
HORIZON = 8.0
#: Tokens of each level that the summary reads, the fastest ones, as the chunk's memory reads those on one side.
NEAREST = 3
#: Largest number of frames per chunk.
CHUNK = 64


class Chunks(NamedTuple):
    """Matrices that compute the tokens of a sequence in chunks of s frames, (n, …) for n tokens."""

    within: np.ndarray  # (n, s, s): from the frames of a chunk to the sums at its frames
    across: np.ndarray  # (n, c, c): from the sums at the ends of chunks to those at the starts of later ones
    carried: np.ndarray  # (s, n): decay since the start of the chunk
    weight: np.ndarray  # (frames, n): weight of the sums


def rates(tokens: int, frame_seconds: float) -> tuple[float, ...]:
    """α of each token, for frames ``frame_seconds`` apart."""
    longest = max(1.0, HORIZON / frame_seconds)
    exponents = np.arange(tokens) / (tokens - 1) if tokens > 1 else np.ones(tokens)
    return tuple(map(float, longest**-exponents))


@cache
def chunks(rates: tuple[float, ...], frames: int) -> Chunks:
    """The matrices for a sequence of ``frames``, at least one; the last chunk is padded on the right."""
    alpha = np.asarray(rates)[:, None, None]
    count = -(-frames // CHUNK)
    size = -(-frames // count)
    t = np.arange(size)
    lag = t[:, None] - t
    within = np.where(lag >= 0, alpha * (1 - alpha) ** np.maximum(lag, 0), 0)
    i = np.arange(count)
    gap = i[:, None] - i - 1
    across = np.where(gap >= 0, (1 - alpha) ** (size * np.maximum(gap, 0)), 0)
    carried = (1 - alpha[:, 0]) ** (t + 1)
    weight = 1 - (1 - alpha[:, 0]) ** (np.arange(frames) + 1)
    return Chunks(*map(_frozen, (within, across, carried.T, weight.T)))


@cache
def last_complete(frames: int, stride: int, stride_of_memory: int) -> np.ndarray:
    """For each of ``frames`` of a decoder's level the number of frames of a memory's level that are complete, int64.

    A frame of a level lasts ``stride`` frames of the first level. 0 means none.
    """
    return _frozen((np.arange(frames) + 1) * stride // stride_of_memory)


@cache
def summary_vector(tokens: tuple[int, ...]) -> np.ndarray:
    """(Σ tokens,) weights of one frame's summary: the mean over levels of the mean of their ``NEAREST`` tokens."""
    levels = [n for n in tokens if n]
    parts = [np.where(np.arange(n) < NEAREST, 1 / min(n, NEAREST), 0) for n in levels]
    return _frozen(np.concatenate(parts) / len(levels))


def _frozen(array: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(array)
    array.flags.writeable = False
    return array
