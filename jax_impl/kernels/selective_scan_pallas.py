"""The selective scan on an NVIDIA GPU, forward and backward, in Pallas (compiled by XLA's Triton).

    h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t u_t        y_t = (C_t · h_t + D u_t) ⊙ silu(z_t)

(Mamba: Gu and Dao 2023, arXiv 2312.00752, equation 2 and algorithm 2.) A program holds the states of one block of
channels of one sequence in registers, as a tile (N, E), and steps through the frames. Nothing of shape (b, l, e, n) is
ever stored. The forward pass saves the states at chunk boundaries, if asked. The backward pass takes the chunks from
last to first: it recomputes the states of a chunk into a buffer, then runs the recurrence in reverse. At most PROGRAMS
programs, each with one buffer, share its work.

There are no atomic operations, so results repeat to the bit: each program writes its own part of the gradients of A, B,
C and D, and XLA adds the parts. Triton wants tiles whose sides are powers of two: states are padded to N and weights to
whole blocks of channels before the kernel, sequences are masked.
"""

from collections.abc import Callable
from functools import partial
from math import log
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

CHUNK = 32  # frames between saved states, a multiple of STEP
STEP = 2  # frames whose inputs are loaded together, because a program waits for memory most of the time
STATES = 512  # states per tile (N, E): 16 per thread of a warp, so that the backward pass fits its registers
PROGRAMS = 2048  # largest number of programs of the backward pass, or one per block; their buffers take 128 MiB
LOG2E, LN2 = 1 / log(2), log(2)  # exp(x) = 2^(x log2 e)


def selective_scan(
    u: Array, delta: Array, A: Array, B: Array, C: Array, D: Array, z: Array | None = None, *,
    elsewhere: Callable[..., Array], interpret: bool = False,
) -> Array:  # fmt: skip
    """Selective scan y (b, l, e) of float32 inputs.

    In programs for other devices than CUDA's it is ``elsewhere(u, …, z, method=…)``, which is
    :func:`jax_impl.scan.selective_scan_chunked`. ``interpret`` computes the kernel by JAX operations on any device.
    Only first-order gradients are defined.
    """
    if not u.size:
        return u  # as empty as y
    return _scan(elsewhere, interpret, u, delta, A, B, C, D, z)


# The functions below are compiled on their own, so that JAX traces them once per shape and not in every layer.


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
@partial(jax.jit, static_argnums=(0, 1))
def _scan(elsewhere: Callable[..., Array], interpret: bool, *inputs: Array | None) -> Array:
    return _on_gpu(interpret, partial(_forward, keep=False), elsewhere, *inputs)


@partial(jax.jit, static_argnums=(0, 1))
def _saving(elsewhere: Callable[..., Array], interpret: bool, *inputs: Any) -> tuple[Array, Array]:
    u, _, A, *_ = inputs

    def other(*inputs: Array | None, method: str) -> tuple[Array, Array]:
        return elsewhere(*inputs, method=method), jnp.zeros(_shape_of_states(u.shape, A.shape[1]), u.dtype)

    return _on_gpu(interpret, partial(_forward, keep=True), other, *inputs)


@partial(jax.jit, static_argnums=(0, 1))
def _gradients(elsewhere: Callable[..., Array], interpret: bool, *saved: Array | None) -> tuple[Array | None, ...]:
    def other(dy: Array, _: Array, *inputs: Array | None, method: str) -> tuple[Array | None, ...]:
        return jax.vjp(partial(elsewhere, method=method), *inputs)[1](dy)

    return _on_gpu(interpret, _backward, other, *saved)


def _save(elsewhere: Callable[..., Array], interpret: bool, *inputs: Array | None) -> tuple[Array, Any]:
    y, states = _saving(elsewhere, interpret, *inputs)
    return y, (states, *inputs)


_scan.defvjp(_save, lambda elsewhere, interpret, saved, dy: _gradients(elsewhere, interpret, dy, *saved))


def _on_gpu(interpret: bool, kernel: Callable[..., Any], other: Callable[..., Any], *arguments: Array | None) -> Any:
    """Call ``kernel`` in programs for CUDA, which the device of the inputs decides, and else ``other``."""
    if interpret:
        return kernel(*arguments, interpret=True)
    others = {"cpu": partial(other, method="sequential"), "default": partial(other, method="associative")}
    return lax.platform_dependent(*arguments, cuda=kernel, **others)


# ---------------------------------------------------------------------------- sizes


def _tile(n: int, e: int) -> tuple[int, int]:
    """N and E of a tile, powers of two."""
    N = pl.next_power_of_2(n)
    return N, min(pl.next_power_of_2(e), max(STATES // N, 16))


def _warps(N: int, E: int) -> int:
    return max(N * E // STATES, 1)


def _shape_of_states(shape: tuple[int, ...], n: int) -> tuple[int, ...]:
    """Shape of the saved states, the state before each chunk: (b, chunks, N, channels of whole blocks)."""
    b, l, e = shape
    N, E = _tile(n, e)
    return b, pl.cdiv(l, CHUNK), N, pl.cdiv(e, E) * E


def _padded(A: Array, B: Array, C: Array, D: Array) -> tuple[Array, Array, Array, Array]:
    """A as (N, channels), B, C (b, l, N) and D (channels,): padding has A = 0 and B = 0, so that its states stay 0."""
    e, n = A.shape
    N, E = _tile(n, e)
    more = -e % E
    A, D = jnp.pad(A.T, ((0, N - n), (0, more))), jnp.pad(D, (0, more))
    B, C = (jnp.pad(x, ((0, 0), (0, 0), (0, N - n))) for x in (B, C))
    return A, B, C, D


def _call(kernel: Any, name: str, grid: tuple[int, int], N: int, E: int, results: Any, interpret: bool) -> Any:
    parameters = plt.CompilerParams(num_warps=_warps(N, E), num_stages=1)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in results]
    return pl.pallas_call(
        kernel, out_shape=shapes, grid=grid, compiler_params=parameters, interpret=interpret, name=name
    )


# ---------------------------------------------------------------------------- in a program
#
# Arrays in memory are called refs. A program reads and writes rows of them: the channels of one frame (E,), or the
# states of one frame (N,).


def _iota(size: int) -> Array:
    return lax.broadcasted_iota(jnp.int32, (size,), 0)


def _steps(first: Array, l: int) -> Array:
    """Steps of the chunk that starts at frame ``first``."""
    return jnp.minimum(jnp.int32(CHUNK // STEP), lax.div(l - first + jnp.int32(STEP - 1), jnp.int32(STEP)))


def _loop(count: int | Array, body: Any, start: Any) -> Any:
    """``jax.lax.fori_loop`` from 0 with a 32-bit counter."""
    return lax.fori_loop(jnp.int32(0), jnp.int32(count), body, start)


def _times(x: Array, y: Array) -> Array:
    """Outer product (N, E) of states (N,) and channels (E,)."""
    return x[:, None] * y[None, :]


class _Rows:
    """Reads and writes the rows of one block of channels of one sequence. Frames after the last one read as zeros."""

    def __init__(self, sequence: Array, block: Array, l: int, e: int, N: int, E: int) -> None:
        self.sequence, self.l, self.N = sequence, l, N
        self.channels = pl.ds(block * E, E)
        self.here = block * E + _iota(E) < e

    def of_channels(self, ref: Any, t: Array) -> Array:
        """Read frame t (E,) of a ref (b, l, e)."""
        return plt.load(ref.at[self.sequence, t, self.channels], mask=self.here & (t < self.l), other=0.0)

    def of_states(self, ref: Any, t: Array) -> Array:
        """Read frame t (N,) of a ref (b, l, N)."""
        return plt.load(ref.at[self.sequence, t, :], mask=jnp.full((self.N,), t < self.l), other=0.0)

    def write(self, ref: Any, t: Array, row: Array) -> None:
        """Write frame t of a ref (b, l, e)."""
        plt.store(ref.at[self.sequence, t, self.channels], row, mask=self.here & (t < self.l))


def _step(h: Array, decay: Array, u: Array, delta: Array, B: Array) -> Array:
    """Return h_t from h_{t−1}, by 2^(Δ_t decay) = exp(Δ_t A)."""
    return jnp.exp2(decay * delta[None, :]) * h + _times(B, delta * u)


# ---------------------------------------------------------------------------- forward


def _forward_program(*refs: Any, gated: bool, keep: bool, l: int, e: int, N: int, E: int) -> None:
    """One block of channels of one sequence."""
    u, delta, A, B, C, D, *refs_left = refs
    z = refs_left.pop(0) if gated else None
    y = refs_left.pop(0)
    block, sequence = pl.program_id(0), pl.program_id(1)
    rows = _Rows(sequence, block, l, e, N, E)
    decay, skip = A[:, rows.channels] * LOG2E, D[rows.channels]

    def step(first: Array, h: Array) -> Array:
        frames = [first + jnp.int32(i) for i in range(STEP)]
        us, deltas = ([rows.of_channels(ref, t) for t in frames] for ref in (u, delta))
        Bs, Cs = ([rows.of_states(ref, t) for t in frames] for ref in (B, C))
        zs = [rows.of_channels(z, t) for t in frames] if gated else []
        ys = []
        for i in range(STEP):
            h = _step(h, decay, us[i], deltas[i], Bs[i])
            ys.append(jnp.sum(h * Cs[i][:, None], 0) + skip * us[i])
        for i, t in enumerate(frames):
            rows.write(y, t, ys[i] * zs[i] * lax.logistic(zs[i]) if gated else ys[i])
        return h

    def chunk(number: Array, h: Array) -> Array:
        if keep:
            [states] = refs_left
            plt.store(states.at[sequence, number, :, rows.channels], h)
        first = number * CHUNK
        return _loop(_steps(first, l), lambda k, h: step(first + k * STEP, h), h)

    _loop(pl.cdiv(l, CHUNK), chunk, jnp.zeros((N, E), jnp.float32))


def _forward(
    u: Array, delta: Array, A: Array, B: Array, C: Array, D: Array, z: Array | None, *, keep: bool,
    interpret: bool = False,
) -> Any:  # fmt: skip
    """y (b, l, e); with ``keep``, also the states before each chunk."""
    (b, l, e), n = u.shape, A.shape[1]
    N, E = _tile(n, e)
    program = partial(_forward_program, gated=z is not None, keep=keep, l=l, e=e, N=N, E=E)
    results = [u.shape, _shape_of_states(u.shape, n)] if keep else [u.shape]
    call = _call(program, "selective_scan", (pl.cdiv(e, E), b), N, E, results, interpret)
    found = call(u, delta, *_padded(A, B, C, D), *(() if z is None else (z,)))
    return tuple(found) if keep else found[0]


# ---------------------------------------------------------------------------- backward


def _backward_program(
    *refs: Any, gated: bool, barrier: bool, b: int, groups: int, l: int, e: int, N: int, E: int
) -> None:
    """One block of channels of every ``groups``-th sequence.

    With ∂h_t = C_t g_t + a_{t+1} ∂h_{t+1}, g = ∂y before the gate and s_t = Δ_t A, per channel and state:
    ∂C_t = h_t g_t, ∂B_t = ∂h_t Δ_t u_t (both summed over channels), ∂s_t = ∂h_t a_t h_{t−1}, ∂A = Σ_t ∂s_t Δ_t,
    ∂u_t = Δ_t ∂h_t·B_t + D g_t, ∂Δ_t = ∂s_t·A + u_t ∂h_t·B_t, ∂D = Σ_t g_t u_t.
    """
    dy, states, u, delta, A, B, C, D, *refs_left = refs
    z = refs_left.pop(0) if gated else None
    du, ddelta, dA, dB, dC, dD, buffer, *of_gate = refs_left
    block, group = pl.program_id(0), pl.program_id(1)
    chunks = pl.cdiv(l, CHUNK)

    def wait() -> None:
        # The threads that read the buffer may not be those that wrote it.
        if barrier:
            plt.debug_barrier()

    def sequence_(number: Array, nothing: Array) -> Array:
        sequence = group + number * groups
        rows = _Rows(sequence, block, l, e, N, E)
        decay, skip = A[:, rows.channels] * LOG2E, D[rows.channels]

        def recompute(first: Array, k: Array, h: Array) -> Array:
            """Put the state before each frame of a step into the buffer."""
            frames = [first + k * STEP + i for i in range(STEP)]
            us, deltas = ([rows.of_channels(ref, t) for t in frames] for ref in (u, delta))
            Bs = [rows.of_states(B, t) for t in frames]
            if gated:
                Cs = [rows.of_states(C, t) for t in frames]
                zs, dys = ([rows.of_channels(ref, t) for t in frames] for ref in (z, dy))
            for i, t in enumerate(frames):
                plt.store(buffer.at[group, block, k * STEP + i, :, :], h)
                h = _step(h, decay, us[i], deltas[i], Bs[i])
                if gated:
                    # d silu(z)/dz = s (1 + z (1 − s)), s = sigmoid(z)
                    y_t, s_t = jnp.sum(h * Cs[i][:, None], 0) + skip * us[i], lax.logistic(zs[i])
                    rows.write(of_gate[0], t, dys[i] * y_t * (s_t * (1 + zs[i] * (1 - s_t))))
            return h

        def reverse(first: Array, k: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            """One step backwards in time; ``sums`` are a_{t+1} ∂h_{t+1}, ∂A and ∂D so far."""
            dh, dA_s, dD_s = sums
            frames = [first + k * STEP + i for i in range(STEP)]
            us, deltas, gs = ([rows.of_channels(ref, t) for t in frames] for ref in (u, delta, dy))
            Bs, Cs = ([rows.of_states(ref, t) for t in frames] for ref in (B, C))
            if gated:
                zs = [rows.of_channels(z, t) for t in frames]
                gs = [g * z_t * lax.logistic(z_t) for g, z_t in zip(gs, zs, strict=True)]
            for i in reversed(range(STEP)):
                t, u_t, delta_t, g_t = frames[i], us[i], deltas[i], gs[i]
                before = plt.load(buffer.at[group, block, k * STEP + i, :, :])
                a = jnp.exp2(decay * delta_t[None, :])
                h = a * before + _times(Bs[i], delta_t * u_t)
                dh = dh + _times(Cs[i], g_t)
                real = jnp.full((N,), t < l)
                plt.store(dC.at[block, sequence, t, :], jnp.sum(h * g_t[None, :], 1), mask=real)
                plt.store(dB.at[block, sequence, t, :], jnp.sum(dh * (delta_t * u_t)[None, :], 1), mask=real)
                dh_B = jnp.sum(dh * Bs[i][:, None], 0)
                dh = dh * a
                ds = dh * before
                dA_s, dD_s = dA_s + ds * delta_t[None, :], dD_s + g_t * u_t
                rows.write(ddelta, t, jnp.sum(ds * decay, 0) * LN2 + u_t * dh_B)
                rows.write(du, t, delta_t * dh_B + skip * g_t)
            return dh, dA_s, dD_s

        def chunk(back: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
            last = chunks - 1 - back
            first = last * CHUNK
            steps = _steps(first, l)
            h = plt.load(states.at[sequence, last, :, rows.channels])
            _loop(steps, lambda k, h: recompute(first, k, h), h)
            wait()
            sums = _loop(steps, lambda done, sums: reverse(first, steps - 1 - done, sums), sums)
            wait()
            return sums

        zeros = jnp.zeros((N, E), jnp.float32)
        _, dA_s, dD_s = _loop(chunks, chunk, (zeros, zeros, jnp.zeros((E,), jnp.float32)))
        plt.store(dA.at[sequence, :, rows.channels], dA_s)
        plt.store(dD.at[sequence, rows.channels], dD_s)
        return nothing

    # A group has one sequence more if its number is below the remainder.
    count = lax.div(b - group + jnp.int32(groups - 1), jnp.int32(groups))
    _loop(count, sequence_, jnp.int32(0))


def _backward(
    dy: Array, states: Array, u: Array, delta: Array, A: Array, B: Array, C: Array, D: Array, z: Array | None, *,
    interpret: bool = False,
) -> tuple[Array | None, ...]:  # fmt: skip
    """Gradients of all inputs."""
    (b, l, e), n = u.shape, A.shape[1]
    N, E = _tile(n, e)
    blocks = pl.cdiv(e, E)
    groups = min(b, max(PROGRAMS // blocks, 1))
    gated = z is not None
    sizes = {"b": b, "groups": groups, "l": l, "e": e, "N": N, "E": E}
    program = partial(_backward_program, gated=gated, barrier=not interpret, **sizes)
    of_states, of_buffer = (blocks, b, l, N), (groups, blocks, CHUNK, N, E)
    results = [u.shape, u.shape, (b, N, blocks * E), of_states, of_states, (b, blocks * E), of_buffer]
    if gated:
        results.append(u.shape)
    call = _call(program, "selective_scan_backward", (blocks, groups), N, E, results, interpret)
    found = call(dy, states, u, delta, *_padded(A, B, C, D), *((z,) if gated else ()))
    du, ddelta, dA, dB, dC, dD, _, *of_gate = found
    dA, dD = dA.sum(0)[:n, :e].T, dD.sum(0)[:e]
    dB, dC = (x.sum(0)[..., :n] for x in (dB, dC))
    return du, ddelta, dA, dB, dC, dD, of_gate[0] if of_gate else None
