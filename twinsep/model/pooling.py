"""The network's constant linear maps, as matrices.

Pooling and summarising the memory along time, and mid/side along channels, have no parameters: they
are built once, here, in NumPy, and both twins multiply by them.
"""

from __future__ import annotations

from functools import cache

import numpy as np

#: Under the alignment ``reference`` the tokens are pooled again to so many for the time attention.
REFERENCE_TIME_TOKENS = 64
#: Tokens read on either side of the nearest one.
RADIUS = 2


@cache
def pool_matrix(frames: int, tokens: int) -> np.ndarray:
    """Adaptive average pooling as a (tokens, frames) matrix of float32, rows summing to 1.

    Token i averages the frames [⌊i·n/k⌋, ⌈(i+1)·n/k⌉).
    """
    matrix = np.zeros((tokens, frames))
    for i in range(tokens):
        lo, hi = i * frames // tokens, -(-(i + 1) * frames // tokens)
        matrix[i, lo:hi] = 1 / (hi - lo)
    return _frozen(matrix)


@cache
def summary_matrix(alignment: str, tokens: tuple[int, ...], frames: int) -> np.ndarray:
    """The (frames, Σ tokens) float32 matrix that takes the concatenated memory to one summary a frame.

    ``aligned``: the mean over levels of the mean over that level's tokens within ± 2 of the frame's time.
    ``reference``: tokens round(t·(m−1)/(T−1)) ± 2 of the concatenation of all m, missing ones counted as
    zero. The levels follow one another there, so the index is not a time: with 160 tokens the first
    40 % of the frames read level 1 of the whole chunk. Kept to measure what it costs.
    """
    if alignment == "reference":
        return _frozen(_windows(sum(tokens), frames) / (2 * RADIUS + 1))
    levels = [k for k in tokens if k]
    parts = [_windows(k, frames) for k in levels]
    return _frozen(np.concatenate([p / p.sum(1, keepdims=True) for p in parts], 1) / len(levels))


def _windows(tokens: int, frames: int) -> np.ndarray:
    """(frames, tokens) of ones where the token lies within ± RADIUS of the frame's nearest one."""
    centre = np.array([_round_half_even(t * (tokens - 1), frames - 1) for t in range(frames)])
    return (np.abs(np.arange(tokens) - centre[:, None]) <= RADIUS).astype(np.float64)


def _round_half_even(numerator: int, denominator: int) -> int:
    # In integers: a float quotient just below a half would go the other way.
    if denominator == 0:  # a single frame reads token 0
        return 0
    quotient, rest = divmod(numerator, denominator)
    return quotient + (2 * rest > denominator or (2 * rest == denominator and quotient % 2 == 1))


def _frozen(matrix: np.ndarray) -> np.ndarray:
    matrix = matrix.astype(np.float32)
    matrix.flags.writeable = False
    return matrix
