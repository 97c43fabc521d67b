"""Attention with narrow heads on a CPU, forward and backward, without storing the matrix of weights.

    o_i = Σ_j p_ij v_j,   p_ij = exp(s_ij) / Σ_j exp(s_ij),   s_ij = q_i·k_j / √e

(Vaswani et al. 2017, arXiv 1706.03762, equation 1. The forward pass saves the logarithm of the sum for each query, from
which the backward pass recomputes p: Dao et al. 2022, arXiv 2205.14135.) Heads of 8 to 32 features are too narrow for
matrix libraries; here the lanes of a vector are keys, and ROWS queries share each load.

Keys and values of one head are first copied to (e, keys), padded to whole vectors; the padding gets the score FAR,
whose exponential is exactly 0. A unit of work is one head of one sequence or, if there are few heads, one of GROUPS
ranges of its queries. Results do not depend on the number of threads: contributions of these ranges to the gradients of
keys and values are summed in order.
"""

from math import log, sqrt

import numpy as np

from twinsep.kernels.arrays import strided
from twinsep.kernels.simd import BYTES, compiled, exp2, inlined, largest, load, maximum, splat, store, total
from twinsep.kernels.threads import in_parallel

ROWS = 4  # queries computed together
GROUPS = 8  # ranges of queries per head, if there are few heads
ENOUGH = 16  # heads (in all sequences) from which on each is one unit of work
SERIAL = 1 << 16  # number of scores below which a second thread costs more than it saves
FAR = -1e30  # score of padding
LOG2E = 1 / log(2)  # exp(x) = 2^(x log2 e)


@inlined
def _gather(source, start, stride, count, features, target, room):
    """target (features, room) = transpose of source (count, features), whose last axis is dense, padded with zeros."""
    for j in range(count):
        at = start + j * stride
        for f in range(features):
            target[f * room + j] = source[at + f]
    for f in range(features):
        for j in range(count, room):
            target[f * room + j] = 0


@inlined
def _fill(far, keys, room):
    for j in range(room):
        far[j] = 0 if j < keys else FAR


@inlined
def _rows(source, start, stride, first, last, features, scale, target):
    """target (ROWS, features) = scale · rows first … last − 1 of the source; zeros beyond."""
    for r in range(ROWS):
        for f in range(features):
            target[r * features + f] = source[start + (first + r) * stride + f] * scale if first + r < last else 0


@inlined
def _scores(q, kT, far, s, features, room):
    """s (ROWS, room) = q kT + far."""
    width = BYTES // q.itemsize
    for j in range(0, room, width):
        s0 = s1 = s2 = s3 = load(far, j)
        for f in range(features):
            k_f = load(kT, f * room + j)
            s0 = s0 + splat(q[f]) * k_f
            s1 = s1 + splat(q[features + f]) * k_f
            s2 = s2 + splat(q[2 * features + f]) * k_f
            s3 = s3 + splat(q[3 * features + f]) * k_f
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
def _exponentials(s, start, room, shift):
    """s ← 2^(s − shift) in place; returns the sum."""
    width = BYTES // s.itemsize
    sums, shifts = splat(s.dtype.type(0)), splat(shift)
    for j in range(0, room, width):
        p = exp2(load(s, start + j) - shifts)
        store(s, start + j, p)
        sums = sums + p
    return total(sums)


@inlined
def _times(p, vT, o, features, room):
    """o (ROWS, features) = p (ROWS, room) vTᵀ."""
    width = BYTES // p.itemsize
    for f in range(features):
        o0 = o1 = o2 = o3 = splat(p.dtype.type(0))
        for j in range(0, room, width):
            v_f = load(vT, f * room + j)
            o0 = o0 + load(p, j) * v_f
            o1 = o1 + load(p, room + j) * v_f
            o2 = o2 + load(p, 2 * room + j) * v_f
            o3 = o3 + load(p, 3 * room + j) * v_f
        o[f] = total(o0)
        o[features + f] = total(o1)
        o[2 * features + f] = total(o2)
        o[3 * features + f] = total(o3)


@inlined
def _add_outer(p, x, xT, features, room):
    """xT (features, room) += xᵀ p, x (ROWS, features), p (ROWS, room)."""
    width = BYTES // p.itemsize
    for f in range(features):
        x0, x1, x2, x3 = splat(x[f]), splat(x[features + f]), splat(x[2 * features + f]), splat(x[3 * features + f])
        for j in range(0, room, width):
            sum01 = load(xT, f * room + j) + x0 * load(p, j) + x1 * load(p, room + j)
            store(xT, f * room + j, sum01 + x2 * load(p, 2 * room + j) + x3 * load(p, 3 * room + j))


@compiled
def _forward(q, k, v, o, logsum, shape, strides, start, stop):
    """Units start … stop − 1; o (b, queries, heads, e) and logsum (b, heads, queries), in base 2, are filled."""
    heads, queries, keys, e, groups = shape
    (q_b, q_l, q_h), (k_b, k_l, k_h), (v_b, v_l, v_h) = strides
    width, one = BYTES // q.itemsize, q.dtype.type(1)
    room, scale = -(-keys // width) * width, q.dtype.type(LOG2E / sqrt(e))
    kT, vT, far = np.empty(e * room, q.dtype), np.empty(e * room, q.dtype), np.empty(room, q.dtype)
    rows, out, p = np.empty(ROWS * e, q.dtype), np.empty(ROWS * e, q.dtype), np.empty(ROWS * room, q.dtype)
    totals = np.empty(ROWS, q.dtype)
    _fill(far, keys, room)
    for unit in range(start, stop):
        b, h, group = unit // groups // heads, unit // groups % heads, unit % groups
        _gather(k, b * k_b + h * k_h, k_l, keys, e, kT, room)
        _gather(v, b * v_b + h * v_h, v_l, keys, e, vT, room)
        first, last = group * queries // groups, (group + 1) * queries // groups
        for i in range(first, last, ROWS):
            _rows(q, b * q_b + h * q_h, q_l, i, last, e, scale, rows)
            _scores(rows, kT, far, p, e, room)
            for r in range(ROWS):
                shift = _largest(p, r * room, room)
                totals[r] = _exponentials(p, r * room, room, shift)
                if i + r < last:
                    logsum[(b * heads + h) * queries + i + r] = shift + np.log2(totals[r])
            _times(p, vT, out, e, room)
            for r in range(min(ROWS, last - i)):
                at = ((b * queries + i + r) * heads + h) * e
                for f in range(e):
                    o[at + f] = out[r * e + f] * (one / totals[r])


@inlined
def _weights(p, dp, room, logsum, dots):
    """p ← 2^(p − logsum) and dp ← p (dp − dots), row by row, in place: the weights and the gradient of the scores."""
    width = BYTES // p.itemsize
    for r in range(ROWS):
        shift, dot = splat(logsum[r]), splat(dots[r])
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
    kT, vT, far = np.empty(e * room, q.dtype), np.empty(e * room, q.dtype), np.empty(room, q.dtype)
    dkT, dvT, none = np.empty(e * room, q.dtype), np.empty(e * room, q.dtype), np.zeros(room, q.dtype)
    rows, drows, out = np.empty(ROWS * e, q.dtype), np.empty(ROWS * e, q.dtype), np.empty(ROWS * e, q.dtype)
    p, dp = np.empty(ROWS * room, q.dtype), np.empty(ROWS * room, q.dtype)
    shifts, dots = np.zeros(ROWS, q.dtype), np.zeros(ROWS, q.dtype)
    batch = dq.size // (queries * heads * e)
    _fill(far, keys, room)
    for unit in range(start, stop):
        b, h, group = unit // groups // heads, unit // groups % heads, unit % groups
        _gather(k, b * k_b + h * k_h, k_l, keys, e, kT, room)
        _gather(v, b * v_b + h * v_h, v_l, keys, e, vT, room)
        dkT[:] = 0
        dvT[:] = 0
        first, last = group * queries // groups, (group + 1) * queries // groups
        for i in range(first, last, ROWS):
            _rows(q, b * q_b + h * q_h, q_l, i, last, e, scale, rows)
            _rows(do, b * g_b + h * g_h, g_l, i, last, e, one, drows)  # zeros beyond the last query
            for r in range(min(ROWS, last - i)):
                shifts[r] = logsum[(b * heads + h) * queries + i + r]
                at, dot = ((b * queries + i + r) * heads + h) * e, q.dtype.type(0)
                for f in range(e):
                    dot += drows[r * e + f] * o[at + f]
                dots[r] = dot
            _scores(rows, kT, far, p, e, room)
            _scores(drows, vT, none, dp, e, room)
            _weights(p, dp, room, shifts, dots)
            _times(dp, kT, out, e, room)
            for r in range(min(ROWS, last - i)):
                at = ((b * queries + i + r) * heads + h) * e
                for f in range(e):
                    dq[at + f] = out[r * e + f] * (scale * ln2)
            _add_outer(dp, rows, dkT, e, room)
            _add_outer(p, drows, dvT, e, room)
        for j in range(keys):
            at = (((group * batch + b) * keys + j) * heads + h) * e
            for f in range(e):
                dk[at + f] = dkT[f * room + j] * ln2  # the rows are q log2(e) / √e
                dv[at + f] = dvT[f * room + j]


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
