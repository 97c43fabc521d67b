"""Arrays as the flat ones that compiled loops take."""

import numpy as np


def strided(x: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """The memory of x, not empty, as a flat array, and the strides of all axes but the last, which is dense.

    Copied only where the last axis is not dense: parts of wider arrays and transposed ones serve as they are.
    """
    if x.strides[-1] != x.itemsize:
        x = np.ascontiguousarray(x)
    strides = tuple(stride // x.itemsize for stride in x.strides)
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True))
    return np.lib.stride_tricks.as_strided(x, (extent,), (x.itemsize,)), strides[:-1]
