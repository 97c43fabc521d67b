"""Flat views of arrays for compiled loops."""

from math import prod

import numpy as np


def strided(x: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the memory of a non-empty x as a flat array, and the strides of all axes except the last, dense one.

    Copies only if the last axis is not dense: slices of wider arrays and transposed arrays are viewed in place.
    """
    if x.flags.c_contiguous:  # the same as below, without its cost of several microseconds
        return x.reshape(-1), tuple(prod(x.shape[axis:]) for axis in range(1, x.ndim))
    if x.strides[-1] != x.itemsize:
        x = np.ascontiguousarray(x)
    strides = tuple(stride // x.itemsize for stride in x.strides)
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True))
    return np.lib.stride_tricks.as_strided(x, (extent,), (x.itemsize,)), strides[:-1]
