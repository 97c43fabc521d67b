"""The selective scan on a CPU, as PyTorch operators."""

from typing import Any

import torch
from torch import Tensor

from torch_impl.kernels.memory import array
from torch_impl.kernels.operator import operator
from twinsep.kernels import selective_scan as loops


@operator("selective_scan")
def forward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor]:
    """Return y (b, l, e) and, if `keep`, the states before all chunks except the first (b, chunks − 1, n, padded e)."""
    y, states = u.new_empty(u.shape), _states(u, A, keep)
    arrays = [*_arrays(u, delta, A, B, C, D), _gate(u, z), y.numpy(), states.numpy()]
    loops.forward(*arrays, threads=torch.get_num_threads())
    return y, states


def _arrays(*tensors: Tensor) -> Any:
    # PyTorch copies on all threads, NumPy on one.
    return [array(x.contiguous()) for x in tensors]


def _gate(u: Tensor, z: Tensor | None):
    return array(u.new_empty(0, 0, 0) if z is None else z)


def _states(u: Tensor, A: Tensor, keep: bool) -> Tensor:
    return u.new_empty(loops.shape_of_states(u.shape, A.shape[1], u.element_size()) if keep else (0,))


@forward.register_fake()
def _(u, delta, A, B, C, D, z, keep):  # noqa: ARG001
    return u.new_empty(u.shape), _states(u, A, keep)


@operator("selective_scan_backward")
def backward(
    dy: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    states: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta, A, B, C, D and z (an empty tensor without z)."""
    gradients = _empty(u, delta, A, B, C, D, z)
    arrays = [*_arrays(dy, u, delta, A, B, C, D), _gate(u, z), states.numpy(), *(x.numpy() for x in gradients)]
    loops.backward(*arrays, threads=torch.get_num_threads())
    return gradients


def _empty(u, delta, A, B, C, D, z) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    du, ddelta, dA, dB, dC, dD = (x.new_empty(x.shape) for x in (u, delta, A, B, C, D))
    return du, ddelta, dA, dB, dC, dD, u.new_empty((0, 0, 0) if z is None else u.shape)


@backward.register_fake()
def _(dy, u, delta, A, B, C, D, z, states):  # noqa: ARG001
    return _empty(u, delta, A, B, C, D, z)


def _save(ctx, inputs, output) -> None:
    *tensors, keep = inputs
    if not keep:
        raise RuntimeError("twinsep::selective_scan: gradients need the states that keep=True saves")
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, output[1])


def _gradients(ctx, dy, _dstates):
    saved = ctx.saved_tensors  # read once: under checkpoint a second read is an error
    *gradients, dz = backward(dy, *saved)
    return *gradients, None if saved[6] is None else dz, None


forward.register_autograd(_gradients, setup_context=_save)
