"""Mamba: a selective state space model (Gu and Dao 2023, arXiv 2312.00752)."""

from __future__ import annotations

from typing import NamedTuple

from jax import Array
from jaxtyping import Float

from jax_impl.layers import DepthwiseConvSiLU1d, Linear, Module, parameter
from jax_impl.ops import exp, fused_mamba, silu, softplus, split, zeros
from jax_impl.scan import selective_scan, selective_scan_step
from twinsep.config import BandSplitConfig, mixers
from twinsep.model import initializers


class MambaState(NamedTuple):
    """Frames before the next one, as the convolution reads them (b, d_conv − 1, e), and the state h (b, e, n)."""

    past: Array
    h: Array


class Mamba(Module):
    """(u, z) = W_in x;  u ← silu(conv(u));  (δ, B, C) = W_x u;  Δ = softplus(W_Δ δ + b_Δ);  scan;  W_out.

    Parameters have the names and layouts of mamba_ssm's ``Mamba``.
    """

    def __init__(self, model: BandSplitConfig):
        mixer = model.mixer
        assert isinstance(mixer, mixers.Mamba)
        d, n = model.d_model, mixer.d_state
        e, r = mixer.inner_width(d), mixer.dt_rank(d)
        self.halves, self.sizes = [e, e], [r, n, n]
        self.in_proj = Linear(d, 2 * e, bias=False)
        self.conv1d = DepthwiseConvSiLU1d(e, mixer.d_conv, left=mixer.d_conv - 1)
        self.x_proj = Linear(e, r + 2 * n, bias=False)
        self.dt_proj = Linear(r, e, bias=True)
        self.dt_proj.bias = parameter((e,), initializers.softplus_inverse_of_steps)
        self.A_log = parameter((e, n), initializers.log_arange)
        self.D = parameter((e,), initializers.ones)
        self.out_proj = Linear(e, d, bias=False)

    def weights(self) -> list[Array]:
        """The weights of the layer, in the order in which they are used, A before D."""
        convolution, step = self.conv1d, self.dt_proj
        assert step.bias is not None
        named = [self.in_proj.weight, convolution.weight, convolution.bias, self.x_proj.weight, step.weight, step.bias]
        return [weight[...] for weight in (*named, self.A_log, self.D, self.out_proj.weight)]

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Mix a sequence (b, l, d) along its length, from the state 0."""
        fused = fused_mamba(x, self.weights())
        if fused is not None:
            return fused
        u, z = split(self.in_proj(x), self.halves, -1)  # (b, l, e) each
        u = self.conv1d(u)  # (b, l, e)
        dt, B, C = split(self.x_proj(u), self.sizes, -1)  # (b, l, r), (b, l, n), (b, l, n)
        delta = softplus(self.dt_proj(dt))  # (b, l, e)
        A = -exp(self.A_log[...])
        return self.out_proj(selective_scan(u, delta, A, B, C, self.D[...], z))

    def start(self, batch: int) -> MambaState:
        """The state before the first frame."""
        A_log = self.A_log[...]
        return MambaState(self.conv1d.start(batch), zeros((batch, *A_log.shape), A_log))

    def step(self, x: Float[Array, "b d"], state: MambaState) -> tuple[Float[Array, "b d"], MambaState]:
        """Mix one frame (b, d), given the state before it; return the state for the next frame too."""
        u, z = split(self.in_proj(x), self.halves, -1)  # (b, e) each
        u, past = self.conv1d.step(u, state.past)
        dt, B, C = split(self.x_proj(u), self.sizes, -1)
        delta = softplus(self.dt_proj(dt))
        h, y = selective_scan_step(state.h, u, delta, -exp(self.A_log[...]), B, C, self.D[...])
        return self.out_proj(y * silu(z)), MambaState(past, h)
