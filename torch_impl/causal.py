"""Blocks of the causal U-Net. Features have the shape (b, k, t, d); a step takes one frame of them, (b, k, d).

Each block computes a whole sequence by its forward pass, which reads no later frame, and one frame by ``step``, given
the state that ``start`` makes or the step before returned. A block without these has no state: its forward pass is its
step. Weights have the names of the blocks in :mod:`torch_impl.blocks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from torch_impl import mixers
from torch_impl.blocks import CrossAttention, SkipGate, SwiGLU, sequence_block
from torch_impl.layers import DepthwiseConvSiLU1d, Linear, Module, RMSNorm
from torch_impl.ops import concatenate, constant, pad_axis, take, zeros, zeros_like
from torch_impl.window import AttentionState, WindowAttention
from twinsep.config import UNetConfig
from twinsep.model.running_memory import chunks, last_complete, summary_vector


class CausalSequenceBlock(Module):
    """x + mixer(RMSNorm(x)), for a mixer that reads no later frame."""

    def __init__(self, model: UNetConfig):
        super().__init__()
        self.norm = RMSNorm(model.d_model)
        self.mixer: Any = mixers.build_causal(model)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Apply the block to sequences (b, l, d)."""
        return x + self.mixer(self.norm(x))

    def start(self, batch: int) -> Any:
        """The state before the first frame."""
        return self.mixer.start(batch)

    def step(self, x: Float[Tensor, "b d"], state: Any) -> tuple[Float[Tensor, "b d"], Any]:
        """Apply the block to one frame."""
        y, state = self.mixer.step(self.norm(x), state)
        return x + y, state


class CausalDualPath(Module):
    """A causal block along time in each band, one along bands in both directions in each frame, then SwiGLU."""

    def __init__(self, model: UNetConfig):
        super().__init__()
        self.time = CausalSequenceBlock(model)
        self.band = sequence_block(model)
        self.ff = SwiGLU(model)

    def forward(self, x: Float[Tensor, "b k t d"]) -> Float[Tensor, "b k t d"]:
        """Apply the block to features (b, k, t, d)."""
        b, k = x.shape[:2]
        x = rearrange(self.time(rearrange(x, "b k t d -> (b k) t d")), "(b k) t d -> b k t d", k=k)
        x = rearrange(self.band(rearrange(x, "b k t d -> (b t) k d")), "(b t) k d -> b k t d", b=b)
        return self.ff(x)

    def start(self, batch: int, bands: int) -> Any:
        """The state before the first frame."""
        return self.time.start(batch * bands)

    def step(self, x: Float[Tensor, "b k d"], state: Any) -> tuple[Float[Tensor, "b k d"], Any]:
        """Apply the block to one frame (b, k, d)."""
        y, state = self.time.step(rearrange(x, "b k d -> (b k) d"), state)
        return self.ff(self.band(rearrange(y, "(b k) d -> b k d", k=x.shape[1]))), state


class CausalLocalConv(Module):
    """x + W silu(depthwise(n)) + b, n = RMSNorm(x); the depthwise kernel spans a frame and the six before it."""

    def __init__(self, model: UNetConfig):
        super().__init__()
        self.norm = RMSNorm(model.d_model)
        self.depthwise = DepthwiseConvSiLU1d(model.d_model, 7, left=6)
        self.pointwise = Linear(model.d_model, model.d_model, bias=True)

    def forward(self, x: Float[Tensor, "b k t d"]) -> Float[Tensor, "b k t d"]:
        """Apply the block to features (b, k, t, d)."""
        n = rearrange(self.norm(x), "b k t d -> (b k) t d")
        y = self.pointwise(self.depthwise(n))  # (b·k, t, d)
        return x + rearrange(y, "(b k) t d -> b k t d", k=x.shape[1])

    def start(self, batch: int, bands: int) -> Float[Tensor, "b j d"]:
        """The state before the first frame."""
        return self.depthwise.start(batch * bands)

    def step(
        self, x: Float[Tensor, "b k d"], past: Float[Tensor, "n j d"]
    ) -> tuple[Float[Tensor, "b k d"], Float[Tensor, "n j d"]]:
        """Apply the block to one frame (b, k, d)."""
        y, past = self.depthwise.step(rearrange(self.norm(x), "b k d -> (b k) d"), past)
        return x + rearrange(self.pointwise(y), "(b k) d -> b k d", k=x.shape[1]), past


class CausalEncoderBlock(Module):
    """CausalLocalConv if ``conv`` (levels 1 and 2), then CausalDualPath."""

    def __init__(self, model: UNetConfig, *, conv: bool):
        super().__init__()
        self.conv = CausalLocalConv(model) if conv else None
        self.dual_path = CausalDualPath(model)

    def forward(self, x: Float[Tensor, "b k t d"]) -> Float[Tensor, "b k t d"]:
        """Apply the block to features (b, k, t, d)."""
        return self.dual_path(x if self.conv is None else self.conv(x))

    def start(self, batch: int, bands: int) -> tuple[Any, Any]:
        """The states of both parts before the first frame."""
        return None if self.conv is None else self.conv.start(batch, bands), self.dual_path.start(batch, bands)

    def step(self, x: Float[Tensor, "b k d"], state: tuple[Any, Any]) -> tuple[Float[Tensor, "b k d"], tuple[Any, Any]]:
        """Apply the block to one frame (b, k, d)."""
        past, inner = state
        if self.conv is not None:
            x, past = self.conv.step(x, past)
        x, inner = self.dual_path.step(x, inner)
        return x, (past, inner)


class CausalGlobalAttention(Module):
    """x + attention(RMSNorm(x)) over all bands of a frame and of a window of the past, then SwiGLU."""

    def __init__(self, model: UNetConfig):
        super().__init__()
        self.norm = RMSNorm(model.d_model)
        self.attention = WindowAttention(model)
        self.ff = SwiGLU(model)

    def forward(self, x: Float[Tensor, "b k t d"]) -> Float[Tensor, "b k t d"]:
        """Apply the block to features (b, k, t, d)."""
        y = self.attention(rearrange(self.norm(x), "b k t d -> b t k d"))
        return self.ff(x + rearrange(y, "b t k d -> b k t d"))

    def start(self, batch: int, bands: int) -> AttentionState:
        """The state before the first frame."""
        return self.attention.start(batch, bands)

    def step(self, x: Float[Tensor, "b k d"], state: AttentionState) -> tuple[Float[Tensor, "b k d"], AttentionState]:
        """Apply the block to one frame (b, k, d)."""
        y, state = self.attention.step(self.norm(x), state)
        return self.ff(x + y), state


def delayed(x: Float[Tensor, "b k t d"], frames: int) -> Float[Tensor, "b k t2 d"]:
    """Delay ``x`` by one frame, with a zero frame first; cut or zero-pad it to ``frames``.

    Frames 2t and 2t + 1 of a level make frame t of the next. Upsampling puts it back at 2t and 2t + 1, where frame 2t
    would read frame 2t + 1; the delay prevents this.
    """
    x = concatenate([zeros_like(x[:, :, :1]), x], 2)[:, :, :frames]
    return pad_axis(x, -2, frames - x.shape[2])


# ---------------------------------------------------------------------------- memory


class MemoryState(NamedTuple):
    """Sums (b, k, n, d) of one level's frames, and their weights (n,); see :mod:`twinsep.model.running_memory`."""

    sums: Tensor
    weight: Tensor


def running_memory(x: Float[Tensor, "b k t d"], rates: Sequence[float]) -> Float[Tensor, "b k t n d"]:
    """The tokens of one level at each of its frames: weighted means of all frames up to it, with ``rates`` (n,)."""
    t = x.shape[2]
    within, across, carried, weight = (constant(y, x) for y in chunks(tuple(rates), t))
    count, size = across.shape[1], within.shape[1]
    padded = rearrange(pad_axis(x, -2, count * size - t), "b k (c s) d -> b k c s d", c=count)
    sums = einsum(within, padded, "n s u, b k c u d -> b k c s n d")
    if count > 1:
        entering = einsum(across, sums[:, :, :, -1], "n c j, b k j n d -> b k c n d")
        sums = sums + einsum(carried, entering, "s n, b k c n d -> b k c s n d")
    return rearrange(sums, "b k c s n d -> b k (c s) n d")[:, :, :t] / weight[..., None]


def start_memory(batch: int, bands: int, tokens: int, like: Tensor) -> MemoryState:
    """The memory of one level before its first frame, for features like the weight ``like`` (d,)."""
    return MemoryState(zeros((batch, bands, tokens, len(like)), like), zeros((tokens,), like))


def update_memory(x: Float[Tensor, "b k d"], state: MemoryState, rates: Sequence[float]) -> MemoryState:
    """The memory of one level after the frame ``x``."""
    rate = constant(np.asarray(rates), x)
    sums = (1 - rate[:, None]) * state.sums + rate[:, None] * x[:, :, None]
    return MemoryState(sums, (1 - rate) * state.weight + rate)


def memory_tokens(state: MemoryState) -> Float[Tensor, "b k n d"]:
    """The tokens of one level at this frame; zeros before its first frame."""
    return state.sums / (state.weight + 1.0 * (state.weight == 0))[:, None]


def memory_at(
    memory: Sequence[tuple[Float[Tensor, "b k _ _ d"], int]], frames: int, stride: int
) -> Float[Tensor, "b k t m d"]:
    """Tokens that the frames of a decoder's level read: those of every level's last frame that is complete, or zeros.

    ``memory`` has the tokens and the stride of each level, the frames of level 1 in one of its frames; ``frames``
    and ``stride`` are the decoder's.
    """
    read = []
    for tokens, each in memory:
        known = concatenate([zeros_like(tokens[:, :, :1]), tokens], 2)  # number of complete frames -> tokens
        read.append(take(known, last_complete(frames, stride, each), 2))
    return concatenate(read, 3)


class CausalMemoryAttention(Module):
    """Cross-attention to the tokens of a frame's own memory: in each band, then along bands to one summary per band.

    The summary is the mean over levels of the mean of their fastest tokens (:func:`summary_vector`).
    """

    def __init__(self, model: UNetConfig):
        super().__init__()
        self.tokens = model.memory_tokens
        self.time = CrossAttention(model)
        self.band = CrossAttention(model)

    def forward(self, x: Float[Tensor, "b k t d"], memory: Float[Tensor, "b k t m d"]) -> Float[Tensor, "b k t d"]:
        """Apply the block to features ``x`` (b, k, t, d), given the memory of every frame (b, k, t, m, d)."""
        b, k, _, _ = x.shape
        y = self.time(rearrange(x, "b k t d -> (b k t) 1 d"), rearrange(memory, "b k t m d -> (b k t) m d"))
        y = rearrange(y, "(b k t) 1 d -> (b t) k d", b=b, k=k)
        summary = einsum(constant(summary_vector(self.tokens), memory), memory, "m, b k t m d -> b t k d")
        y = self.band(y, rearrange(summary, "b t k d -> (b t) k d"))
        return rearrange(y, "(b t) k d -> b k t d", b=b)


class CausalDecoderBlock(Module):
    """Memory attention (if the model has a memory), gated skip connection, SwiGLU."""

    def __init__(self, model: UNetConfig):
        super().__init__()
        self.memory = CausalMemoryAttention(model) if model.has_memory else None
        self.skip = SkipGate(model)
        self.ff = SwiGLU(model)

    def forward(
        self, x: Float[Tensor, "b k t d"], memory: Float[Tensor, "b k t m d"] | None, skip: Float[Tensor, "b k t d"]
    ) -> Float[Tensor, "b k t d"]:
        """Apply the block to features ``x`` (b, k, t, d), each frame's memory, and ``skip`` of the same level."""
        if self.memory is not None:
            assert memory is not None
            x = self.memory(x, memory)
        return self.ff(self.skip(x, skip))
