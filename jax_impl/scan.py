"""The selective scan of Mamba: its definition, a chunked form, and the choice of an implementation.

    h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t u_t        (e, n), from h_{−1} = 0
    y_t = (C_t · h_t + D u_t) ⊙ silu(z_t)         (e,)

(Gu and Dao 2023, arXiv 2312.00752, equation 2 discretised as in algorithm 2: exp(ΔA) for A, ΔB for B.)
Every function takes u, delta (b, l, e), delta after softplus; A (e, n), negative; B, C (b, l, n); D (e,); z (b, l, e)
or None for no gate; and returns y (b, l, e).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import sigmoid, silu
from jaxtyping import Float

from jax_impl.kernels import cpu_kernels, gpu_scan
from twinsep.model.scan_inputs import check_scan_inputs

#: Frames per chunk. The sequential method unrolls them, so that longer chunks take longer to compile.
CHUNK = {"sequential": 8, "associative": 32}
#: Largest size in bytes of the states of one frame; larger batches are computed in groups of sequences. The sequential
#: method is fastest if they fit the CPU's cache.
GROUP = {"sequential": 1 << 19, "associative": 1 << 20}


def selective_scan(
    u: Float[Array, "b l e"],
    delta: Float[Array, "b l e"],
    A: Float[Array, "e n"],
    B: Float[Array, "b l n"],
    C: Float[Array, "b l n"],
    D: Float[Array, " e"],
    z: Float[Array, "b l e"] | None = None,
) -> Float[Array, "b l e"]:
    """Selective scan by the fastest implementation for the default backend; returns y (b, l, e) in u's dtype.

    The state is float32, or float64 if all inputs are. Only first-order gradients are defined.
    Raises ValueError if shapes or dtypes do not match.
    """
    check_scan_inputs(u, delta, A, B, C, D, z)
    dtype = jnp.float64 if u.dtype == jnp.float64 else jnp.float32
    inputs: list[Any] = [x if x is None else x.astype(dtype) for x in (u, delta, A, B, C, D, z)]
    on_cpu = jax.default_backend() == "cpu"
    kernels = cpu_kernels() if on_cpu else None
    if kernels is not None:
        return kernels.selective_scan(*inputs).astype(u.dtype)
    on_gpu = jax.default_backend() in ("gpu", "cuda")
    if on_gpu and dtype == jnp.float32:
        kernel = gpu_scan(selective_scan_chunked, selective_scan_sequential)
        if kernel is not None:
            return kernel(*inputs).astype(u.dtype)
    # Without the kernel, frame by frame is the least work on a CPU, whose vectors one state already fills (measured in
    # results/bench/scan.json). The choice for accelerators has not been measured.
    method = "sequential" if on_cpu else "associative"
    return selective_scan_chunked(*inputs, method=method).astype(u.dtype)


def selective_scan_sequential(
    u: Float[Array, "b l e"],
    delta: Float[Array, "b l e"],
    A: Float[Array, "e n"],
    B: Float[Array, "b l n"],
    C: Float[Array, "b l n"],
    D: Float[Array, " e"],
    z: Float[Array, "b l e"] | None = None,
) -> Float[Array, "b l e"]:
    """Selective scan by its definition, frame by frame: differentiated by JAX, in the inputs' dtype."""
    check_scan_inputs(u, delta, A, B, C, D, z)

    def frame(h: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        u_t, delta_t, B_t, C_t = inputs
        return selective_scan_step(h, u_t, delta_t, A, B_t, C_t, D)

    h = jnp.zeros((u.shape[0], *A.shape), u.dtype)
    _, y = jax.lax.scan(frame, h, tuple(x.swapaxes(0, 1) for x in (u, delta, B, C)))
    y = y.swapaxes(0, 1)
    return y if z is None else y * silu(z)


def selective_scan_step(
    h: Float[Array, "b e n"],
    u: Float[Array, "b e"],
    delta: Float[Array, "b e"],
    A: Float[Array, "e n"],
    B: Float[Array, "b n"],
    C: Float[Array, "b n"],
    D: Float[Array, " e"],
) -> tuple[Float[Array, "b e n"], Float[Array, "b e"]]:
    """One frame of the selective scan without gate: the state h_t after h_{t−1}, and y_t."""
    delta = delta[..., None]
    # h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t u_t
    h = jnp.exp(delta * A) * h + delta * B[:, None, :] * u[..., None]
    # y_t = C_t · h_t + D u_t
    return h, (h * C[:, None, :]).sum(-1) + D * u


def selective_scan_chunked(
    u: Float[Array, "b l e"],
    delta: Float[Array, "b l e"],
    A: Float[Array, "e n"],
    B: Float[Array, "b l n"],
    C: Float[Array, "b l n"],
    D: Float[Array, " e"],
    z: Float[Array, "b l e"] | None = None,
    *,
    method: str = "associative",
) -> Float[Array, "b l e"]:
    """Selective scan in chunks of frames, in JAX operations.

    Only one chunk of states, about (CHUNK[method], b, e, n), exists at a time, forward and backward; the forward pass
    saves the states at chunk boundaries. ``method`` computes a chunk frame by frame ("sequential") or by
    ``jax.lax.associative_scan`` ("associative"). All inputs must have one dtype, float32 or float64.
    """
    check_scan_inputs(u, delta, A, B, C, D, z)
    group = _group(u.shape[0], A.size * A.dtype.itemsize, GROUP[method])
    if group == u.shape[0]:
        return _chunked_scan(method, u, delta, A, B, C, D, z)

    # The backward pass recomputes one group at a time from its inputs.
    @jax.checkpoint
    def of_group(inputs: tuple[Array, ...]) -> Array:
        u, delta, B, C, *gate = inputs
        return _chunked_scan(method, u, delta, A, B, C, D, gate[0] if gate else None)

    inputs = (u, delta, B, C) if z is None else (u, delta, B, C, z)
    y = jax.lax.map(of_group, tuple(x.reshape(-1, group, *x.shape[1:]) for x in inputs))
    return y.reshape(u.shape)


def _group(sequences: int, size: int, most: int) -> int:
    """Sequences per group: all, or the largest divisor whose states of one frame take at most ``most`` bytes."""
    if sequences * size <= most:
        return sequences
    return max(k for k in range(1, sequences + 1) if sequences % k == 0 and k * size <= max(most, size))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked_scan(
    method: str, u: Array, delta: Array, A: Array, B: Array, C: Array, D: Array, z: Array | None
) -> Array:
    """The gated scan with its own gradient: JAX would save every state of every chunk."""
    return _forward(method, u, delta, A, B, C, D, z)[0]


def _forward(
    method: str, u: Array, delta: Array, A: Array, B: Array, C: Array, D: Array, z: Array | None
) -> tuple[Array, Any]:
    length, size = u.shape[1], _chunk_size(method, u.shape[1])
    A_t = A.T  # outside the loop, where XLA cannot fuse the transposition into every exponential

    def chunk(h: Array, inputs: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        after, y = CHUNK_SCANS[method].forward(h, A_t, *inputs)
        return after, (y, h)

    h = jnp.zeros((u.shape[0], *A_t.shape), u.dtype)  # (b, n, e): neighbouring channels fill a vector register
    _, (y, boundaries) = jax.lax.scan(chunk, h, tuple(_in_chunks(x, size) for x in (u, delta, B, C)))
    y = _from_chunks(y, length) + D * u
    return (y if z is None else y * silu(z)), (u, delta, A, B, C, D, z, boundaries, None if z is None else y)


def _backward(method: str, saved: Any, dy: Array) -> tuple[Array | None, ...]:
    u, delta, A, B, C, D, z, boundaries, y = saved
    dz = None
    if z is not None:
        gate = sigmoid(z)
        # d silu(z)/dz = σ(z) (1 + z (1 − σ(z)))
        dz, dy = dy * y * gate * (1 + z * (1 - gate)), dy * z * gate
    length, size, A_t = u.shape[1], _chunk_size(method, u.shape[1]), A.T

    def chunk(carry: tuple[Array, Array], inputs: tuple[Array, ...]) -> tuple[tuple[Array, Array], list[Array]]:
        dh, dA = carry  # dh = a_{t+1} ∂h_{t+1} of the first frame after the chunk
        dh, dA_of_chunk, gradients = CHUNK_SCANS[method].backward(dh, inputs[0], A_t, *inputs[1:])
        return (dh, dA + dA_of_chunk), gradients

    start = (jnp.zeros_like(boundaries[0]), jnp.zeros_like(A_t))
    inputs = (boundaries, *(_in_chunks(x, size) for x in (u, delta, B, C, dy)))
    (_, dA), gradients = jax.lax.scan(chunk, start, inputs, reverse=True)
    du, ddelta, dB, dC = (_from_chunks(x, length) for x in gradients)
    return du + D * dy, ddelta, dA.T, dB, dC, (dy * u).sum((0, 1)), dz


_chunked_scan.defvjp(_forward, _backward)


def _chunk_size(method: str, length: int) -> int:
    """Frames per chunk: the divisor of ``length`` nearest to CHUNK[method], or CHUNK[method] if none is near."""
    wanted = CHUNK[method]
    fitting = [size for size in range(wanted // 2, 2 * wanted + 1) if length % size == 0]
    return min(fitting, key=lambda size: abs(size - wanted), default=wanted)


def _in_chunks(x: Array, size: int) -> Array:
    """Reshape (b, l, k) to (chunks, size, b, k), zero-padded at the end: Δ = 0 leaves the state unchanged."""
    b, l, k = x.shape
    padding = -l % size
    padded = jnp.pad(x, ((0, 0), (0, padding), (0, 0))) if padding else x
    return padded.reshape(b, -1, size, k).transpose(1, 2, 0, 3)


def _from_chunks(x: Array, length: int) -> Array:
    """Reshape (chunks, size, b, k) to (b, length, k), the inverse of :func:`_in_chunks`."""
    chunks, size, b, k = x.shape
    return x.reshape(chunks * size, b, k)[:length].swapaxes(0, 1)


# ---------------------------------------------------------------------------- one chunk
#
# Here the state h is (b, n, e) and A (n, e); u, delta, dy are (frames, b, e) and B, C (frames, b, n). The backward pass
# computes, per channel and state, with ∂h_t = C_t ∂y_t + a_{t+1} ∂h_{t+1}:
#   ∂C_t = h_t ∂y_t, ∂B_t = ∂h_t Δ_t u_t, ∂s_t = ∂h_t a_t h_{t−1} for s_t = Δ_t A, ∂A = Σ_t ∂s_t Δ_t,
#   ∂u_t = Δ_t ∂h_t·B_t, ∂Δ_t = ∂s_t·A + u_t ∂h_t·B_t


def _step(h: Array, A: Array, u: Array, delta: Array, B: Array) -> tuple[Array, Array]:
    """One frame: the decay a_t, and h_t from h_{t−1}."""
    decay = jnp.exp(delta[:, None, :] * A)
    return decay, decay * h + (delta * u)[:, None, :] * B[:, :, None]


def _sequential(h: Array, A: Array, u: Array, delta: Array, B: Array, C: Array) -> tuple[Array, Array]:
    """State after the chunk, and C_t · h_t (frames, b, e).

    Unrolled: in a loop XLA does not fuse a frame into one pass over the state.
    """
    y = []
    for t in range(len(u)):
        _, h = _step(h, A, u[t], delta[t], B[t])
        y.append((h * C[t][:, :, None]).sum(1))
    return h, jnp.stack(y)


def _sequential_backward(
    dh: Array, h: Array, A: Array, u: Array, delta: Array, B: Array, C: Array, dy: Array
) -> tuple[Array, Array, list[Array]]:
    """a_t ∂h_t of the first frame, ∂A, and ∂u, ∂Δ, ∂B, ∂C of all frames; ``h`` is the state before the chunk."""
    states, decays = [h], []
    for t in range(len(u)):
        decay, h = _step(h, A, u[t], delta[t], B[t])
        decays.append(decay)
        states.append(h)
    dA = jnp.zeros_like(dh)  # summed over sequences once at the end, not in every frame
    gradients: list[tuple[Array, ...]] = []
    for t in reversed(range(len(u))):
        dh = dh + dy[t][:, None, :] * C[t][:, :, None]
        dC = jnp.einsum("bne,be->bn", states[t + 1], dy[t])
        dB = jnp.einsum("bne,be->bn", dh, delta[t] * u[t])
        dh_B = (dh * B[t][:, :, None]).sum(1)
        dh = dh * decays[t]
        ds = dh * states[t]
        dA = dA + ds * delta[t][:, None, :]
        gradients.insert(0, (delta[t] * dh_B, (ds * A).sum(1) + u[t] * dh_B, dB, dC))
    return dh, dA.sum(0), [jnp.stack(parts) for parts in zip(*gradients, strict=True)]


def _associative(h: Array, A: Array, u: Array, delta: Array, B: Array, C: Array) -> tuple[Array, Array]:
    """Compute :func:`_sequential` by ``jax.lax.associative_scan``; all states (frames, b, n, e) exist at once."""
    _, states = _states(h, A, u, delta, B)
    return states[-1], jnp.einsum("lbne,lbn->lbe", states, C)


def _associative_backward(
    dh: Array, h: Array, A: Array, u: Array, delta: Array, B: Array, C: Array, dy: Array
) -> tuple[Array, Array, list[Array]]:
    """Compute :func:`_sequential_backward` by ``jax.lax.associative_scan``."""
    decay, states = _states(h, A, u, delta, B)
    # The same recurrence, backwards in time.
    inflow = (dy[:, :, None, :] * C[..., None]).at[-1].add(dh)
    dstates = _scan(jnp.roll(decay, -1, 0), inflow, reverse=True)
    dC = jnp.einsum("lbne,lbe->lbn", states, dy)
    dB = jnp.einsum("lbne,lbe->lbn", dstates, delta * u)
    dh_B = jnp.einsum("lbne,lbn->lbe", dstates, B)
    dstates = dstates * decay
    ds = dstates * jnp.concatenate([h[None], states[:-1]])
    # A sum instead of a matrix product: XLA fuses it, which makes the whole backward pass a fifth faster.
    dA = (ds * delta[:, :, None, :]).sum((0, 1))
    ddelta = jnp.einsum("lbne,ne->lbe", ds, A) + u * dh_B
    return dstates[0], dA, [delta * dh_B, ddelta, dB, dC]


def _states(h: Array, A: Array, u: Array, delta: Array, B: Array) -> tuple[Array, Array]:
    """Decays and states (frames, b, n, e) of one chunk, whose preceding state is h."""
    decay = jnp.exp(delta[:, :, None, :] * A)
    inflow = (delta * u)[:, :, None, :] * B[..., None]
    return decay, _scan(decay, inflow.at[0].add(decay[0] * h))


def _scan(a: Array, x: Array, *, reverse: bool = False) -> Array:
    """Recurrence x_t ← x_t + a_t x_{t−1} along the first axis, ignoring a_0; with ``reverse``, backwards in time.

    Uses products of decays, never their inverses, so that strong decay cannot overflow.
    """

    def combine(first: tuple[Array, Array], then: tuple[Array, Array]) -> tuple[Array, Array]:
        return then[0] * first[0], then[1] + then[0] * first[1]

    return jax.lax.associative_scan(combine, (a, x), reverse=reverse)[1]


class ChunkScan(NamedTuple):
    """One method of computing a chunk: its forward and backward functions."""

    forward: Callable[..., tuple[Array, Array]]
    backward: Callable[..., tuple[Array, Array, list[Array]]]


#: Methods by name.
CHUNK_SCANS = {
    "sequential": ChunkScan(_sequential, _sequential_backward),
    "associative": ChunkScan(_associative, _associative_backward),
}
