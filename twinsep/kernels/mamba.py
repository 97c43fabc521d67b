"""The layer Mamba on a CPU, forward and backward, as one function: products by NumPy, the rest compiled by Numba.

    (u, z) = W_in x;  u ← silu(conv(u));  (δ, B, C) = W_x u;  Δ = softplus(W_Δ δ + b_Δ);  scan;  W_out

(Gu and Dao 2023, arXiv 2312.00752; their package mamba_ssm fuses the same operations in ``mamba_inner_fn``.) In a
narrow model a framework spends more time on calling these operations, forward and backward, than on computing them.
"""

from __future__ import annotations

from math import log
from typing import Any, NamedTuple

import numpy as np

from twinsep.kernels import depthwise, selective_scan
from twinsep.kernels.simd import (
    BYTES,
    aligned,
    compiled,
    exp2,
    inlined,
    load,
    maximum,
    sigmoid,
    splat,
    spread,
    store,
    total,
)
from twinsep.kernels.threads import in_parallel, one_blas_thread

GROUPS = 64  # largest number of groups of rows, each with its own sums for the gradients of W_Δ and b_Δ
SERIAL = 1 << 17  # size of Δ (0.1 ms of work) below which a second thread costs more than it saves
LOG2E = 1 / log(2)  # exp(x) = 2^(x log2 e)


class Weights(NamedTuple):
    """The weights of the layer: d features, e channels (whole vectors), n states, r inputs of Δ, k taps."""

    in_proj: Any  # (2e, d)
    conv: Any  # (e, 1, k)
    conv_bias: Any  # (e,)
    x_proj: Any  # (r + 2n, e)
    dt_proj: Any  # (e, r)
    dt_bias: Any  # (e,)
    A_log: Any  # (e, n)
    D: Any  # (e,)
    out_proj: Any  # (d, e)


class Saved(NamedTuple):
    """Arrays that the backward pass needs, beside the inputs."""

    xz: Any  # (b, l, 2e)
    u: Any  # (b, l, e)
    dBC: Any  # (b, l, r + 2n): δ, B and C
    delta: Any  # (b, l, e)
    y: Any  # (b, l, e)
    states: Any


def shapes_of_saved(x: tuple[Any, ...], weights: Weights, itemsize: int, *, keep: bool = True) -> Saved:
    """Shapes of the saved arrays for x (b, l, d); without ``keep`` that of the states is empty. May be symbolic."""
    (b, l, _), (e, n) = x, weights.A_log.shape
    states = selective_scan.shape_of_states((b, l, e), n, itemsize) if keep else (0,)
    inner = (b, l, e)
    return Saved((b, l, 2 * e), inner, (b, l, weights.x_proj.shape[0]), inner, inner, states)


@inlined
def _steps(dt, at, w, bias, i, r, e):
    """W_Δ δ + b_Δ of one row for the vector of channels at i; δ begins at offset `at`, w is (r, e)."""
    a = load(bias, i)
    for j in range(r):
        a = a + spread(dt, at + j) * load(w, j * e + i)
    return a


@inlined
def _softplus(x, series, zero, one, minus_log2e):
    """log(1 + exp(x)) = max(x, 0) + log(1 + v), v = exp(−|x|), and log(1 + v) = 2 artanh(v / (2 + v)) by its series."""
    v = exp2(minus_log2e * maximum(zero - x, x))
    s = v / (one + one + v)
    square, terms = s * s, series.size
    y = spread(series, terms - 1)
    for k in range(terms - 2, -1, -1):
        y = y * square + spread(series, k)
    return maximum(zero, x) + y * s


@compiled
def _delta(dBC, w, bias, series, delta, shape, start, stop):
    """Δ of rows start … stop − 1. All arrays are flat; a row of dBC begins with δ."""
    width, e, r, rest = BYTES // delta.itemsize, shape[0], shape[1], shape[2]
    zero, one = splat(delta.dtype.type(0)), splat(delta.dtype.type(1))
    minus_log2e = splat(delta.dtype.type(-LOG2E))
    for row in range(start, stop):
        for i in range(0, e, width):
            a = _steps(dBC, row * (r + rest), w, bias, i, r, e)
            store(delta, row * e + i, _softplus(a, series, zero, one, minus_log2e))


@compiled
def _delta_backward(ddelta, dBC, w, bias, ddBC, dw, dbias, shape, rows, start, stop):
    """Groups start … stop − 1 of the rows: the gradients of δ, in place in ddBC, of W_Δ and of b_Δ.

    With g = ∂Δ ⊙ sigmoid(W_Δ δ + b_Δ): ∂δ = W_Δᵀ g, ∂W_Δ = Σ g δᵀ, ∂b_Δ = Σ g. dw (groups, r, e) and dbias (groups, e)
    are zero on entry.
    """
    width, e, r, rest = BYTES // ddelta.itemsize, shape[0], shape[1], shape[2]
    zero, one = splat(ddelta.dtype.type(0)), splat(ddelta.dtype.type(1))
    minus_log2e = splat(ddelta.dtype.type(-LOG2E))
    groups = dbias.size // e
    g = aligned(e, ddelta)
    for group in range(start, stop):
        for row in range(group * rows // groups, (group + 1) * rows // groups):
            at = row * (r + rest)
            for i in range(0, e, width):
                slope = sigmoid(_steps(dBC, at, w, bias, i, r, e), one, minus_log2e)
                g_i = load(ddelta, row * e + i) * slope
                store(g, i, g_i)
                store(dbias, group * e + i, load(dbias, group * e + i) + g_i)
            for j in range(r):
                products, dt_j = zero, spread(dBC, at + j)
                for i in range(0, e, width):
                    g_i, here = load(g, i), (group * r + j) * e + i
                    products = products + g_i * load(w, j * e + i)
                    store(dw, here, load(dw, here) + g_i * dt_j)
                ddBC[at + j] = total(products)


#: u, Δ, A, B, C and D of a scan.
Inputs = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@one_blas_thread()
def forward(x: np.ndarray, weights: Weights, y: np.ndarray, saved: Saved, *, threads: int) -> None:
    """Fill y (b, l, d) from x (b, l, d), and the arrays of ``saved``; all contiguous, all float32 or all float64.

    ``saved.states`` may be empty.
    """
    (b, l, d), (e, n), r = x.shape, weights.A_log.shape, weights.dt_proj.shape[1]
    if not y.size:
        return
    np.matmul(x.reshape(-1, d), weights.in_proj.T, out=saved.xz.reshape(-1, 2 * e))
    u, z, left = saved.xz[..., :e], saved.xz[..., e:], weights.conv.shape[2] - 1
    depthwise.forward(u, weights.conv, weights.conv_bias, saved.u, left=left, threads=threads)
    np.matmul(saved.u.reshape(-1, e), weights.x_proj.T, out=saved.dBC.reshape(-1, r + 2 * n))
    arrays = (saved.dBC.reshape(-1), _flat(weights.dt_proj.T), weights.dt_bias, _series(x.dtype))
    rows, some = b * l, _threads(saved.delta.size, threads)
    in_parallel(_delta, rows, some, *arrays, saved.delta.reshape(-1), (e, r, 2 * n))
    inputs = _scanned(weights, saved, r)
    selective_scan.forward(*inputs, z, saved.y, saved.states, threads=threads)
    np.matmul(saved.y.reshape(-1, e), weights.out_proj.T, out=y.reshape(-1, d))


@one_blas_thread()
def backward(
    dy: np.ndarray,
    x: np.ndarray,
    weights: Weights,
    saved: Saved,
    dx: np.ndarray,
    gradients: Weights,
    *,
    threads: int,
) -> None:
    """Fill dx and the gradients of the weights from dy (b, l, d) and what :func:`forward` saved, states included."""
    (b, l, d), (e, n), r = x.shape, weights.A_log.shape, weights.dt_proj.shape[1]
    if not x.size:
        for gradient in gradients:
            gradient[...] = 0
        return
    rows, inner, dtype = b * l, (b, l, e), x.dtype
    dy = dy.reshape(rows, d)
    np.matmul(dy.T, saved.y.reshape(rows, e), out=gradients.out_proj)
    of_scan = (dy @ weights.out_proj).reshape(inner)
    du, ddelta, dA = np.empty(inner, dtype), np.empty(inner, dtype), np.empty((e, n), dtype)
    dxz, ddBC = np.empty_like(saved.xz), np.empty_like(saved.dBC)
    dz, dB, dC = dxz[..., e:], ddBC[..., r : r + n], ddBC[..., r + n :]
    inputs, z = _scanned(weights, saved, r), saved.xz[..., e:]
    outputs = (du, ddelta, dA, dB, dC, gradients.D, dz)
    selective_scan.backward(of_scan, *inputs, z, saved.states, *outputs, threads=threads)
    np.multiply(dA, inputs[2], out=gradients.A_log)  # A = −exp(A_log)

    ddBC = ddBC.reshape(rows, r + 2 * n)
    groups = min(rows, GROUPS)
    dw, dbias = np.zeros((groups, r, e), dtype), np.zeros((groups, e), dtype)
    arrays = (ddelta.reshape(-1), saved.dBC.reshape(-1), _flat(weights.dt_proj.T), weights.dt_bias, ddBC.reshape(-1))
    sums = (dw.reshape(-1), dbias.reshape(-1))
    in_parallel(_delta_backward, groups, _threads(ddelta.size, threads), *arrays, *sums, (e, r, 2 * n), rows)
    gradients.dt_proj[...] = dw.sum(0, dtype=np.float64).T
    gradients.dt_bias[...] = dbias.sum(0, dtype=np.float64)

    np.matmul(ddBC.T, saved.u.reshape(rows, e), out=gradients.x_proj)
    du += (ddBC @ weights.x_proj).reshape(inner)
    convolved, left = (saved.xz[..., :e], weights.conv, weights.conv_bias), weights.conv.shape[2] - 1
    depthwise.backward(du, *convolved, dxz[..., :e], gradients.conv, gradients.conv_bias, left=left, threads=threads)
    dxz = dxz.reshape(rows, 2 * e)
    np.matmul(dxz.T, x.reshape(rows, d), out=gradients.in_proj)
    np.matmul(dxz, weights.in_proj, out=dx.reshape(rows, d))


def _scanned(weights: Weights, saved: Saved, r: int) -> Inputs:
    """u, Δ, A, B, C and D of the scan."""
    n = weights.A_log.shape[1]
    B, C = saved.dBC[..., r : r + n], saved.dBC[..., r + n :]
    return saved.u, saved.delta, -np.exp(weights.A_log), B, C, weights.D


def _series(dtype: np.dtype[Any]) -> np.ndarray:
    """Coefficients of 2 artanh(s) = Σ_k 2/(2k + 1) s^(2k+1); s² ≤ 1/9, so that the rest is below half a rounding."""
    return (2 / (2 * np.arange(8 if dtype == np.float32 else 17) + 1)).astype(dtype)


def _flat(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x).reshape(-1)


def _threads(numbers: int, threads: int) -> int:
    return 1 if numbers < SERIAL else threads
