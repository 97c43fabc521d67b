"""Mid and side of stereo signals, without matrix products, which a reduced precision would round."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace
from jaxtyping import Float


def mid_side(x: Float[Any, "*batch 2 s"]) -> Float[Any, "*batch 2 s"]:
    """Convert left L and right R (..., 2, S) to mid (L + R)/2 and side (L − R)/2."""
    left, right = x[..., 0, :], x[..., 1, :]
    return array_namespace(x).stack([(left + right) / 2, (left - right) / 2], axis=-2)


def left_right(x: Float[Any, "*batch 2 s"]) -> Float[Any, "*batch 2 s"]:
    """Convert mid M and side S (..., 2, S) to left M + S and right M − S: the inverse of :func:`mid_side`."""
    mid, side = x[..., 0, :], x[..., 1, :]
    return array_namespace(x).stack([mid + side, mid - side], axis=-2)
