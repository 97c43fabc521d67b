"""Tensors as the arrays that compiled loops take."""

import numpy as np
from torch import Tensor

from twinsep.kernels.arrays import strided


def array(x: Tensor) -> np.ndarray:
    """The memory of x, copied (on all threads) only where its last axis is not dense."""
    x = x.detach()
    return (x if x.stride(-1) == 1 else x.contiguous()).numpy()


def rows(x: Tensor) -> tuple[np.ndarray, tuple[int, ...], tuple[int, ...]]:
    """The memory of x, not empty, as a flat array, and its axes but the last, dense one as three: sizes and strides."""
    if x.ndim > 4:
        x = x.reshape(-1, x.shape[-1])
    flat, strides = strided(array(x))
    missing = 4 - x.ndim
    return flat, (1,) * missing + tuple(x.shape[:-1]), (0,) * missing + tuple(strides)
