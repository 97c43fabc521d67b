"""Depthwise convolution along the length fused with SiLU, on a CPU, forward and backward, compiled by Numba.

    y_t = silu(a_t),   a_t = bias + Σ_j w_j ⊙ x_{t−left+j}

x is padded with `left` zeros before its l frames and kernel − 1 − left after, so that y has l frames.

A sequence is one row of l·d numbers, in which a step in time is a step of d and w repeats with period d. Vectors run
along that row across the ends of frames, so that no channel is padded: w and bias are repeated up to the least common
multiple of d and the vector's width. Only the last vector of a sequence may be partial. Each sequence is first copied,
with its padding, to a buffer that fits the cache.

The backward pass recomputes a. A unit of work is one sequence, in the backward pass a group of sequences. Results do
not depend on the number of threads: the gradients of w and bias are summed within at most GROUPS fixed groups of
sequences, then over the groups in order.
"""

from math import lcm, log

import numpy as np

from twinsep.kernels.arrays import strided
from twinsep.kernels.simd import BYTES, compiled, exp2, inlined, load, splat, store
from twinsep.kernels.threads import in_parallel

GROUPS = 64  # largest number of groups of sequences, each with its own sums for the gradients of w and bias
SERIAL = 1 << 17  # size of x (0.1 ms of work) below which a second thread costs more than it saves
LOG2E = 1 / log(2)  # exp(x) = 2^(x log2 e)


@inlined
def _copy(source, start, target, to, count):
    width = BYTES // source.itemsize
    whole = count // width * width
    for i in range(0, whole, width):
        store(target, to + i, load(source, start + i))
    for i in range(whole, count):
        target[to + i] = source[start + i]


@inlined
def _copy_sequence(source, start, frame_stride, target, to, l, d):
    """Copy l frames of d channels, `frame_stride` apart in the source, contiguous in the target."""
    if frame_stride == d:
        _copy(source, start, target, to, l * d)
    else:
        for t in range(l):
            _copy(source, start + t * frame_stride, target, to + t * d, d)


@inlined
def _convolve(padded, at, w, bias, channel, d, kernel):
    """The vector of a at offset `at` of the sequence; `channel` is its offset in w and bias."""
    a = load(bias, channel)
    for j in range(kernel):
        a = a + load(w, j * bias.size + channel) * load(padded, at + j * d)
    return a


@compiled
def _forward(x, w, bias, y, shape, strides, start, stop):
    """Sequences start … stop − 1. All arrays are flat; w (kernel, period) and bias (period,) repeat with period d."""
    l, d, kernel, left = shape
    width = BYTES // x.itemsize
    one, minus_log2e = splat(x.dtype.type(1)), splat(x.dtype.type(-LOG2E))
    padded, last = np.zeros((l + kernel - 1) * d + width, x.dtype), np.empty(width, x.dtype)
    for sequence in range(start, stop):
        _copy_sequence(x, sequence * strides[0], strides[1], padded, left * d, l, d)
        channel = 0
        for at in range(0, l * d, width):
            a = _convolve(padded, at, w, bias, channel, d, kernel)
            silu = a / (one + exp2(minus_log2e * a))
            here, room = sequence * l * d + at, l * d - at
            if room >= width:
                store(y, here, silu)
            else:
                store(last, 0, silu)
                _copy(last, 0, y, here, room)
            channel = channel + width if channel + width < bias.size else 0


@inlined
def _backward_activation(x, w, bias, g, shape):
    """g = ∂a = ∂y ⊙ silu'(a) of one sequence, silu'(a) = s (1 + a (1 − s)) with s = sigmoid(a).

    x is padded. So is g, by kernel − 1 − left frames before and `left` after. On entry g holds ∂y.
    """
    l, d, kernel, left = shape
    width = BYTES // x.itemsize
    one, minus_log2e = splat(x.dtype.type(1)), splat(x.dtype.type(-LOG2E))
    first, channel = (kernel - 1 - left) * d, 0
    for at in range(0, l * d, width):
        a = _convolve(x, at, w, bias, channel, d, kernel)
        s = one / (one + exp2(minus_log2e * a))
        store(g, first + at, load(g, first + at) * (s * (one + a * (one - s))))
        channel = channel + width if channel + width < bias.size else 0
    g[first + l * d :] = 0  # the last vector may have written NaN beyond the sequence


@inlined
def _backward_inputs(x, w, g, dx, here, gap, dw, dbias, shape, last):
    """The gradients of one sequence from its g, with x and g padded; dx begins at `here`, with a gap after each period.

    ∂x_t = Σ_j w_j ⊙ g_{t+left−j}, ∂w_j = Σ_t x_t ⊙ g_{t+left−j}, ∂bias = Σ_t g_t.
    """
    l, d, kernel, left = shape
    width = BYTES // x.itemsize
    period, zero = dbias.size, splat(x.dtype.type(0))
    channel = 0
    for at in range(0, l * d, width):
        x_t, dx_t = load(x, left * d + at), zero
        for j in range(kernel):
            g_j = load(g, at + (kernel - 1 - j) * d)
            dx_t = dx_t + load(w, j * period + channel) * g_j
            store(dw, j * period + channel, load(dw, j * period + channel) + x_t * g_j)
        store(dbias, channel, load(dbias, channel) + load(g, at + (kernel - 1 - left) * d))
        room = l * d - at
        if room >= width:
            store(dx, here, dx_t)
        else:
            store(last, 0, dx_t)
            _copy(last, 0, dx, here, room)
        channel, here = (channel + width, here + width) if channel + width < period else (0, here + width + gap)


@compiled
def _backward(dy, x, w, bias, dx, dw, dbias, shape, strides, b, start, stop):
    """Groups start … stop − 1. dw (groups, kernel, period) and dbias (groups, period) are zero on entry."""
    l, d, kernel, left = shape
    width = BYTES // x.itemsize
    groups = dbias.size // bias.size
    gap = strides[5] - d  # not 0 only if a frame is one period
    size = (l + kernel - 1) * d + width
    padded, g, last = np.zeros(size, x.dtype), np.zeros(size, x.dtype), np.empty(width, x.dtype)
    dw_one, dbias_one = np.empty(w.size, x.dtype), np.empty(bias.size, x.dtype)
    for group in range(start, stop):
        for sequence in range(group * b // groups, (group + 1) * b // groups):
            _copy_sequence(x, sequence * strides[0], strides[1], padded, left * d, l, d)
            _copy_sequence(dy, sequence * strides[2], strides[3], g, (kernel - 1 - left) * d, l, d)
            _backward_activation(padded, w, bias, g, shape)
            # Sum within each sequence first, then over sequences: smaller rounding errors than one long sum.
            dw_one[:] = 0
            dbias_one[:] = 0
            _backward_inputs(padded, w, g, dx, sequence * strides[4], gap, dw_one, dbias_one, shape, last)
            for i in range(w.size):
                dw[group * w.size + i] += dw_one[i]
            for i in range(bias.size):
                dbias[group * bias.size + i] += dbias_one[i]


def forward(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, y: np.ndarray, *, left: int, threads: int) -> None:
    """Fill the contiguous y (b, l, d) from x (b, l, d), weight (d, 1, kernel) and bias (d,); left < kernel.

    All are float32 or all float64; x may have any strides.
    """
    if not y.size:
        return
    (b, l, d), kernel = x.shape, weight.shape[2]
    flat, strides = strided(x)
    arrays = (flat, *_repeated(weight, bias), y.reshape(-1))
    in_parallel(_forward, b, _threads(y.size, threads), *arrays, (l, d, kernel, left), strides)


def backward(
    dy: np.ndarray,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    dx: np.ndarray,
    dweight: np.ndarray,
    dbias: np.ndarray,
    *,
    left: int,
    threads: int,
) -> None:
    """Fill the gradients of x, weight and bias; dy may have any strides, dx is contiguous or a slice of channels."""
    if not dx.size:
        dweight[...] = dbias[...] = 0
        return
    (b, l, d), kernel = x.shape, weight.shape[2]
    (x_flat, x_strides), (dy_flat, dy_strides) = strided(x), strided(dy)
    w_repeated, bias_repeated = _repeated(weight, bias)
    groups = min(b, GROUPS)
    dw = np.zeros((groups, kernel, bias_repeated.size), x_flat.dtype)
    db = np.zeros((groups, bias_repeated.size), x_flat.dtype)
    # Vectors across the ends of frames cannot leave gaps between them.
    target = dx if dx.flags.c_contiguous or bias_repeated.size == d else np.empty(dx.shape, dx.dtype)
    dx_flat, dx_strides = strided(target)
    arrays = (dy_flat, x_flat, w_repeated, bias_repeated, dx_flat, dw.reshape(-1), db.reshape(-1))
    strides = (*x_strides, *dy_strides, *dx_strides)
    in_parallel(_backward, groups, _threads(dx.size, threads), *arrays, (l, d, kernel, left), strides, b)
    if target is not dx:
        dx[...] = target
    dweight[:, 0] = dw.reshape(groups, kernel, -1, d).sum((0, 2), dtype=np.float64).T
    dbias[...] = db.reshape(groups, -1, d).sum((0, 1), dtype=np.float64)


def _threads(numbers: int, threads: int) -> int:
    return 1 if numbers < SERIAL else threads


def _repeated(weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat w (kernel, period) and bias (period,), repeated to the least common multiple of d and the vector's width."""
    (d, _, kernel), width = weight.shape, BYTES // weight.itemsize
    times = lcm(d, width) // d
    w = np.ascontiguousarray(weight.reshape(d, kernel).T)
    return (w if times == 1 else np.tile(w, times)).reshape(-1), bias if times == 1 else np.tile(bias, times)
