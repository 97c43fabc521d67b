"""Tensors as NumPy arrays for compiled loops."""

import numpy as np
from torch import Tensor

from twinsep.kernels.arrays import strided


def array(x: Tensor) -> np.ndarray:
    """View x as a NumPy array whose last axis is dense; copies (on all threads) only if it is not."""
    x = x.detach()
    return (x if x.stride(-1) == 1 else x.contiguous()).numpy()


def rows(x: Tensor) -> tuple[np.ndarray, tuple[int, ...], tuple[int, ...]]:
    """Return the memory of a non-empty x as a flat array, and the sizes and strides of its axes except the last.

    The last axis is dense; the others are padded or merged to exactly three.
    """
    if x.is_contiguous():  # one axis of rows, whose offsets need no division
        return x.detach().numpy().reshape(-1), (1, 1, x.numel() // x.shape[-1]), (0, 0, x.shape[-1])
    if x.ndim > 4:
        x = x.reshape(-1, x.shape[-1])
    flat, strides = strided(array(x))
    missing = 4 - x.ndim
    return flat, (1,) * missing + tuple(x.shape[:-1]), (0,) * missing + tuple(strides)
