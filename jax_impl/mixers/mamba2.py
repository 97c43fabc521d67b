"""Mamba-2: state space duality (Dao and Gu 2024, arXiv 2405.21060)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from einops import einsum, rearrange
from jax import Array
from jaxtyping import Float

from jax_impl.layers import DepthwiseConvSiLU1d, Linear, Module, RMSNorm, parameter
from jax_impl.ops import (
    concatenate,
    constant,
    cumsum,
    exp,
    full_precision,
    pad_axis,
    silu,
    softplus,
    split,
    zeros,
    zeros_like,
)
from twinsep.config import BandSplitConfig, mixers
from twinsep.model import initializers

CHUNK = 64  # largest number of frames per chunk
GATED_NORM_EPS = 1e-5  # eps of mamba_ssm's gated norm


class Mamba2State(NamedTuple):
    """Frames before the next one, as the convolution reads them (b, d_conv − 1, e + 2n), and the state (b, h, p, n)."""

    past: Array
    h: Array


class Mamba2(Module):
    """(z, uBC, Δ) = W_in x;  (u, B, C) = silu(conv(uBC));  Δ ← softplus(Δ + b_Δ);  y = dual scan + D u;
    W_out RMSNorm(y ⊙ silu(z)).

    Parameters have the names and layouts of mamba_ssm's ``Mamba2`` with one group. Heads h have p = e/h features each.
    """

    def __init__(self, model: BandSplitConfig):
        mixer = model.mixer
        assert isinstance(mixer, mixers.Mamba2)
        d, n = model.d_model, mixer.d_state
        e, heads = mixer.inner_width(d), mixer.heads(d)
        self.heads, self.sizes = heads, [e, e + 2 * n, heads]
        self.conv_sizes = [e, n, n]
        self.in_proj = Linear(d, 2 * e + 2 * n + heads, bias=False)
        self.conv1d = DepthwiseConvSiLU1d(e + 2 * n, mixer.d_conv, left=mixer.d_conv - 1)
        self.dt_bias = parameter((heads,), initializers.softplus_inverse_of_steps)
        self.A_log = parameter((heads,), initializers.log_uniform(1.0, 16.0))
        self.D = parameter((heads,), initializers.ones)
        self.norm = RMSNorm(e, GATED_NORM_EPS)
        self.out_proj = Linear(e, d, bias=False)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Mix a sequence (b, l, d) along its length, from the state 0."""
        z, uBC, dt = split(self.in_proj(x), self.sizes, -1)
        u, B, C = split(self.conv1d(uBC), self.conv_sizes, -1)
        u = rearrange(u, "b l (h p) -> b l h p", h=self.heads)
        delta = softplus(dt + self.dt_bias[...])
        y = dual_scan(u, delta, -exp(self.A_log[...]), B, C) + self.D[:, None] * u
        return self.out_proj(self.norm(rearrange(y, "b l h p -> b l (h p)") * silu(z)))

    def start(self, batch: int) -> Mamba2State:
        """The state before the first frame."""
        A_log, (e, n, _) = self.A_log[...], self.conv_sizes
        return Mamba2State(self.conv1d.start(batch), zeros((batch, self.heads, e // self.heads, n), A_log))

    def step(self, x: Float[Array, "b d"], state: Mamba2State) -> tuple[Float[Array, "b d"], Mamba2State]:
        """Mix one frame (b, d), given the state before it; return the state for the next frame too."""
        z, uBC, dt = split(self.in_proj(x), self.sizes, -1)
        uBC, past = self.conv1d.step(uBC, state.past)
        u, B, C = split(uBC, self.conv_sizes, -1)
        u = rearrange(u, "b (h p) -> b h p", h=self.heads)
        delta = softplus(dt + self.dt_bias[...])  # (b, h)
        # h_t = exp(Δ_t A) h_{t−1} + Δ_t u_t B_tᵀ
        decay = exp(delta * -exp(self.A_log[...]))[..., None, None]
        h = decay * state.h + (delta[..., None] * u)[..., None] * B[:, None, None]
        y = einsum(h, C, "b h p n, b n -> b h p") + self.D[...][:, None] * u
        return self.out_proj(self.norm(rearrange(y, "b h p -> b (h p)") * silu(z))), Mamba2State(past, h)


@full_precision
def dual_scan(
    u: Float[Array, "b l h p"],
    delta: Float[Array, "b l h"],
    A: Float[Array, " h"],
    B: Float[Array, "b l n"],
    C: Float[Array, "b l n"],
) -> Float[Array, "b l h p"]:
    """Scan y_t = C_t · h_t, h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t u_t from zero, in chunks (section 6 of the paper).

    Frame i of a chunk reads the frames j ≤ i of the same chunk through the matrix (C Bᵀ) ⊙ exp(Δ_{j+1} A + … + Δ_i A),
    and earlier chunks through the state at the start of its chunk. A matrix of the same form over chunks computes these
    states.
    """
    length = u.shape[1]
    chunks = -(-length // CHUNK)
    size = -(-length // chunks)  # equal chunks; the padding of the last has Δ = 0, which leaves the state unchanged
    padding = chunks * size - length
    x, a = delta[..., None] * u, delta * A  # (b, l, h, p), (b, l, h)
    x = rearrange(pad_axis(x, -3, padding), "b (c s) h p -> b c s h p", c=chunks)
    a = rearrange(pad_axis(a, -2, padding), "b (c s) h -> b c h s", c=chunks)
    B, C = (rearrange(pad_axis(y, -2, padding), "b (c s) n -> b c s n", c=chunks) for y in (B, C))

    within = decays(a)  # (b, c, h, i, j)
    weights = einsum(C, B, "b c i n, b c j n -> b c i j")[:, :, None] * within
    y = einsum(weights, x, "b c h i j, b c j h p -> b c i h p")

    to_end = rearrange(within[..., -1, :], "b c h s -> b c s h 1")
    states = einsum(B, x * to_end, "b c s n, b c s h p -> b c h p n")
    across = decays(rearrange(a.sum(-1), "b c h -> b h c"))  # (b, h, i, j) over chunks
    states = einsum(across, states, "b h i j, b j h p n -> b i h p n")
    entering = concatenate([zeros_like(states[:, :1]), states[:, :-1]], 1)  # state at the start of each chunk
    from_start = rearrange(exp(cumsum(a, -1)), "b c h s -> b c s h 1")
    y = y + einsum(C, entering, "b c s n, b c h p n -> b c s h p") * from_start
    return rearrange(y, "b c s h p -> b (c s) h p")[:, :length]


def decays(a: Float[Array, "*b s"]) -> Float[Array, "*b s s"]:
    """exp(a_{j+1} + … + a_i) at (i, j) for i ≥ j, 0 elsewhere.

    Sums masked terms: differences of one running sum would cancel.
    """
    lower = np.tril(np.ones((a.shape[-1], a.shape[-1])))
    sums = cumsum(a[..., None] * constant(lower - np.eye(len(lower)), a), -2)
    return exp(sums) * constant(lower, a)
