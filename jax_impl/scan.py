"""The selective scan of Mamba: its definition, and ways to compute it that agree with the definition.

    h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t u_t        (e, n), from h_{−1} = 0
    y_t = (C_t · h_t + D u_t) ⊙ silu(z_t)         (e,)

(Gu and Dao 2023, arXiv 2312.00752, equation 2 discretised as in algorithm 2: exp(ΔA) for A, ΔB for B.)
Every function takes u, delta (b, l, e), delta after softplus; A (e, n), negative; B, C (b, l, n); D (e,); z (b, l, e)
or None for no gate; and gives y (b, l, e).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import sigmoid, silu
from jaxtyping import Float

#: Frames of the state in memory at a time. In sequence the fastest is what stays in a CPU's cache.
CHUNK = {"sequential": 10, "associative": 32}
GROUP = 1 << 20  # bytes that the states of one frame may take; sequences beyond it are computed in groups


def selective_scan(
    u: Float[Array, "b l e"],
    delta: Float[Array, "b l e"],
    A: Float[Array, "e n"],
    B: Float[Array, "b l n"],
    C: Float[Array, "b l n"],
    D: Float[Array, " e"],
    z: Float[Array, "b l e"] | None = None,
) -> Float[Array, "b l e"]:
    """y (b, l, e) in u's dtype, by the fastest way there is on the default backend.

    The state is float32 whatever the inputs, float64 if all of them are. Gradients of the first order only.
    Raises ValueError where shapes or dtypes do not fit each other.
    """
    check_inputs(u, delta, A, B, C, D, z)
    dtype = jnp.float64 if u.dtype == jnp.float64 else jnp.float32
    inputs: list[Any] = [x if x is None else x.astype(dtype) for x in (u, delta, A, B, C, D, z)]
    # One frame after another is the least work, and a CPU has no more lanes than the state has numbers: with gradients
    # it takes 0.3 to 0.6 of the associative form's time (results/bench/scan.json). Elsewhere nothing was measured yet.
    frames = "sequential" if jax.default_backend() == "cpu" else "associative"
    return selective_scan_chunked(*inputs, frames=frames).astype(u.dtype)


def selective_scan_sequential(
    u: Float[Array, "b l e"],
    delta: Float[Array, "b l e"],
    A: Float[Array, "e n"],
    B: Float[Array, "b l n"],
    C: Float[Array, "b l n"],
    D: Float[Array, " e"],
    z: Float[Array, "b l e"] | None = None,
) -> Float[Array, "b l e"]:
    """The definition as it stands, one frame after another: differentiable by JAX itself, in the inputs' dtype."""
    check_inputs(u, delta, A, B, C, D, z)

    def frame(h: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        u_t, delta_t, B_t, C_t = inputs
        # h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t u_t
        h = jnp.exp(delta_t[..., None] * A) * h + delta_t[..., None] * B_t[:, None, :] * u_t[..., None]
        # y_t = C_t · h_t + D u_t
        return h, (h * C_t[:, None, :]).sum(-1) + D * u_t

    h = jnp.zeros((u.shape[0], *A.shape), u.dtype)
    _, y = jax.lax.scan(frame, h, tuple(x.swapaxes(0, 1) for x in (u, delta, B, C)))
    y = y.swapaxes(0, 1)
    return y if z is None else y * silu(z)


def selective_scan_chunked(
    u: Float[Array, "b l e"],
    delta: Float[Array, "b l e"],
    A: Float[Array, "e n"],
    B: Float[Array, "b l n"],
    C: Float[Array, "b l n"],
    D: Float[Array, " e"],
    z: Float[Array, "b l e"] | None = None,
    *,
    frames: str = "associative",
) -> Float[Array, "b l e"]:
    """The same in chunks of time between which the state is carried.

    Only one chunk of states, about (CHUNK[frames], b, e, n), exists at a time, forward and backward; the forward keeps
    the states between chunks. Within a chunk ``frames`` go one after another ("sequential") or by
    ``jax.lax.associative_scan`` ("associative"). The inputs must have one dtype, float32 or float64.
    """
    check_inputs(u, delta, A, B, C, D, z)
    group = _group(u.shape[0], A.size * A.dtype.itemsize)
    if group == u.shape[0]:
        return _chunked_scan(frames, u, delta, A, B, C, D, z)

    # What the backward pass needs of a group beside its inputs is computed again when the group's turn comes.
    @jax.checkpoint
    def of_group(inputs: tuple[Array, ...]) -> Array:
        u, delta, B, C, *gate = inputs
        return _chunked_scan(frames, u, delta, A, B, C, D, gate[0] if gate else None)

    inputs = (u, delta, B, C) if z is None else (u, delta, B, C, z)
    y = jax.lax.map(of_group, tuple(x.reshape(-1, group, *x.shape[1:]) for x in inputs))
    return y.reshape(u.shape)


def _group(sequences: int, size: int) -> int:
    """Sequences to compute together: all, or a divisor for which their states of one frame stay within GROUP bytes."""
    if sequences * size <= GROUP:
        return sequences
    return max(k for k in range(1, sequences + 1) if sequences % k == 0 and k * size <= max(GROUP, size))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked_scan(
    frames: str, u: Array, delta: Array, A: Array, B: Array, C: Array, D: Array, z: Array | None
) -> Array:
    """The gated scan with its gradients written out: JAX would keep every state of every chunk."""
    return _forward(frames, u, delta, A, B, C, D, z)[0]


def _forward(
    frames: str, u: Array, delta: Array, A: Array, B: Array, C: Array, D: Array, z: Array | None
) -> tuple[Array, Any]:
    length, size, starts = _chunks(frames, u)

    def chunk(carry: tuple[Array, Array], start: Array) -> tuple[tuple[Array, Array], Array]:
        h, y = carry
        u_c, delta_c, B_c, C_c = (_cut(x, start, size) for x in inputs)
        _, states = _chunk_states(frames, u_c, delta_c, A, B_c, h)
        return (states[-1], _put(y, jnp.einsum("lben,lbn->lbe", states, C_c), start)), h

    inputs = [_filled(x, size) for x in (u, delta, B, C)]
    h = jnp.zeros((u.shape[0], *A.shape), u.dtype)
    (_, y), boundaries = jax.lax.scan(chunk, (h, jnp.zeros_like(inputs[0])), starts)
    y = y[:, :length] + D * u
    return (y if z is None else y * silu(z)), (u, delta, A, B, C, D, z, boundaries, None if z is None else y)


def _backward(frames: str, saved: Any, dy: Array) -> tuple[Array | None, ...]:
    u, delta, A, B, C, D, z, boundaries, y = saved
    dz = None
    if z is not None:
        gate = sigmoid(z)
        # d silu(z)/dz = σ(z) (1 + z (1 − σ(z)))
        dz, dy = dy * y * gate * (1 + z * (1 - gate)), dy * z * gate
    length, size, starts = _chunks(frames, u)

    def chunk(carry: tuple[Array, Array, list[Array]], inputs: tuple[Array, Array]) -> tuple[Any, None]:
        dh, dA, gradients = carry  # dh = a_{t+1} ∂h_{t+1} of the first frame after the chunk
        start, h = inputs
        u_c, delta_c, B_c, C_c, dy_c = (_cut(x, start, size) for x in whole)
        decay, states = _chunk_states(frames, u_c, delta_c, A, B_c, h)
        dC = jnp.einsum("lben,lbe->lbn", states, dy_c)
        # ∂h_t = C_t ∂y_t + a_{t+1} ∂h_{t+1}: the same recurrence from the last frame to the first
        inflow = dy_c[..., None] * C_c[:, :, None, :]
        inflow = inflow.at[-1].add(dh)
        dstates = _scan(frames, jnp.roll(decay, -1, 0), inflow, reverse=True)
        dB = jnp.einsum("lben,lbe->lbn", dstates, delta_c * u_c)
        dh_B = jnp.einsum("lben,lbn->lbe", dstates, B_c)
        dstates = dstates * decay
        # ∂s_t = ∂h_t a_t h_{t−1} for s_t = Δ_t A
        ds = dstates * jnp.concatenate([h[None], states[:-1]])
        # A sum and not a product of matrices: XLA fuses it, which takes a fifth off the whole backward pass.
        dA = dA + (ds * delta_c[..., None]).sum((0, 1))
        ddelta = jnp.einsum("lben,en->lbe", ds, A) + u_c * dh_B
        found = (delta_c * dh_B, ddelta, dB, dC)
        return (dstates[0], dA, [_put(x, part, start) for x, part in zip(gradients, found, strict=True)]), None

    whole = [_filled(x, size) for x in (u, delta, B, C, dy)]
    start = (jnp.zeros_like(boundaries[0]), jnp.zeros_like(A), [jnp.zeros_like(x) for x in whole[:4]])
    (_, dA, gradients), _ = jax.lax.scan(chunk, start, (starts, boundaries), reverse=True)
    du, ddelta, dB, dC = (x[:, :length] for x in gradients)
    return du + D * dy, ddelta, dA, dB, dC, (dy * u).sum((0, 1)), dz


_chunked_scan.defvjp(_forward, _backward)


def _chunks(frames: str, u: Array) -> tuple[int, int, Array]:
    """(length, frames of a chunk, first frame of each): a size that divides the length if one is near CHUNK[frames]."""
    length, wanted = u.shape[1], CHUNK[frames]
    fitting = [size for size in range(wanted // 2, 2 * wanted + 1) if length % size == 0]
    size = min(fitting, key=lambda size: abs(size - wanted), default=wanted)
    return length, size, jnp.arange(0, length, size)


def _filled(x: Array, size: int) -> Array:
    """x with zeros after it up to whole chunks: Δ = 0 leaves the state as it is."""
    rest = -x.shape[1] % size
    return jnp.pad(x, ((0, 0), (0, rest), (0, 0))) if rest else x


def _cut(x: Array, start: Array, size: int) -> Array:
    """Frames [start, start + size) of (b, l, …) as (size, b, …): one chunk turned at a time, never a copy of all."""
    return jax.lax.dynamic_slice_in_dim(x, start, size, 1).swapaxes(0, 1)


def _put(x: Array, part: Array, start: Array) -> Array:
    """The inverse of :func:`_cut`, in place where XLA can."""
    return jax.lax.dynamic_update_slice_in_dim(x, part.swapaxes(0, 1), start, 1)


def _chunk_states(frames: str, u: Array, delta: Array, A: Array, B: Array, h: Array) -> tuple[Array, Array]:
    """The decays and the states (frames, b, e, n) of one chunk that begins after the state h (b, e, n)."""
    decay = jnp.exp(delta[..., None] * A)
    inflow = (delta * u)[..., None] * B[:, :, None, :]
    return decay, _scan(frames, decay, inflow.at[0].add(decay[0] * h))


def _scan(frames: str, a: Array, x: Array, *, reverse: bool = False) -> Array:
    """x_t ← x_t + a_t x_{t−1} along the first axis, for all t; a_0 is not used. ``reverse``: from the last frame.

    Products of decays only, never their inverses: nothing overflows however strong the decay.
    """
    if frames == "associative":

        def combine(first: tuple[Array, Array], then: tuple[Array, Array]) -> tuple[Array, Array]:
            return then[0] * first[0], then[1] + then[0] * first[1]

        return jax.lax.associative_scan(combine, (a, x), reverse=reverse)[1]

    def frame(h: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        h = inputs[1] + inputs[0] * h
        return h, h

    return jax.lax.scan(frame, jnp.zeros_like(x[0]), (a, x), reverse=reverse)[1]


def check_inputs(u: Array, delta: Array, A: Array, B: Array, C: Array, D: Array, z: Array | None) -> None:
    """Raise ValueError, saying what was expected and what came, unless the inputs of a scan fit each other."""
    if u.ndim != 3 or A.ndim != 2:
        raise ValueError(
            f"selective_scan: u must be (b, l, e) and A (e, n); they have shapes {tuple(u.shape)} and {tuple(A.shape)}."
        )
    (b, l, e), n = u.shape, A.shape[1]
    named = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D} | ({} if z is None else {"z": z})
    expected = {
        "u": (b, l, e),
        "delta": (b, l, e),
        "A": (e, n),
        "B": (b, l, n),
        "C": (b, l, n),
        "D": (e,),
        "z": (b, l, e),
    }
    for name, x in named.items():
        if tuple(x.shape) != expected[name]:
            raise ValueError(
                f"selective_scan: {name} has shape {tuple(x.shape)}; with u {(b, l, e)} and A {tuple(A.shape)} it must "
                f"be {expected[name]}."
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"selective_scan: {name} is {x.dtype}; all inputs must be floating point.")
        if (x.dtype == jnp.float64) != (u.dtype == jnp.float64):
            raise ValueError(
                f"selective_scan: {name} is {x.dtype} and u {u.dtype}; either all inputs are float64 or none is."
            )
