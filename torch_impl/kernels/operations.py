"""Floating-point operations, counted as they are done: matrix products and convolutions, and the scan and attention of
our own kernels. A multiplication and an addition count as two, an exponential as one; elementwise operations and norms
are left out, as is usual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def count(function: Callable[[], Any]) -> int:
    """Operations of one call."""
    with FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
        function()
    return counter.get_total_flops()


def _formulas() -> dict[Any, Callable[..., int]]:
    from torch_impl.kernels import cpu_kernels

    if cpu_kernels() is None:
        return {}
    ours = torch.ops.twinsep
    return {ours.selective_scan: _scan, ours.attention: _attention, ours.depthwise_silu: _depthwise}


def _scan(u: torch.Size, _delta: torch.Size, A: torch.Size, *_: Any, **__: Any) -> int:
    """Per state: Δ A, its exponential, Δ u B (one, and Δ u once a channel), a h + …, C · h: 1 + 1 + 1 + 2 + 2."""
    b, l, e = u
    return 7 * b * l * e * A[1]


def _attention(q: torch.Size, k: torch.Size, _v: torch.Size, *_: Any, **__: Any) -> int:
    """q kᵀ and the weighted sum of v, (b, l, h, e) and (b, m, h, e)."""
    b, l, h, e = q
    return 4 * b * l * k[1] * h * e


def _depthwise(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    b, l, d = x
    return 2 * b * l * d * weight[2]
