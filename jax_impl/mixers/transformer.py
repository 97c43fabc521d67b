"""Transformer: self-attention with rotary position embeddings, which sees both directions."""

from __future__ import annotations

from functools import partial

import numpy as np
from einops import rearrange
from jax import Array
from jaxtyping import Float

from jax_impl.layers import Module, MultiHeadAttention
from jax_impl.ops import concatenate, constant
from jax_impl.window import AttentionState, WindowAttention
from twinsep.config import BandSplitConfig, mixers


class Transformer(Module):
    """Multi-head self-attention with rotary position embeddings on q and k (RoPE; Su et al. 2021, arXiv 2104.09864)."""

    def __init__(self, model: BandSplitConfig):
        assert isinstance(model.mixer, mixers.Transformer)
        self.rotate = partial(rotate, base=model.mixer.rope_base)
        self.attention = MultiHeadAttention(model.d_model, model.n_heads)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Mix a sequence (b, l, d) along its length."""
        return self.attention(x, x, self.rotate)


class CausalTransformer(Module):
    """Causal attention: to the frame itself and a window of the past; positions count from its first frame."""

    def __init__(self, model: BandSplitConfig):
        assert isinstance(model.mixer, mixers.Transformer)
        base = model.mixer.rope_base
        self.attention = WindowAttention(model, lambda x, start: rotate(x, base, start))

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Mix a sequence (b, l, d) along its length."""
        return self.attention(x[:, :, None])[:, :, 0]

    def start(self, batch: int) -> AttentionState:
        """The state before the first frame."""
        return self.attention.start(batch, 1)

    def step(self, x: Float[Array, "b d"], state: AttentionState) -> tuple[Float[Array, "b d"], AttentionState]:
        """Mix one frame (b, d), given the state before it; return the state for the next frame too."""
        y, state = self.attention.step(x[:, None], state)
        return y[:, 0], state


def rotate(x: Float[Array, "*b l e"], base: float, start: int = 0) -> Float[Array, "*b l e"]:
    """Rotate the pair of features (i, i + e/2) at position t by the angle t · base^(−2i/e) (RoPE, equation 34).

    Positions count from ``start``.
    """
    l, e = x.shape[-2:]
    angle = np.outer(np.arange(start, start + l), base ** (-2 * np.arange(e // 2) / e))  # (l, e/2)
    cos, sin = constant(np.cos(angle), x), constant(np.sin(angle), x)
    first, second = rearrange(x, "... l (two e) -> two ... l e", two=2)
    return concatenate([first * cos - second * sin, first * sin + second * cos], -1)
