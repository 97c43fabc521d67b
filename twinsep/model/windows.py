"""Attention window of a causal network: a query reads its own frame and the frames before it, up to a limit."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np


class Blocks(NamedTuple):
    """A sequence cut into blocks of frames, whose queries read the keys of their own block and the one before."""

    blocks: int
    size: int  # frames of a block
    before: int  # frames of the block before: 0 for a single block, else the size


def cut_into_blocks(frames: int, window: int) -> Blocks:
    """One block of ``frames`` if they fit the window, else as many blocks of a window as they need."""
    if frames <= window:
        return Blocks(1, frames, 0)
    return Blocks(-(-frames // window), window, window)


@cache
def window_bias(frames: int, window: int, tokens: int) -> np.ndarray:
    """Added to the scores of each block, (blocks, queries, keys) float32: 0 where a query reads a key, else −∞.

    A frame has ``tokens`` of each. The query of frame t reads the keys of the frames t − window + 1 … t that exist.
    """
    count, size, before = cut_into_blocks(frames, window)
    query = np.arange(size)[:, None]
    key = np.arange(-before, size)  # counted from the first frame of the block
    read = (key <= query) & (key > query - window) & (key + size * np.arange(count)[:, None, None] >= 0)
    bias = np.where(read, 0, -np.inf).astype(np.float32).repeat(tokens, 1).repeat(tokens, 2)
    bias.flags.writeable = False
    return bias
