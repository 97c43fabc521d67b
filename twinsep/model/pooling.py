"""Pooling of the memory along time, as constant NumPy matrices that both twins multiply by."""

from __future__ import annotations

from functools import cache

import numpy as np

#: Number of tokens to which the alignment ``reference`` pools the memory again for attention along time.
REFERENCE_TIME_TOKENS = 64
#: Tokens read on either side of the one nearest to a frame.
RADIUS = 2


@cache
def pool_matrix(frames: int, tokens: int) -> np.ndarray:
    """Adaptive average pooling as a (tokens, frames) float32 matrix whose rows sum to 1.

    Token i averages the frames [⌊i·n/k⌋, ⌈(i+1)·n/k⌉).
    """
    matrix = np.zeros((tokens, frames))
    for i in range(tokens):
        lo, hi = i * frames // tokens, -(-(i + 1) * frames // tokens)
        matrix[i, lo:hi] = 1 / (hi - lo)
    return _frozen(matrix)


@cache
def summary_matrix(alignment: str, tokens: tuple[int, ...], frames: int) -> np.ndarray:
    """Matrix (frames, Σ tokens), float32, that maps the concatenated memory to one summary per frame.

    ``aligned``: for each level the mean over the tokens within ± 2 of the frame's time, then the mean over levels.
    ``reference``: the tokens round(t·(m−1)/(T−1)) ± 2 of the concatenation of all m tokens, missing ones as zeros. As
    the levels follow one another, this index is not a time: with 160 tokens the first 40 % of the frames read level 1
    of the whole chunk. It exists to measure the cost of that error.
    """
    if alignment == "reference":
        return _frozen(_windows(sum(tokens), frames) / (2 * RADIUS + 1))
    levels = [k for k in tokens if k]
    parts = [_windows(k, frames) for k in levels]
    return _frozen(np.concatenate([p / p.sum(1, keepdims=True) for p in parts], 1) / len(levels))


def _windows(tokens: int, frames: int) -> np.ndarray:
    """Matrix (frames, tokens) with ones for the tokens within ± RADIUS of the one nearest to the frame."""
    centre = np.array([_round_half_even(t * (tokens - 1), frames - 1) for t in range(frames)])
    return (np.abs(np.arange(tokens) - centre[:, None]) <= RADIUS).astype(np.float64)


def _round_half_even(numerator: int, denominator: int) -> int:
    # In integers: a floating-point quotient just below one half would be rounded the wrong way.
    if denominator == 0:  # a single frame reads token 0
        return 0
    quotient, remainder = divmod(numerator, denominator)
    return quotient + (2 * remainder > denominator or (2 * remainder == denominator and quotient % 2 == 1))


def _frozen(matrix: np.ndarray) -> np.ndarray:
    matrix = matrix.astype(np.float32)
    matrix.flags.writeable = False
    return matrix
