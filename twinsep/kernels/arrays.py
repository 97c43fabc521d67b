"""Flat views of arrays for compiled loops."""

import numpy as np


def strided(x: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the memory of a non-empty x as a flat array, and the strides of all axes except the last, dense one.

    Copies only if the last axis is not dense: slices of wider arrays and transposed arrays are viewed in place.
    """
    if x.strides[-1] != x.itemsize:
        x = np.ascontiguousarray(x)
    strides = tuple(stride // x.itemsize for stride in x.strides)
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True))
    return np.lib.stride_tricks.as_strided(x, (extent,), (x.itemsize,)), strides[:-1]
