"""The depthwise convolution over the length and the SiLU after it, fused, on a CPU, forward and backward.

    y_t = silu(a_t),   a_t = bias + Σ_j w_j ⊙ x_{t−left+j}

x is zero outside its l frames, and y has as many: `left` zeros stand before x, kernel − 1 − left after it.

Frame after frame x is one row of l d numbers in which the same channel comes every d: a step in time is a step of d,
and w repeats with period d. So the vectors run along that row, across the ends of frames, and no channel is padded:
w and bias are laid out up to the period that d and the vector have in common. Only the last vector of a sequence may
be cut short. Each sequence is copied first to a buffer with the zeros about it, which fits the cache.

The backward computes a again instead of keeping it. A unit of work is one sequence, backward a group of them. No result
depends on the number of threads: the gradients of w and bias are summed over at most GROUPS fixed groups of sequences,
and these in order.
"""

from math import lcm, log

import numpy as np
import torch
from torch import Tensor

from torch_impl.kernels.lanes import BYTES, exp2, load, splat, store
from torch_impl.kernels.selective_scan_numba import compiled
from torch_impl.kernels.threads import in_parallel

GROUPS = 64  # of sequences, each with its own sums for the gradients of w and bias
SERIAL = 1 << 15  # below this many numbers in x (0.03 ms) a second thread costs more than it saves
LOG2E = 1 / log(2)  # exp(x) = 2^(x log2 e)


@compiled
def _copy(source, start, target, to, count):
    width = BYTES // source.itemsize
    whole = count // width * width
    for i in range(0, whole, width):
        store(target, to + i, load(source, start + i))
    for i in range(whole, count):
        target[to + i] = source[start + i]


@compiled
def _copy_sequence(source, start, frame_stride, target, to, l, d):
    """l frames of d channels, `frame_stride` apart in the source and side by side in the target."""
    if frame_stride == d:
        _copy(source, start, target, to, l * d)
    else:
        for t in range(l):
            _copy(source, start + t * frame_stride, target, to + t * d, d)


@compiled
def _convolve(padded, at, w, bias, channel, d, kernel):
    """The vector of a that starts at number `at` of the sequence; `channel` is where it starts in w and bias."""
    a = load(bias, channel)
    for j in range(kernel):
        a = a + load(w, j * bias.size + channel) * load(padded, at + j * d)
    return a


@compiled
def _forward(x, w, bias, y, shape, strides, start, stop):
    """Sequences start … stop − 1. All arrays flat; w (kernel, period) and bias (period,) repeat with period d."""
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
            channel = (channel + width) % bias.size


@compiled
def _backward_activation(dy, x, w, bias, g, shape):
    """g = ∂a = ∂y ⊙ silu'(a) of one sequence, silu'(a) = s (1 + a (1 − s)) with s = sigmoid(a).

    x has its zeros about it. So has g: kernel − 1 − left frames of them before and `left` after. On entry g holds ∂y.
    """
    l, d, kernel, left = shape
    width = BYTES // x.itemsize
    one, minus_log2e = splat(x.dtype.type(1)), splat(x.dtype.type(-LOG2E))
    first, channel = (kernel - 1 - left) * d, 0
    for at in range(0, l * d, width):
        a = _convolve(x, at, w, bias, channel, d, kernel)
        s = one / (one + exp2(minus_log2e * a))
        store(g, first + at, load(g, first + at) * (s * (one + a * (one - s))))
        channel = (channel + width) % bias.size
    g[first + l * d :] = 0  # the last vector may have left NaN there
