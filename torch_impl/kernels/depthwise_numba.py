"""Depthwise convolution along the length fused with SiLU, on a CPU, as PyTorch operators."""

from typing import Any

import torch
from torch import Tensor

from torch_impl.kernels.memory import array
from torch_impl.kernels.operator import operator
from twinsep.kernels import depthwise as loops


@operator("depthwise_silu")
def forward(x: Tensor, weight: Tensor, bias: Tensor, left: int) -> Tensor:
    """Return y (b, l, d) from x (b, l, d), weight (d, 1, kernel), bias (d,), all of one dtype; left < kernel."""
    y = x.new_empty(x.shape)
    arrays: Any = (array(x), *(w.detach().contiguous().numpy() for w in (weight, bias)), y.numpy())
    loops.forward(*arrays, left=left, threads=torch.get_num_threads())
    return y


@forward.register_fake()
def _(x, weight, bias, left):  # noqa: ARG001
    return x.new_empty(x.shape)


@operator("depthwise_silu_backward")
def backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, left: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight and bias."""
    gradients = x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)
    weights = (w.detach().contiguous().numpy() for w in (weight, bias))
    arrays: Any = (array(dy), array(x), *weights, *(g.numpy() for g in gradients))
    loops.backward(*arrays, left=left, threads=torch.get_num_threads())
    return gradients


@backward.register_fake()
def _(dy, x, weight, bias, left):  # noqa: ARG001
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _save(ctx, inputs, output) -> None:  # noqa: ARG001
    *tensors, ctx.left = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, dy):
    x, weight, bias = ctx.saved_tensors  # read once: under checkpoint a second read is an error
    return *backward(dy, x, weight, bias, ctx.left), None


forward.register_autograd(_gradients, setup_context=_save)
