"""Attention of a causal network: every frame reads itself and a window of the past."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from torch_impl.layers import Linear, Module
from torch_impl.ops import concatenate, constant, masked_attention, pad_axis, zeros, zeros_like
from twinsep.config import BandSplitConfig, UNetConfig
from twinsep.model.windows import cut_into_blocks, window_bias


class AttentionState(NamedTuple):
    """The frames before the next one: keys and values (b, w − 1, k, d), and ``bias`` (w − 1,), −∞ for one not yet come.

    Keys are kept as they are before rotary positions, which count from the first frame of the window.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor


class WindowAttention(Module):
    """Multi-head attention of all tokens k of a frame to those of the w = ``attention_window`` frames up to it.

    The weights are those of :class:`torch_impl.layers.MultiHeadAttention`. ``position(x, start)`` is applied to queries
    and keys (…, l, e) whose first frame is ``start``, before their products. A sequence is cut into blocks of w frames,
    each of which reads itself and the block before, so that the cost is linear in its length.
    """

    def __init__(self, model: BandSplitConfig, position: Callable[[Tensor, int], Tensor] | None = None):
        super().__init__()
        assert isinstance(model, UNetConfig)
        d = model.d_model
        self.heads, self.window, self.position = model.n_heads, model.attention_window, position
        self.q_proj = Linear(d, d, bias=False)
        self.k_proj = Linear(d, d, bias=False)
        self.v_proj = Linear(d, d, bias=False)
        self.out_proj = Linear(d, d, bias=False)

    def forward(self, x: Float[Tensor, "b t k d"]) -> Float[Tensor, "b t k d"]:
        """Return one vector of d features for every token of every frame."""
        t, k = x.shape[1:3]
        count, size, before = cut_into_blocks(t, self.window)
        padded = pad_axis(x, -3, count * size - t)
        q, keys, values = (
            rearrange(project(padded), "b (c s) k (h e) -> b c h (s k) e", c=count, h=self.heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if before:
            shifted = [concatenate([zeros_like(y[:, :1]), y[:, :-1]], 1) for y in (keys, values)]
            keys, values = (concatenate(both, 3) for both in zip(shifted, (keys, values), strict=True))
        if self.position is not None:
            q, keys = self.position(q, before), self.position(keys, 0)
        bias = constant(window_bias(t, self.window, k), x)[:, None]  # the same for all heads
        y = masked_attention(q, keys, values, bias)  # (b, c, h, s·k, e)
        return self.out_proj(rearrange(y, "b c h (s k) e -> b (c s) k (h e)", k=k)[:, :t])

    def start(self, batch: int, tokens: int) -> AttentionState:
        """The state before the first frame, of ``tokens`` tokens each."""
        weight = self.q_proj.weight
        past = zeros((batch, self.window - 1, tokens, len(weight)), weight)
        return AttentionState(past, past, zeros((self.window - 1,), weight) - float("inf"))

    def step(self, x: Float[Tensor, "b k d"], state: AttentionState) -> tuple[Float[Tensor, "b k d"], AttentionState]:
        """Attend from one frame, given the state before it; return the state for the next frame too."""
        keys = concatenate([state.keys, self.k_proj(x)[:, None]], 1)  # (b, w, k, d)
        values = concatenate([state.values, self.v_proj(x)[:, None]], 1)
        bias = concatenate([state.bias, zeros((1,), state.bias)], 0)
        q = rearrange(self.q_proj(x), "b k (h e) -> b h k e", h=self.heads)
        read, returned = (rearrange(y, "b w k (h e) -> b h (w k) e", h=self.heads) for y in (keys, values))
        if self.position is not None:
            q, read = self.position(q, self.window - 1), self.position(read, 0)
        y = masked_attention(q, read, returned, repeat(bias, "w -> 1 (w k)", k=x.shape[1]))
        state = AttentionState(keys[:, 1:], values[:, 1:], bias[1:])
        return self.out_proj(rearrange(y, "b h k e -> b k (h e)")), state
