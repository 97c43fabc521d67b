"""The layer Mamba on a CPU, as PyTorch operators."""

from typing import Any

import torch
from torch import Tensor

from torch_impl.kernels.operator import operator
from twinsep.kernels import mamba as loops
from twinsep.kernels.mamba import Saved, Weights


@operator("mamba")
def forward(
    x: Tensor,
    in_proj: Tensor,
    conv: Tensor,
    conv_bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    out_proj: Tensor,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return y (b, l, d) and the arrays of :class:`Saved`; without `keep` the states are empty.

    The weights are those of :class:`Weights`, all float32 or all float64.
    """
    weights = Weights(in_proj, conv, conv_bias, x_proj, dt_proj, dt_bias, A_log, D, out_proj)
    results = _results(x, weights, keep)
    y, *saved = (result.numpy() for result in results)
    loops.forward(_dense(x), Weights(*map(_dense, weights)), y, Saved(*saved), threads=torch.get_num_threads())
    return results


def _results(x: Tensor, weights: Weights, keep: bool) -> Any:
    shapes = loops.shapes_of_saved(x.shape, weights, x.element_size(), keep=keep)
    return x.new_empty(x.shape), *(x.new_empty(shape) for shape in shapes)


def _dense(x: Tensor) -> Any:
    return x.detach().contiguous().numpy()


@forward.register_fake()
def _(x, *arguments):
    *weights, keep = arguments
    return _results(x, Weights(*weights), keep)


@operator("mamba_backward")
def backward(dy: Tensor, x: Tensor, weights: list[Tensor], saved: list[Tensor]) -> list[Tensor]:
    """Return the gradients of x and of the weights."""
    gradients = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, *weights)]
    dx, *others = (gradient.numpy() for gradient in gradients)
    arrays = _dense(dy), _dense(x), Weights(*map(_dense, weights)), Saved(*(t.numpy() for t in saved))
    loops.backward(*arrays, dx, Weights(*others), threads=torch.get_num_threads())
    return gradients


@backward.register_fake()
def _(dy, x, weights, saved):  # noqa: ARG001
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, *weights)]


def _save(ctx, inputs, output) -> None:
    *tensors, keep = inputs
    if not keep:
        raise RuntimeError("twinsep::mamba: gradients need the states that keep=True saves")
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[1:])


def _gradients(ctx, dy, *_):
    x, *others = ctx.saved_tensors  # read once: under checkpoint a second read is an error
    count = len(Weights._fields)
    return *backward(dy, x, others[:count], others[count:]), None


forward.register_autograd(_gradients, setup_context=_save)
