"""Transformer: self-attention with rotary position embeddings, which sees both directions."""

from __future__ import annotations

from functools import partial

import numpy as np
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from torch_impl.layers import Module, MultiHeadAttention
from torch_impl.ops import concatenate, constant
from twinsep.config import BandSplitConfig, mixers


class Transformer(Module):
    """Multi-head self-attention with rotary position embeddings on q and k (RoPE; Su et al. 2021, arXiv 2104.09864)."""

    def __init__(self, model: BandSplitConfig):
        super().__init__()
        assert isinstance(model.mixer, mixers.Transformer)
        self.rotate = partial(rotate, base=model.mixer.rope_base)
        self.attention = MultiHeadAttention(model.d_model, model.n_heads)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Mix a sequence (b, l, d) along its length."""
        return self.attention(x, x, self.rotate)


def rotate(x: Float[Tensor, "b h l e"], base: float) -> Float[Tensor, "b h l e"]:
    """Rotate the pair of features (i, i + e/2) at position t by the angle t · base^(−2i/e) (RoPE, equation 34)."""
    l, e = x.shape[-2:]
    angle = np.outer(np.arange(l), base ** (-2 * np.arange(e // 2) / e))  # (l, e/2)
    cos, sin = constant(np.cos(angle), x), constant(np.sin(angle), x)
    first, second = rearrange(x, "b h l (two e) -> two b h l e", two=2)
    return concatenate([first * cos - second * sin, first * sin + second * cos], -1)
