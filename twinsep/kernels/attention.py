"""Attention with narrow heads on a CPU, forward and backward, without storing the matrix of weights.

    o_i = Σ_j p_ij v_j,   p_ij = exp(s_ij) / Σ_j exp(s_ij),   s_ij = q_i·k_j / √e

(Vaswani et al. 2017, arXiv 1706.03762, equation 1. The forward pass saves the logarithm of the sum for each query, from
which the backward pass recomputes p: Dao et al. 2022, arXiv 2205.14135.) Heads of 8 to 32 features are too narrow for
matrix libraries; here the lanes of a vector are keys, and ROWS queries share each load.

Keys and values of one head are first copied to (e, keys), padded to whole vectors; the padding gets the score FAR,
whose exponential is exactly 0. Keys are scaled there: their products with q are scores for 2^s.

A unit of work is one head of one sequence or, if there are few heads, one of GROUPS ranges of its queries. Results do
not depend on the number of threads: contributions of these ranges to the gradients of keys and values are summed in
order.
"""

from math import log, sqrt

import numpy as np

from twinsep.kernels.arrays import strided
from twinsep.kernels.simd import (
    BYTES,
    aligned,
    compiled,
    exp2,
    gather,
    inlined,
    largest,
    load,
    maximum,
    scatter,
    splat,
    spread,
    store,
    totals,
)
from twinsep.kernels.threads import in_parallel

ROWS = 4  # queries computed together
GROUPS = 8  # ranges of queries per head, if there are few heads
ENOUGH = 16  # heads (in all sequences) from which on each is one unit of work
SERIAL = 1 << 16  # number of scores below which a second thread costs more than it saves
FAR = -1e30  # score of padding
LOG2E = 1 / log(2)  # exp(x) = 2^(x log2 e)


@inlined
def _zeros(size, like):
    zeros = aligned(size, like)
    zeros[:] = 0
    return zeros


@inlined
def _transpose(source, start, stride, count, features, scale, target, room):
    """target (features, room) = scale · sourceᵀ, then zeros; the last axis of the source (count, features) is dense."""
    width, scales = BYTES // target.itemsize, splat(scale)
    whole = count - count % width
    for f in range(features):
        for j in range(0, whole, width):
            store(target, f * room + j, scales * gather(source, start + j * stride + f, stride))
        for j in range(whole, count):
            target[f * room + j] = scale * source[start + j * stride + f]
        for j in range(count, room):
            target[f * room + j] = 0


@inlined
def _transpose_back(source, room, scale, count, features, target, start, stride):
    """The inverse of :func:`_transpose`, with a scale of its own."""
    width, scales = BYTES // target.itemsize, splat(scale)
    whole = count - count % width
    for f in range(features):
        for j in range(0, whole, width):
            scatter(target, start + j * stride + f, stride, scales * load(source, f * room + j))
        for j in range(whole, count):
            target[start + j * stride + f] = scale * source[f * room + j]


@inlined
def _fill(far, keys, room):
    for j in range(room):
        far[j] = 0 if j < keys else FAR


@inlined
def _rows(start, stride, first, last):
    """Offsets of rows first … first + 3; beyond the last row, of the last one."""
    last -= 1
    return (
        start + min(first, last) * stride,
        start + min(first + 1, last) * stride,
        start + min(first + 2, last) * stride,
        start + min(first + 3, last) * stride,
    )


@inlined
def _scores(q, rows, kT, far, s, features, room):
    """s (ROWS, room) = q kT + far, with the rows of q at these offsets."""
    at0, at1, at2, at3 = rows
    width = BYTES // q.itemsize
    for j in range(0, room, width):
        s0 = s1 = s2 = s3 = load(far, j)
        for f in range(features):
            k_f = load(kT, f * room + j)
            s0 = s0 + spread(q, at0 + f) * k_f
            s1 = s1 + spread(q, at1 + f) * k_f
            s2 = s2 + spread(q, at2 + f) * k_f
            s3 = s3 + spread(q, at3 + f) * k_f
        store(s, j, s0)
        store(s, room + j, s1)
        store(s, 2 * room + j, s2)
        store(s, 3 * room + j, s3)


@inlined
def _largest(s, start, room):
    width = BYTES // s.itemsize
    most = load(s, start)
    for j in range(width, room, width):
        most = maximum(most, load(s, start + j))
    return largest(most)


@inlined
def _exponentials(s, shifts, room, sums):
    """s (ROWS, room) ← 2^(s − shift) in place, row by row; the sums of the rows begin `sums`."""
    width = BYTES // s.itemsize
    shift0, shift1, shift2, shift3 = spread(shifts, 0), spread(shifts, 1), spread(shifts, 2), spread(shifts, 3)
    a0 = a1 = a2 = a3 = splat(s.dtype.type(0))
    for j in range(0, room, width):
        p0, p1 = exp2(load(s, j) - shift0), exp2(load(s, room + j) - shift1)
        p2, p3 = exp2(load(s, 2 * room + j) - shift2), exp2(load(s, 3 * room + j) - shift3)
        store(s, j, p0)
        store(s, room + j, p1)
        store(s, 2 * room + j, p2)
        store(s, 3 * room + j, p3)
        a0, a1, a2, a3 = a0 + p0, a1 + p1, a2 + p2, a3 + p3
    store(sums, 0, totals(a0, a1, a2, a3, a0, a1, a2, a3))


@inlined
def _times(p, vT, o, features, room):
    """o (features, ROWS) = vT pᵀ, p (ROWS, room); a pair of features at a time, so that all eight sums end together."""
    width, zero = BYTES // p.itemsize, splat(p.dtype.type(0))
    for f in range(0, features, 2):
        a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = zero
        for j in range(0, room, width):
            p0, p1, p2, p3 = load(p, j), load(p, room + j), load(p, 2 * room + j), load(p, 3 * room + j)
            a, b = load(vT, f * room + j), load(vT, (f + 1) * room + j)
            a0, a1, a2, a3 = a0 + p0 * a, a1 + p1 * a, a2 + p2 * a, a3 + p3 * a
            b0, b1, b2, b3 = b0 + p0 * b, b1 + p1 * b, b2 + p2 * b, b3 + p3 * b
        store(o, f * ROWS, totals(a0, a1, a2, a3, b0, b1, b2, b3))  # may write beyond, where the next pair follows


@inlined
def _add_outer(p, x, rows, xT, features, room):
    """xT (features, room) += xᵀ p, with the rows of x at these offsets; a pair of features shares each load of p."""
    at0, at1, at2, at3 = rows
    width = BYTES // p.itemsize
    for f in range(0, features, 2):
        g = min(f + 1, features - 1)  # of an odd number of features the last has no partner: its own sum, never read
        a0, a1, a2, a3 = spread(x, at0 + f), spread(x, at1 + f), spread(x, at2 + f), spread(x, at3 + f)
        b0, b1, b2, b3 = spread(x, at0 + g), spread(x, at1 + g), spread(x, at2 + g), spread(x, at3 + g)
        for j in range(0, room, width):
            p0, p1, p2, p3 = load(p, j), load(p, room + j), load(p, 2 * room + j), load(p, 3 * room + j)
            a, b = load(xT, f * room + j), load(xT, (f + 1) * room + j)
            store(xT, f * room + j, a + a0 * p0 + a1 * p1 + a2 * p2 + a3 * p3)
            store(xT, (f + 1) * room + j, b + b0 * p0 + b1 * p1 + b2 * p2 + b3 * p3)


@compiled
def _forward(q, k, v, o, logsum, shape, strides, start, stop):
    """Units start … stop − 1; o (b, queries, heads, e) and logsum (b, heads, queries), in base 2, are filled."""
    heads, queries, keys, e, groups = shape
    (q_b, q_l, q_h), (k_b, k_l, k_h), (v_b, v_l, v_h) = strides
    width, one = BYTES // q.itemsize, q.dtype.type(1)
    room, scale = -(-keys // width) * width, q.dtype.type(LOG2E / sqrt(e))
    even = e + e % 2  # features, with one of zeros if they are not pairs
    kT, vT, far = _zeros(e * room, q), _zeros(even * room, q), aligned(room, q)
    out, p = aligned(ROWS * even + width, q), aligned(ROWS * room, q)
    shifts, sums = np.empty(ROWS, q.dtype), aligned(width, q)
    _fill(far, keys, room)
    for unit in range(start, stop):
        b, h, group = unit // groups // heads, unit // groups % heads, unit % groups
        _transpose(k, b * k_b + h * k_h, k_l, keys, e, scale, kT, room)
        _transpose(v, b * v_b + h * v_h, v_l, keys, e, one, vT, room)
        first, last = group * queries // groups, (group + 1) * queries // groups
        for i in range(first, last, ROWS):
            _scores(q, _rows(b * q_b + h * q_h, q_l, i, last), kT, far, p, e, room)
            for r in range(ROWS):
                shifts[r] = _largest(p, r * room, room)
            _exponentials(p, shifts, room, sums)
            _times(p, vT, out, e, room)
            for r in range(min(ROWS, last - i)):
                at = ((b * queries + i + r) * heads + h) * e
                logsum[(b * heads + h) * queries + i + r] = shifts[r] + np.log2(sums[r])
                share = one / sums[r]
                for f in range(e):
                    o[at + f] = out[f * ROWS + r] * share


@inlined
def _weights(p, dp, room, logsum, dots):
    """p ← 2^(p − logsum) and dp ← p (dp − dots), row by row, in place: the weights and the gradient of the scores."""
    width = BYTES // p.itemsize
    for r in range(ROWS):
        shift, dot = spread(logsum, r), spread(dots, r)
        for j in range(r * room, (r + 1) * room, width):
            p_j = exp2(load(p, j) - shift)
            store(p, j, p_j)
            store(dp, j, p_j * (load(dp, j) - dot))


@compiled
def _backward(do, o, q, k, v, logsum, dq, dk, dv, shape, strides, start, stop):
    """Units start … stop − 1; dq (b, queries, heads, e), dk and dv (groups, b, keys, heads, e) are filled.

    With g = ∂o: ∂v_j = Σ_i p_ij g_i, ∂s_ij = p_ij (g_i·v_j − g_i·o_i), ∂q_i = Σ_j ∂s_ij k_j / √e, ∂k_j likewise.
    """
    heads, queries, keys, e, groups = shape
    (q_b, q_l, q_h), (k_b, k_l, k_h), (v_b, v_l, v_h), (g_b, g_l, g_h) = strides
    width, one = BYTES // q.itemsize, q.dtype.type(1)
    room, scale, ln2 = -(-keys // width) * width, q.dtype.type(LOG2E / sqrt(e)), q.dtype.type(log(2))
    even = e + e % 2  # features, with one of zeros if they are not pairs
    kT, vT, far, none = _zeros(even * room, q), _zeros(even * room, q), aligned(room, q), _zeros(room, q)
    dkT, dvT = aligned(even * room, q), aligned(even * room, q)
    out, p, dp = aligned(ROWS * even + width, q), aligned(ROWS * room, q), aligned(ROWS * room, q)
    shifts, dots = np.zeros(ROWS, q.dtype), np.zeros(ROWS, q.dtype)
    batch = dq.size // (queries * heads * e)
    _fill(far, keys, room)
    for unit in range(start, stop):
        b, h, group = unit // groups // heads, unit // groups % heads, unit % groups
        _transpose(k, b * k_b + h * k_h, k_l, keys, e, scale, kT, room)
        _transpose(v, b * v_b + h * v_h, v_l, keys, e, one, vT, room)
        dkT[:] = 0
        dvT[:] = 0
        first, last = group * queries // groups, (group + 1) * queries // groups
        for i in range(first, last, ROWS):
            rows, drows = _rows(b * q_b + h * q_h, q_l, i, last), _rows(b * g_b + h * g_h, g_l, i, last)
            for r in range(min(ROWS, last - i)):
                shifts[r] = logsum[(b * heads + h) * queries + i + r]
                at, dot = ((b * queries + i + r) * heads + h) * e, q.dtype.type(0)
                for f in range(e):
                    dot += do[drows[r] + f] * o[at + f]
                dots[r] = dot
            for r in range(last - i, ROWS):
                shifts[r] = np.inf  # no weight
            _scores(q, rows, kT, far, p, e, room)
            _scores(do, drows, vT, none, dp, e, room)
            _weights(p, dp, room, shifts, dots)
            _times(dp, kT, out, e, room)
            for r in range(min(ROWS, last - i)):
                at = ((b * queries + i + r) * heads + h) * e
                for f in range(e):
                    dq[at + f] = out[f * ROWS + r] * ln2
            _add_outer(dp, q, rows, dkT, e, room)
            _add_outer(p, do, drows, dvT, e, room)
        at = ((group * batch + b) * keys * heads + h) * e
        _transpose_back(dkT, room, scale * ln2, keys, e, dk, at, heads * e)
        _transpose_back(dvT, room, one, keys, e, dv, at, heads * e)


def forward(q: np.ndarray, k: np.ndarray, v: np.ndarray, o: np.ndarray, logsum: np.ndarray, *, threads: int) -> None:
    """Fill o (b, queries, heads, e) and, for the backward pass, logsum (b, heads, queries), both contiguous.

    q is shaped as o; k and v are (b, keys, heads, e), with at least one key. All float32 or all float64, any strides.
    """
    if not o.size:
        return
    (q_flat, qs), (k_flat, ks), (v_flat, vs) = strided(q), strided(k), strided(v)
    shape, units = _shape(q, k)
    arrays = (q_flat, k_flat, v_flat, o.reshape(-1), logsum.reshape(-1))
    in_parallel(_forward, units, _threads(q, k, threads), *arrays, shape, (qs, ks, vs))


def backward(
    do: np.ndarray,
    o: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    logsum: np.ndarray,
    dq: np.ndarray,
    dk: np.ndarray,
    dv: np.ndarray,
    *,
    threads: int,
) -> None:
    """Fill the contiguous gradients dq, dk, dv from do and the results of :func:`forward`."""
    shape, units = _shape(q, k)
    sums = [np.zeros((shape[-1], *x.shape), x.dtype) for x in (k, v)]
    if dq.size:
        (q_flat, qs), (k_flat, ks), (v_flat, vs), (g_flat, gs) = (strided(x) for x in (q, k, v, do))
        arrays = (g_flat, o.reshape(-1), q_flat, k_flat, v_flat, logsum.reshape(-1))
        gradients = (x.reshape(-1) for x in (dq, *sums))
        in_parallel(_backward, units, _threads(q, k, threads), *arrays, *gradients, shape, (qs, ks, vs, gs))
    for x, of_groups in zip((dk, dv), sums, strict=True):
        np.add.reduce(of_groups, 0, out=x)


def _shape(q: np.ndarray, k: np.ndarray) -> tuple[tuple[int, int, int, int, int], int]:
    """(heads, queries, keys, e, groups), and the number of units of work."""
    b, queries, heads, e = q.shape
    groups = 1 if b * heads >= ENOUGH else min(GROUPS, -(-queries // ROWS))
    return (heads, queries, k.shape[1], e, groups), b * heads * groups


def _threads(q: np.ndarray, k: np.ndarray, threads: int) -> int:
    return 1 if q[..., 0].size * k.shape[1] < SERIAL else threads
