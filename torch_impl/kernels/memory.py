"""Tensors as the flat arrays that compiled loops take."""

import numpy as np
from torch import Tensor


def strided(x: Tensor) -> tuple[np.ndarray, tuple[int, ...]]:
    """The memory of x, not empty, as a flat array, and the strides of all axes but the last, which is dense.

    Copied only where the last axis is not dense: parts of wider tensors and transposed ones serve as they are.
    """
    x = x.detach()
    if x.stride(-1) != 1:
        x = x.contiguous()
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((extent,), (1,)).numpy(), x.stride()[:-1]


def rows(x: Tensor) -> tuple[np.ndarray, tuple[int, ...], tuple[int, ...]]:
    """The memory of x, not empty, as a flat array, and its axes but the last, dense one as three: sizes and strides."""
    if x.ndim > 4:
        x = x.reshape(-1, x.shape[-1])
    flat, strides = strided(x)
    missing = 4 - x.ndim
    return flat, (1,) * missing + tuple(x.shape[:-1]), (0,) * missing + tuple(strides)
