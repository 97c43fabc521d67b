"""The selective scan on a CPU, forward and backward, compiled by Numba.

    h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t u_t        y_t = (C_t · h_t + D u_t) ⊙ silu(z_t)

(Mamba: Gu and Dao 2023, arXiv 2312.00752, equation 2 and algorithm 2.) Nothing of shape (b, l, e, n) is ever stored.
The forward pass saves the states at chunk boundaries, if asked. The backward pass takes the chunks from last to first:
it recomputes the states of a chunk into a buffer that fits the cache, then runs the recurrence in reverse.

A unit of work is one vector of channels of one sequence, in the backward pass a group of sequences. Results do not
depend on the number of threads: the gradients of A and D are summed within at most GROUPS fixed groups of sequences,
then over the groups in order.
"""

from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np

from twinsep.kernels.arrays import strided
from twinsep.kernels.simd import (
    BYTES,
    aligned,
    compiled,
    exp2,
    fold,
    halves,
    inlined,
    load,
    prefetch,
    sigmoid,
    splat,
    spread,
    store,
    store_halves,
)
from twinsep.kernels.threads import in_parallel

CHUNK = 32  # least number of frames between saved states; with 8 and 16 the backward pass is 50 % and 10 % slower
AHEAD = 6  # frames between prefetch and use; rows lie too far apart for the hardware's own prefetching
GROUPS = 64  # largest number of groups of sequences, each with its own sums for the gradients of A and D
SERIAL = 1 << 17  # state updates (0.03 ms of work) below which a second thread costs more than it saves
LOG2E, LN2 = 1 / log(2), log(2)  # exp(x) = 2^(x log2 e)


@compiled
def _forward(u, delta, A, B, C, D, z, y, states, shape, steps, keep, start, stop):
    """Units start … stop − 1 of the forward pass, each one vector of channels of one sequence.

    All arrays are flat; A is tiled as in :func:`_inputs`; `steps` are those from row to row of B, C and z.
    """
    (_, l, e, n, every), (B_step, C_step, z_step) = shape, steps
    width = BYTES // u.itemsize
    one, minus_log2e = splat(u.dtype.type(1)), splat(u.dtype.type(-LOG2E))
    stored = (l - 1) // every
    h = aligned(n * width, u)
    for task in range(start, stop):
        sequence, channel = task // (e // width), task % (e // width) * width
        h[:] = 0
        skip = load(D, channel)
        for t in range(l):
            if keep and t > 0 and t % every == 0:
                row = (sequence * stored + t // every - 1) * n
                for i in range(n):
                    store(states, (row + i) * e + channel, load(h, i * width))
            row = sequence * l + t
            here = row * e + channel
            ahead = here + AHEAD * e
            prefetch(u, ahead)
            prefetch(delta, ahead)
            prefetch(y, ahead)
            here_z = row * z_step + channel
            if z.size > 0:
                prefetch(z, here_z + AHEAD * z_step)
            delta_t, u_t = load(delta, here), load(u, here)
            delta_u, y_t = delta_t * u_t, skip * u_t
            for i in range(n):
                a_i = exp2(delta_t * load(A, channel * n + i * width))
                h_i = a_i * load(h, i * width) + delta_u * spread(B, row * B_step + i)
                store(h, i * width, h_i)
                y_t = y_t + h_i * spread(C, row * C_step + i)
            if z.size > 0:
                z_t = load(z, here_z)
                y_t = y_t * (z_t * sigmoid(z_t, one, minus_log2e))
            store(y, here, y_t)


@inlined
def _replay(dy, u, delta, A, B, C, D, z, dz, shape, steps, row, frames, channel, h, a, g):
    """Recompute one chunk: h gets the states (from h[0]), a the decays, g the gradient of y before the gate."""
    (_, _, e, n, _), (B_step, C_step, z_step, _, _, dz_step) = shape, steps
    width = BYTES // u.itemsize
    one, minus_log2e = splat(u.dtype.type(1)), splat(u.dtype.type(-LOG2E))
    skip = load(D, channel)
    for t in range(frames):
        here, here_z, here_dz = (row + t) * e + channel, (row + t) * z_step + channel, (row + t) * dz_step + channel
        # Prefetch for this vector of channels or, from its last frames, for the next.
        later, lane = (AHEAD, 0) if t + AHEAD < frames else (AHEAD - frames, width)
        ahead = here + later * e + lane
        prefetch(u, ahead)
        prefetch(delta, ahead)
        prefetch(dy, ahead)
        if z.size > 0:
            prefetch(z, here_z + later * z_step + lane)
            prefetch(dz, here_dz + later * dz_step + lane)
        delta_t, u_t, dy_t = load(delta, here), load(u, here), load(dy, here)
        delta_u, y_t = delta_t * u_t, skip * u_t
        for i in range(n):
            at = (t * n + i) * width
            a_i = exp2(delta_t * load(A, channel * n + i * width))
            h_i = a_i * load(h, at) + delta_u * spread(B, (row + t) * B_step + i)
            store(a, at, a_i)
            store(h, at + n * width, h_i)
            y_t = y_t + h_i * spread(C, (row + t) * C_step + i)
        if z.size > 0:
            # d silu(z)/dz = s (1 + z (1 − s)), s = sigmoid(z)
            z_t = load(z, here_z)
            s_t = sigmoid(z_t, one, minus_log2e)
            store(dz, here_dz, dy_t * y_t * (s_t * (one + z_t * (one - s_t))))
            dy_t = dy_t * (z_t * s_t)
        store(g, t * width, dy_t)


@inlined
def _reverse(u, delta, A, B, C, D, du, ddelta, dA, dD, shape, steps, row, frames, channel, h, a, g, dh, dBC):
    """Run one chunk in reverse. With ∂h_t = C_t g_t + a_{t+1} ∂h_{t+1}, g = ∂y and s_t = Δ_t A, per channel and state:

    ∂C_t = h_t g_t, ∂B_t = ∂h_t Δ_t u_t (both summed over channels), ∂s_t = ∂h_t a_t h_{t−1}, ∂A = Σ_t ∂s_t Δ_t,
    ∂u_t = Δ_t ∂h_t·B_t + D g_t, ∂Δ_t = ∂s_t·A + u_t ∂h_t·B_t, ∂D = Σ_t g_t u_t.
    """
    (_, _, e, n, _), (B_step, C_step, _, _, _, _) = shape, steps
    width = BYTES // u.itemsize
    ln2, zero = splat(u.dtype.type(LN2)), splat(u.dtype.type(0))
    skip, dskip = load(D, channel), load(dD, channel)
    for t in range(frames - 1, -1, -1):
        here = (row + t) * e + channel
        prefetch(du, here - AHEAD * e)
        prefetch(ddelta, here - AHEAD * e)
        delta_t, u_t, g_t = load(delta, here), load(u, here), load(g, t * width)
        delta_u, dh_B, ds_A = delta_t * u_t, zero, zero
        for i in range(n):
            at, state = (t * n + i) * width, channel * n + i * width
            dh_i = load(dh, state) + g_t * spread(C, (row + t) * C_step + i)
            store(dBC, at, load(dBC, at) + fold(dh_i * delta_u, load(h, at + n * width) * g_t))
            dh_B = dh_B + dh_i * spread(B, (row + t) * B_step + i)
            dh_i = dh_i * load(a, at)
            store(dh, state, dh_i)
            ds_i = dh_i * load(h, at)
            ds_A = ds_A + ds_i * load(A, state)
            store(dA, state, load(dA, state) + ds_i * delta_t)
        store(du, here, delta_t * dh_B + skip * g_t)
        store(ddelta, here, ln2 * ds_A + u_t * dh_B)
        dskip = dskip + g_t * u_t
    store(dD, channel, dskip)


@compiled
def _backward(dy, u, delta, A, B, C, D, z, states, du, ddelta, dA, dB, dC, dD, dz, shape, steps, start, stop):
    """Groups start … stop − 1 of sequences. dA (groups, e, n; tiled as A) and dD (groups, e) are zero on entry.

    `steps` are those from row to row of B, C, z, dB, dC and dz; rows of dB and dC have room for n rounded up to whole
    halves of a vector.
    """
    (b, l, e, n, every), (_, _, _, dB_step, dC_step, _) = shape, steps
    width, half = BYTES // u.itemsize, BYTES // u.itemsize // 2
    groups, chunks = dD.size // e, (l - 1) // every + 1
    h, a = aligned((every + 1) * n * width, u), aligned(every * n * width, u)
    g, dBC = aligned(every * width, u), aligned((every * n + half) * width, u)  # read in steps of half a vector
    dh, dA_one, dD_one = aligned(n * e, u), aligned(n * e, u), aligned(e, u)
    for group in range(start, stop):
        for sequence in range(group * b // groups, (group + 1) * b // groups):
            dh[:] = 0
            # Sum within each sequence first, then over sequences: smaller rounding errors than one long sum.
            dA_one[:] = 0
            dD_one[:] = 0
            for chunk in range(chunks - 1, -1, -1):
                frames = min(every, l - chunk * every)
                row = sequence * l + chunk * every
                dBC[:] = 0
                for channel in range(0, e, width):
                    h[: n * width] = 0
                    if chunk > 0:
                        state = (sequence * (chunks - 1) + chunk - 1) * n
                        for i in range(n):
                            store(h, i * width, load(states, (state + i) * e + channel))
                    _replay(dy, u, delta, A, B, C, D, z, dz, shape, steps, row, frames, channel, h, a, g)
                    of_chunk = du, ddelta, dA_one, dD_one, shape, steps, row, frames, channel
                    _reverse(u, delta, A, B, C, D, *of_chunk, h, a, g, dh, dBC)
                for t in range(frames):
                    for i in range(0, n, half):
                        sums = halves(dBC, (t * n + i) * width)
                        store_halves(dB, (row + t) * dB_step + i, dC, (row + t) * dC_step + i, sums)
            for i in range(n * e):
                dA[group * n * e + i] += dA_one[i]
            for i in range(e):
                dD[group * e + i] += dD_one[i]


def chunk(n: Any) -> Any:
    """Frames between saved states: at least n, so that the saved states take no more memory than u."""
    return max(CHUNK, n)


def shape_of_states(u: Sequence[Any], n: Any, itemsize: int) -> tuple[Any, ...]:
    """Shape of the saved states: (b, chunks − 1, n, e rounded up to whole vectors). Sizes may be symbolic."""
    b, l, e = u
    return b, max(l - 1, 0) // chunk(n), n, _whole(e, itemsize)


def forward(
    u: np.ndarray,
    delta: np.ndarray,
    A: np.ndarray,
    B: np.ndarray,
    C: np.ndarray,
    D: np.ndarray,
    z: np.ndarray,
    y: np.ndarray,
    states: np.ndarray,
    *,
    threads: int,
) -> None:
    """Fill y (b, l, e) and, unless empty, ``states`` with the shape :func:`shape_of_states`.

    u, delta (b, l, e), A (e, n), B, C (b, l, n), D (e,); z (b, l, e), or empty for no gate. All float32 or all float64;
    y and ``states`` are contiguous.
    """
    (b, l, e), n = u.shape, A.shape[1]
    if not y.size:
        return
    arrays, steps = _inputs(u, delta, A, B, C, D, z)
    whole = _whole(e, u.itemsize)
    target = y if whole == e else np.empty((b, l, whole), u.dtype)
    shape, tasks = (b, l, whole, n, chunk(n)), b * whole * u.itemsize // BYTES
    outputs = target.reshape(-1), states.reshape(-1)
    in_parallel(_forward, tasks, _threads(y.size * n, threads), *arrays, *outputs, shape, steps, states.size > 0)
    if target is not y:
        y[...] = target[..., :e]


def backward(
    dy: np.ndarray,
    u: np.ndarray,
    delta: np.ndarray,
    A: np.ndarray,
    B: np.ndarray,
    C: np.ndarray,
    D: np.ndarray,
    z: np.ndarray,
    states: np.ndarray,
    du: np.ndarray,
    ddelta: np.ndarray,
    dA: np.ndarray,
    dB: np.ndarray,
    dC: np.ndarray,
    dD: np.ndarray,
    dz: np.ndarray,
    *,
    threads: int,
) -> None:
    """Fill the gradients du … dz from dy and the saved states; dz is empty if z is.

    All are contiguous, except that dB, dC and dz may be slices of the last axis of wider arrays.
    """
    (b, l, e), n = u.shape, A.shape[1]
    whole, groups = _whole(e, u.itemsize), min(b, GROUPS)
    dA_sums = np.zeros((groups, whole * u.itemsize // BYTES, n, BYTES // u.itemsize), u.dtype)
    dD_sums = np.zeros((groups, whole), u.dtype)
    if du.size:
        arrays, steps = _inputs(u, delta, A, B, C, D, z)
        states_whole = _whole(n, 2 * u.itemsize)  # halves of a vector are vectors of numbers twice as large
        results = [(du, whole), (ddelta, whole), (dz, whole), (dB, states_whole), (dC, states_whole)]
        wide = [x if x.shape[-1] in (0, size) else np.empty((b, l, size), x.dtype) for x, size in results]
        (of_B, B_step), (of_C, C_step), (of_z, z_step) = _rows(wide[3]), _rows(wide[4]), _rows(wide[2])
        gradients = _flat(wide[0]), _flat(wide[1]), _flat(dA_sums), of_B, of_C, _flat(dD_sums), of_z
        inputs, shape = (_flat(dy, whole), *arrays, _flat(states)), (b, l, whole, n, chunk(n))
        all_steps = (*steps, B_step, C_step, z_step)
        in_parallel(_backward, groups, _threads(du.size * n, threads), *inputs, *gradients, shape, all_steps)
        for (x, _), padded in zip(results, wide, strict=True):
            if padded is not x:
                x[...] = padded[..., : x.shape[-1]]
    else:
        dB[...] = dC[...] = 0
    dA[...] = dA_sums.sum(0, dtype=np.float64).swapaxes(1, 2).reshape(whole, n)[:e]
    dD[...] = dD_sums.sum(0, dtype=np.float64)[:e]


def _threads(updates: int, threads: int) -> int:
    return 1 if updates < SERIAL else threads


def _whole(channels: Any, itemsize: int) -> Any:
    """Round `channels` up to whole vectors."""
    width = BYTES // itemsize
    return -(-channels // width) * width


def _padded(x: np.ndarray, channels: int) -> np.ndarray:
    """Pad the last axis of x with zeros to `channels`."""
    missing = channels - x.shape[-1]
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x


def _flat(x: np.ndarray, channels: int | None = None) -> np.ndarray:
    """Flatten x to a contiguous array, its last axis first padded with zeros to `channels`."""
    return np.ascontiguousarray(x if channels is None else _padded(x, channels)).reshape(-1)


def _rows(x: np.ndarray) -> tuple[np.ndarray, int]:
    """The memory of x (b, l, …) as a flat array and the step from row to row; copies only rows at uneven distances."""
    if not x.size:
        return x.reshape(-1), 0
    flat, (step,) = strided(x.reshape(-1, x.shape[-1]))
    return flat, step


def _inputs(u, delta, A, B, C, D, z) -> tuple[tuple[np.ndarray, ...], tuple[int, int, int]]:
    """Inputs as flat arrays, A times log2 e and tiled, and the steps from row to row of B, C and z."""
    whole = _whole(u.shape[-1], u.itemsize)
    # Tile A as (vectors, n, width): contiguous for one vector of channels.
    tiled = _padded((A * A.dtype.type(LOG2E)).T, whole).reshape(A.shape[1], -1, BYTES // A.itemsize).swapaxes(0, 1)
    (B, B_step), (C, C_step), (z, z_step) = _rows(B), _rows(C), _rows(_padded(z, whole) if z.size else z)
    arrays = (_flat(u, whole), _flat(delta, whole), _flat(tiled), B, C, _flat(D, whole), z)
    return arrays, (B_step, C_step, z_step)
