"""Counts of floating-point operations: matrix products, convolutions, and our scan and attention kernels.

A multiplication and an addition count as two operations, an exponential as one; elementwise operations and norms are
left out, as is usual.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from torch_impl.networks import build
from twinsep.config import Config


def model_cost(config: Config) -> dict[str, float]:
    """Count the cost of a model's forward pass over one training segment, without computing it.

    Returns ``parameters``, ``flop_per_audio_second``, ``exponentials_per_audio_second``, and
    ``kept_mib_per_audio_second``: MiB of float32 activations saved for the backward pass.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build(config)
        mixture = torch.empty(1, 2, config.segment_samples)
        saved: dict[int, Tensor] = {}

        def save(tensor: Tensor) -> Tensor:
            saved[id(tensor.untyped_storage())] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
            result = model(mixture)  # keeps the saved tensors alive
        with torch.inference_mode():
            operations, powers = count(lambda: model(mixture)), exponentials(lambda: model(mixture))
    seconds = config.training.segment_seconds
    saved_mib = sum(tensor.untyped_storage().nbytes() for tensor in saved.values()) / 2**20
    del result
    return {
        "parameters": model.parameter_count,
        "flop_per_audio_second": operations / seconds,
        "exponentials_per_audio_second": powers / seconds,
        "kept_mib_per_audio_second": round(saved_mib / seconds, 1),
    }


def count(function: Callable[[], Any]) -> int:
    """Count the floating-point operations of one call."""
    with FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
        function()
    return counter.get_total_flops()


def exponentials(function: Callable[[], Any]) -> int:
    """Count the exponentials of one call: decays of the scan and weights of attention."""
    from torch_impl.kernels import cpu_kernels

    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    formulas: dict[Any, Callable[..., int]] = {attention: lambda q, k, *_, **__: q[:-1].numel() * k[-2]}
    if cpu_kernels() is not None:
        formulas |= {
            torch.ops.twinsep.selective_scan: lambda u, _delta, A, *_, **__: u.numel() * A[1],
            torch.ops.twinsep.mamba: lambda x, *weights, **__: prod(x[:2]) * weights[6].numel(),
            torch.ops.twinsep.attention: lambda q, k, *_, **__: q[:-1].numel() * k[1],
        }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        function()
    return sum(n for operation, n in counter.get_flop_counts().get("Global", {}).items() if operation in formulas)


def _formulas() -> dict[Any, Callable[..., int]]:
    from torch_impl.kernels import cpu_kernels

    formulas: dict[Any, Callable[..., int]] = {torch.ops.aten.mkldnn_rnn_layer: _lstm}
    if cpu_kernels() is not None:
        ours = torch.ops.twinsep
        formulas |= {ours.selective_scan: _scan, ours.attention: _attention, ours.depthwise_silu: _depthwise}
        formulas[ours.mamba] = _mamba
    return formulas


def _lstm(x: torch.Size, w_ih: torch.Size, w_hh: torch.Size, *_: Any, **__: Any) -> int:
    """Both matrices times every frame of x (l, b, d)."""
    return 2 * x[0] * x[1] * (w_ih.numel() + w_hh.numel())


def _scan(u: torch.Size, _delta: torch.Size, A: torch.Size, *_: Any, **__: Any) -> int:
    """Per frame and state: Δ A (1), its exponential (1), (Δ u) B (1), a h + … (2), C · h (2)."""
    b, l, e = u
    return 7 * b * l * e * A[1]


def _mamba(x: torch.Size, *weights: Any, **__: Any) -> int:
    """The four products, the convolution and the scan of x (b, l, d), with the weights of ``kernels.mamba.Weights``."""
    b, l, _ = x
    in_proj, conv, _, x_proj, dt_proj, _, A, _, out_proj = weights[:9]
    products = sum(2 * b * l * w.numel() for w in (in_proj, x_proj, dt_proj, out_proj))
    u = torch.Size((b, l, A[0]))
    return products + _depthwise(u, conv) + _scan(u, u, A)


def _attention(q: torch.Size, k: torch.Size, _v: torch.Size, *_: Any, **__: Any) -> int:
    """q kᵀ and the weighted sum of v, for q (b, l, h, e) and k, v (b, m, h, e)."""
    b, l, h, e = q
    return 4 * b * l * k[1] * h * e


def _depthwise(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    b, l, d = x
    return 2 * b * l * d * weight[2]
