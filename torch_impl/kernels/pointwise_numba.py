"""RMSNorm and the gate of SwiGLU on a CPU, each in one pass over memory, as PyTorch operators.

    rms_norm(x, w) = w ⊙ x r, r = (mean(x²) + eps)^(−1/2) over the last axis        gate(a, b) = a ⊙ silu(b)

As tensor operations they take five and two passes, each limited by the memory's bandwidth. The backward pass recomputes
r and silu. Results do not depend on the number of threads: the gradient of w is summed within at most GROUPS fixed
groups of rows, then over the groups in order.
"""

from math import log, prod, sqrt

import numpy as np
import torch
from torch import Tensor

from torch_impl.kernels.memory import rows
from torch_impl.kernels.operator import operator
from twinsep.kernels.simd import BYTES, aligned, compiled, inlined, load, sigmoid, splat, store, total
from twinsep.kernels.threads import in_parallel

GROUPS = 64  # largest number of groups of rows, each with its own sum for the gradient of w
SERIAL = 1 << 17  # size (0.1 ms of work) below which a second thread costs more than it saves
BLOCK = 1 << 12  # numbers per unit of work of the gate
LOG2E = 1 / log(2)  # exp(x) = 2^(x log2 e)


@inlined
def _start(row, shape, strides):
    """Offset of a row of x."""
    if shape[0] * shape[1] == 1:
        return row * strides[2]
    outer, inner = row // shape[2], row % shape[2]
    return outer // shape[1] * strides[0] + outer % shape[1] * strides[1] + inner * strides[2]


@inlined
def _reciprocal(squares, rest, d, eps):
    """r, from the sum of squares (lanes of `squares`, plus `rest`); d and eps have the dtype of x."""
    return sqrt(d / (total(squares) + rest + d * eps))


@compiled
def _norm(x, w, y, eps, d, shape, strides, start, stop):
    """Rows start … stop − 1 of the contiguous y; `shape` and `strides` (three axes) locate the rows of x."""
    width = BYTES // x.itemsize
    whole = d // width * width
    zero = splat(x.dtype.type(0))
    for row in range(start, stop):
        here = _start(row, shape, strides)
        squares, rest = zero, x.dtype.type(0)
        for i in range(0, whole, width):
            x_i = load(x, here + i)
            squares = squares + x_i * x_i
        for i in range(whole, d):
            rest += x[here + i] * x[here + i]
        r = _reciprocal(squares, rest, x.dtype.type(d), eps)
        r_lanes = splat(r)
        for i in range(0, whole, width):
            store(y, row * d + i, load(x, here + i) * r_lanes * load(w, i))
        for i in range(whole, d):
            y[row * d + i] = x[here + i] * r * w[i]


@compiled
def _norm_backward(dy, x, w, dx, dw, eps, d, count, shape, strides, start, stop):
    """Groups start … stop − 1 of the rows of the contiguous dy. With g = w ⊙ ∂y:

    ∂x = r g − x r³ mean(g ⊙ x), ∂w = Σ ∂y ⊙ x r. dw (groups, d) is zero on entry.
    """
    width = BYTES // x.itemsize
    whole = d // width * width
    zero = splat(x.dtype.type(0))
    groups = dw.size // d
    one = aligned(d, x)
    for group in range(start, stop):
        one[:] = 0
        for row in range(group * count // groups, (group + 1) * count // groups):
            here = _start(row, shape, strides)
            squares, products = zero, zero
            rest_squares, rest_products = x.dtype.type(0), x.dtype.type(0)
            for i in range(0, whole, width):
                x_i = load(x, here + i)
                squares = squares + x_i * x_i
                products = products + load(dy, row * d + i) * load(w, i) * x_i
            for i in range(whole, d):
                rest_squares += x[here + i] * x[here + i]
                rest_products += dy[row * d + i] * w[i] * x[here + i]
            r = _reciprocal(squares, rest_squares, x.dtype.type(d), eps)
            c = (total(products) + rest_products) / x.dtype.type(d) * r * r * r  # this order avoids underflow
            r_lanes, c_lanes = splat(r), splat(c)
            for i in range(0, whole, width):
                x_i, dy_i = load(x, here + i), load(dy, row * d + i)
                store(dx, row * d + i, r_lanes * (load(w, i) * dy_i) - c_lanes * x_i)
                store(one, i, load(one, i) + dy_i * (x_i * r_lanes))
            for i in range(whole, d):
                dx[row * d + i] = r * (w[i] * dy[row * d + i]) - c * x[here + i]
                one[i] += dy[row * d + i] * (x[here + i] * r)
        dw[group * d : (group + 1) * d] += one


@inlined
def _gated(a, b, one, minus_log2e):
    return a * (b * sigmoid(b, one, minus_log2e))


@inlined
def _gate_slope(a, b, one, minus_log2e):
    """a silu'(b): d silu(b)/db = s (1 + b (1 − s)), s = sigmoid(b)."""
    s = sigmoid(b, one, minus_log2e)
    return a * (s * (one + b * (one - s)))


@compiled
def _gate(a, b, y, start, stop):
    """y = a ⊙ silu(b) for blocks start … stop − 1 of BLOCK numbers each."""
    width = BYTES // a.itemsize
    one, minus_log2e = splat(a.dtype.type(1)), splat(a.dtype.type(-LOG2E))
    last = aligned(3 * width, a)
    for at in range(start * BLOCK, min(stop * BLOCK, a.size), width):
        room = a.size - at
        if room >= width:
            store(y, at, _gated(load(a, at), load(b, at), one, minus_log2e))
        else:
            last[:room], last[width : width + room] = a[at:], b[at:]
            store(last, 0, _gated(load(last, 0), load(last, width), one, minus_log2e))
            y[at:] = last[:room]


@compiled
def _gate_backward(dy, a, b, da, db, start, stop):
    """∂a = ∂y ⊙ silu(b), ∂b = ∂y ⊙ a ⊙ silu'(b)."""
    width = BYTES // a.itemsize
    one, minus_log2e = splat(a.dtype.type(1)), splat(a.dtype.type(-LOG2E))
    last = aligned(3 * width, a)
    for at in range(start * BLOCK, min(stop * BLOCK, a.size), width):
        room = a.size - at
        if room >= width:
            dy_i, a_i, b_i = load(dy, at), load(a, at), load(b, at)
            store(da, at, _gated(dy_i, b_i, one, minus_log2e))
            store(db, at, _gate_slope(dy_i * a_i, b_i, one, minus_log2e))
        else:
            last[:room], last[width : width + room], last[2 * width : 2 * width + room] = dy[at:], a[at:], b[at:]
            dy_i, a_i, b_i = load(last, 0), load(last, width), load(last, 2 * width)
            store(last, 0, _gated(dy_i, b_i, one, minus_log2e))
            store(last, width, _gate_slope(dy_i * a_i, b_i, one, minus_log2e))
            da[at:], db[at:] = last[:room], last[width : width + room]


def _threads(numbers: int) -> int:
    return 1 if numbers < SERIAL else torch.get_num_threads()


def _flat(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy().reshape(-1)


# ---------------------------------------------------------------------------- RMSNorm


@operator("rms_norm")
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the RMSNorm of x (…, d) with weight (d,), both float32 or both float64; the result is contiguous."""
    y = x.new_empty(x.shape)
    if y.numel():
        flat, shape, strides = rows(x)
        eps_typed = flat.dtype.type(eps)
        arrays = (flat, _flat(weight), y.numpy().reshape(-1), eps_typed, x.shape[-1], shape, strides)
        in_parallel(_norm, prod(shape), _threads(y.numel()), *arrays)
    return y


@rms_norm.register_fake()
def _(x, weight, eps):  # noqa: ARG001
    return x.new_empty(x.shape)


@operator("rms_norm_backward")
def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and weight."""
    dx, dweight, d = x.new_empty(x.shape), weight.new_zeros(weight.shape), x.shape[-1]
    if dx.numel():
        flat, shape, strides = rows(x)
        count = prod(shape)
        # NumPy sums the groups: for so few numbers PyTorch would wake its other threads and wait for them.
        groups = min(count, GROUPS)
        dw = np.zeros((groups, d), flat.dtype)
        arrays = (_flat(dy), flat, _flat(weight), dx.numpy().reshape(-1), dw.reshape(-1), flat.dtype.type(eps))
        in_parallel(_norm_backward, groups, _threads(dx.numel()), *arrays, d, count, shape, strides)
        dweight.numpy()[:] = dw.sum(0, dtype=np.float64)
    return dx, dweight


@rms_norm_backward.register_fake()
def _(dy, x, weight, eps):  # noqa: ARG001
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _save_norm(ctx, inputs, output) -> None:  # noqa: ARG001
    x, weight, ctx.eps = inputs
    ctx.save_for_backward(x, weight)


def _norm_gradients(ctx, dy):
    x, weight = ctx.saved_tensors  # read once: under checkpoint a second read is an error
    return *rms_norm_backward(dy, x, weight, ctx.eps), None


rms_norm.register_autograd(_norm_gradients, setup_context=_save_norm)


# ---------------------------------------------------------------------------- the gate of SwiGLU


@operator("silu_gate")
def silu_gate(a: Tensor, b: Tensor) -> Tensor:
    """Return a ⊙ silu(b), contiguous, for a and b of one shape, both float32 or both float64."""
    y = a.new_empty(a.shape)
    in_parallel(_gate, -(-a.numel() // BLOCK), _threads(a.numel()), _flat(a), _flat(b), y.numpy().reshape(-1))
    return y


@silu_gate.register_fake()
def _(a, b):  # noqa: ARG001
    return a.new_empty(a.shape)


@operator("silu_gate_backward")
def silu_gate_backward(dy: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of a and b."""
    da, db = a.new_empty(a.shape), b.new_empty(b.shape)
    arrays = (_flat(dy), _flat(a), _flat(b), da.numpy().reshape(-1), db.numpy().reshape(-1))
    in_parallel(_gate_backward, -(-a.numel() // BLOCK), _threads(a.numel()), *arrays)
    return da, db


@silu_gate_backward.register_fake()
def _(dy, a, b):  # noqa: ARG001
    return a.new_empty(a.shape), b.new_empty(b.shape)


def _save_gate(ctx, inputs, output) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _gate_gradients(ctx, dy):
    a, b = ctx.saved_tensors
    return silu_gate_backward(dy, a, b)


silu_gate.register_autograd(_gate_gradients, setup_context=_save_gate)
