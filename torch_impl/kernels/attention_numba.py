"""Attention with narrow heads on a CPU, as PyTorch operators."""

from typing import Any

import torch
from torch import Tensor

from torch_impl.kernels.memory import array
from torch_impl.kernels.operator import operator
from twinsep.kernels import attention as loops


@operator("attention")
def forward(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Attend from q (b, queries, heads, e) to k, v (b, keys, heads, e).

    Returns the output, shaped as q, and the logarithm of the softmax's sum (b, heads, queries) for the backward pass.
    All inputs are float32 or all float64, with any strides. Raises ValueError without a key.
    """
    if k.shape[1] == 0:
        raise ValueError("attention needs at least one key")
    b, queries, heads, _ = q.shape
    o, logsum = q.new_empty(q.shape), q.new_empty(b, heads, queries)
    loops.forward(array(q), array(k), array(v), o.numpy(), logsum.numpy(), threads=torch.get_num_threads())
    return o, logsum


@forward.register_fake()
def _(q, k, v):  # noqa: ARG001
    b, queries, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(b, heads, queries)


@operator("attention_backward")
def backward(do: Tensor, o: Tensor, q: Tensor, k: Tensor, v: Tensor, logsum: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v."""
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    arrays: Any = [array(x) for x in (do, o, q, k, v, logsum, dq, dk, dv)]
    loops.backward(*arrays, threads=torch.get_num_threads())
    return dq, dk, dv


@backward.register_fake()
def _(do, o, q, k, v, logsum):  # noqa: ARG001
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx, inputs, output) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs, *output)


def _gradients(ctx, do, _dlogsum):
    q, k, v, o, logsum = ctx.saved_tensors  # read once: under checkpoint a second read is an error
    return backward(do, o, q, k, v, logsum)


forward.register_autograd(_gradients, setup_context=_save)
