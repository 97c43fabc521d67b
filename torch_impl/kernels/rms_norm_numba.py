"""RMSNorm on a CPU, forward and backward, each in one pass over the rows.

    y = s x ⊙ w,   s = (mean(x²) + eps)^−½
    ∂x = s (∂y ⊙ w) − x s³ mean(∂y ⊙ w ⊙ x),   ∂w = Σ s ∂y ⊙ x

The backward computes s again instead of keeping it. Rows are read where they lie, so that a transposed view comes out
dense. A unit of work is one stretch of rows along the last but one axis, backward a group of them. No result depends on
the number of threads: the gradient of w is summed over at most GROUPS fixed groups of stretches, and these in order.
"""

from math import sqrt

import numpy as np
import torch
from torch import Tensor

from torch_impl.kernels.lanes import BYTES, compiled, inlined, load, splat, store, total
from torch_impl.kernels.memory import strided
from torch_impl.kernels.threads import in_parallel

GROUPS = 64  # of stretches of rows, each with its own sum for the gradient of w
SERIAL = 1 << 18  # below this many numbers in x (0.1 ms) a second thread costs more than it saves
AXES = 3  # before the last


@inlined
def _inverse_rms(x, at, d, eps):
    width = BYTES // x.itemsize
    one = x.dtype.type(1)
    sums, whole = splat(x.dtype.type(0)), d // width * width
    for i in range(0, whole, width):
        x_i = load(x, at + i)
        sums = sums + x_i * x_i
    squares = total(sums)
    for i in range(whole, d):
        squares += x[at + i] * x[at + i]
    return one / sqrt(squares * (one / x.dtype.type(d)) + eps)


@compiled
def _forward(x, w, y, shape, x_strides, w_strides, eps, start, stop):
    """Stretches start … stop − 1: (a, b) of the axes (a, b, c, d). Flat arrays; y is dense."""
    _, n_b, n_c, d = shape
    width = BYTES // x.itemsize
    whole = d // width * width
    for stretch in range(start, stop):
        a, b = stretch // n_b, stretch % n_b
        for c in range(n_c):
            at = a * x_strides[0] + b * x_strides[1] + c * x_strides[2]
            w_at = a * w_strides[0] + b * w_strides[1] + c * w_strides[2]
            to = (stretch * n_c + c) * d
            scale = _inverse_rms(x, at, d, eps)
            scales = splat(scale)
            for i in range(0, whole, width):
                store(y, to + i, load(x, at + i) * scales * load(w, w_at + i))
            for i in range(whole, d):
                y[to + i] = x[at + i] * scale * w[w_at + i]


@compiled
def _backward(dy, x, w, dx, dw, shape, dy_strides, x_strides, w_strides, eps, stretches, start, stop):
    """Groups start … stop − 1 of the stretches. dw (groups, as w) starts at 0; dx is dense."""
    _, n_b, n_c, d = shape
    width = BYTES // x.itemsize
    whole = d // width * width
    groups = dw.size // w.size
    per_feature = x.dtype.type(1) / x.dtype.type(d)
    for group in range(start, stop):
        for stretch in range(group * stretches // groups, (group + 1) * stretches // groups):
            a, b = stretch // n_b, stretch % n_b
            for c in range(n_c):
                at = a * x_strides[0] + b * x_strides[1] + c * x_strides[2]
                dy_at = a * dy_strides[0] + b * dy_strides[1] + c * dy_strides[2]
                w_at = a * w_strides[0] + b * w_strides[1] + c * w_strides[2]
                to, dw_at = (stretch * n_c + c) * d, group * w.size + w_at
                scale = _inverse_rms(x, at, d, eps)
                sums = splat(x.dtype.type(0))
                for i in range(0, whole, width):
                    sums = sums + load(dy, dy_at + i) * load(w, w_at + i) * load(x, at + i)
                dot = total(sums)
                for i in range(whole, d):
                    dot += dy[dy_at + i] * w[w_at + i] * x[at + i]
                back = dot * scale * scale * scale * per_feature
                scales, backs = splat(scale), splat(back)
                for i in range(0, whole, width):
                    x_i, g_i = load(x, at + i), load(dy, dy_at + i) * scales
                    store(dx, to + i, g_i * load(w, w_at + i) - x_i * backs)
                    store(dw, dw_at + i, load(dw, dw_at + i) + g_i * x_i)
                for i in range(whole, d):
                    g = dy[dy_at + i] * scale
                    dx[to + i] = g * w[w_at + i] - x[at + i] * back
                    dw[dw_at + i] += g * x[at + i]


def _rows(x: Tensor) -> tuple[np.ndarray, tuple[int, ...]]:
    """x, not empty, as a flat array, and the strides of AXES axes before the last; those that it lacks are one long."""
    flat, strides = strided(x)
    return flat, (0,) * (AXES - len(strides)) + strides


def _shape(x: Tensor) -> tuple[int, ...]:
    return (1,) * (AXES + 1 - x.ndim) + tuple(x.shape)


def _threads(numbers: int) -> int:
    return 1 if numbers < SERIAL else torch.get_num_threads()


@torch.library.custom_op("twinsep::rms_norm", mutates_args=(), device_types="cpu")
def forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y (…, d), dense, from x (…, d) of at most four axes and a weight (…, d) that broadcasts to it.

    Both float32 or both float64.
    """
    y = torch.empty(x.shape, dtype=x.dtype)
    if y.numel():
        shape, (x_flat, x_strides), (w, w_strides) = _shape(x), _rows(x), _rows(weight.contiguous().expand(x.shape))
        arrays = (x_flat, w, y.numpy().reshape(-1))
        stretches, eps = shape[0] * shape[1], x_flat.dtype.type(eps)
        in_parallel(_forward, stretches, _threads(y.numel()), *arrays, shape, x_strides, w_strides, eps)
    return y


@forward.register_fake
def _(x, weight, eps):  # noqa: ARG001
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@torch.library.custom_op("twinsep::rms_norm_backward", mutates_args=(), device_types="cpu")
def backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The gradients of x, dense, and of weight."""
    dx, dweight = torch.empty(x.shape, dtype=x.dtype), weight.new_zeros(weight.shape)
    if dx.numel():
        shape, (x_flat, x_strides), (w, w_strides) = _shape(x), _rows(x), _rows(weight.contiguous().expand(x.shape))
        dy_flat, dy_strides = _rows(dy)
        stretches, eps = shape[0] * shape[1], x_flat.dtype.type(eps)
        groups = min(stretches, GROUPS)
        dw = np.zeros((groups, w.size), x_flat.dtype)
        arrays = (dy_flat, x_flat, w, dx.numpy().reshape(-1), dw.reshape(-1))
        strides = (dy_strides, x_strides, w_strides)
        in_parallel(_backward, groups, _threads(dx.numel()), *arrays, shape, *strides, eps, stretches)
        dweight.numpy()[:] = dw.sum(0, dtype=np.float64).reshape(weight.shape)
    return dx, dweight


@backward.register_fake
def _(dy, x, weight, eps):  # noqa: ARG001
    return torch.empty(x.shape, dtype=x.dtype, device=x.device), weight.new_empty(weight.shape)


def _save(ctx, inputs, output) -> None:  # noqa: ARG001
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, dy):
    x, weight = ctx.saved_tensors  # read once: under checkpoint a second reading is an error
    return *backward(dy, x, weight, ctx.eps), None


forward.register_autograd(_gradients, setup_context=_save)
