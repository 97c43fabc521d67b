"""Blocks of the U-Net. Features have the shape (b, k, t, d): batch, band, frame, feature.

The docstring of a module defines its forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from torch_impl import mixers
from torch_impl.layers import (
    DepthwiseConvSiLU1d,
    DoublingConv1d,
    HalvingConv1d,
    Linear,
    Module,
    MultiHeadAttention,
    RMSNorm,
)
from torch_impl.ops import concatenate, constant, flip, pad_axis, sigmoid, silu_gate
from twinsep.config import BandSplitConfig, UNetConfig
from twinsep.model.pooling import REFERENCE_TIME_TOKENS, pool_matrix, summary_matrix


class SwiGLU(Module):
    """x + W3 (W1 n ⊙ silu(W2 n)), n = RMSNorm(x) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, model: BandSplitConfig):
        super().__init__()
        self.norm = RMSNorm(model.d_model)
        self.w1 = Linear(model.d_model, model.d_ff, bias=False)
        self.w2 = Linear(model.d_model, model.d_ff, bias=False)
        self.w3 = Linear(model.d_ff, model.d_model, bias=False)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Apply the block to features (…, d)."""
        n = self.norm(x)
        return x + self.w3(silu_gate(self.w1(n), self.w2(n)))


class Bidirectional(Module):
    """x + W [fwd(n) ; flip(bwd(flip(n)))] + b, n = RMSNorm(x), with a separate mixer for each direction."""

    def __init__(self, model: BandSplitConfig):
        super().__init__()
        self.norm = RMSNorm(model.d_model)
        self.forwards = mixers.build(model)
        self.backwards = mixers.build(model)
        self.proj = Linear(2 * model.d_model, model.d_model, bias=True)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Apply the block to sequences (b, l, d)."""
        n = self.norm(x)
        both = [self.forwards(n), flip(self.backwards(flip(n, (1,))), (1,))]
        return x + self.proj(concatenate(both, -1))


class SinglePass(Module):
    """x + mixer(RMSNorm(x)), for a mixer that sees both directions itself or for a model that uses only one."""

    def __init__(self, model: BandSplitConfig):
        super().__init__()
        self.norm = RMSNorm(model.d_model)
        self.mixer = mixers.build(model)

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Apply the block to sequences (b, l, d)."""
        return x + self.mixer(self.norm(x))


def sequence_block(model: BandSplitConfig) -> Module:
    """Build the residual block around the configured mixer: (b, l, d) -> (b, l, d)."""
    return Bidirectional(model) if model.mixer.passes == 2 else SinglePass(model)


class DualPath(Module):
    """A sequence block along time in each band, one along bands in each frame, then SwiGLU if ``feed_forward``."""

    def __init__(self, model: BandSplitConfig, *, feed_forward: bool = True):
        super().__init__()
        self.time = sequence_block(model)
        self.band = sequence_block(model)
        self.ff = SwiGLU(model) if feed_forward else None

    def forward(self, x: Float[Tensor, "b k t d"]) -> Float[Tensor, "b k t d"]:
        """Apply the block to features (b, k, t, d)."""
        b, k = x.shape[:2]
        x = rearrange(self.time(rearrange(x, "b k t d -> (b k) t d")), "(b k) t d -> b k t d", k=k)
        x = rearrange(self.band(rearrange(x, "b k t d -> (b t) k d")), "(b t) k d -> b k t d", b=b)
        return x if self.ff is None else self.ff(x)


class LocalConv(Module):
    """x + W silu(depthwise(n)) + b, n = RMSNorm(x); the depthwise kernel spans seven frames."""

    def __init__(self, model: BandSplitConfig):
        super().__init__()
        self.norm = RMSNorm(model.d_model)
        self.depthwise = DepthwiseConvSiLU1d(model.d_model, 7, left=3)
        self.pointwise = Linear(model.d_model, model.d_model, bias=True)

    def forward(self, x: Float[Tensor, "b k t d"]) -> Float[Tensor, "b k t d"]:
        """Apply the block to features (b, k, t, d)."""
        n = rearrange(self.norm(x), "b k t d -> (b k) t d")
        y = self.pointwise(self.depthwise(n))  # (b·k, t, d)
        return x + rearrange(y, "(b k) t d -> b k t d", k=x.shape[1])


class EncoderBlock(Module):
    """LocalConv if ``conv`` (levels 1 and 2), then DualPath."""

    def __init__(self, model: BandSplitConfig, *, conv: bool):
        super().__init__()
        self.conv = LocalConv(model) if conv else None
        self.dual_path = DualPath(model)

    def forward(self, x: Float[Tensor, "b k t d"]) -> Float[Tensor, "b k t d"]:
        """Apply the block to features (b, k, t, d)."""
        return self.dual_path(x if self.conv is None else self.conv(x))


class Downsample(Module):
    """RMSNorm, then a convolution that halves the frames and drops an odd last one: t2 = ⌊t/2⌋."""

    def __init__(self, model: BandSplitConfig):
        super().__init__()
        self.norm = RMSNorm(model.d_model)
        self.conv = HalvingConv1d(model.d_model)

    def forward(self, x: Float[Tensor, "b k t d"]) -> Float[Tensor, "b k t2 d"]:
        """Return the features at half the frame rate, (b, k, ⌊t/2⌋, d)."""
        y = self.conv(rearrange(self.norm(x), "b k t d -> (b k) t d"))  # (b·k, t2, d)
        return rearrange(y, "(b k) t d -> b k t d", k=x.shape[1])


class Upsample(Module):
    """RMSNorm, then a transposed convolution that doubles the frames; appends a zero frame if one was dropped."""

    def __init__(self, model: BandSplitConfig):
        super().__init__()
        self.norm = RMSNorm(model.d_model)
        self.conv = DoublingConv1d(model.d_model)

    def forward(self, x: Float[Tensor, "b k t d"], frames: int) -> Float[Tensor, "b k t2 d"]:
        """Return the features at twice the frame rate, (b, k, frames, d); ``frames`` is 2t or 2t + 1."""
        y = self.conv(rearrange(self.norm(x), "b k t d -> (b k) t d"))  # (b·k, t2, d)
        return pad_axis(rearrange(y, "(b k) t d -> b k t d", k=x.shape[1]), -2, frames - y.shape[1])


class GlobalAttention(Module):
    """x + MHA(RMSNorm(x)), attention over all bands and frames jointly, then SwiGLU."""

    def __init__(self, model: BandSplitConfig):
        super().__init__()
        self.norm = RMSNorm(model.d_model)
        self.attention = MultiHeadAttention(model.d_model, model.n_heads)
        self.ff = SwiGLU(model)

    def forward(self, x: Float[Tensor, "b k t d"]) -> Float[Tensor, "b k t d"]:
        """Apply the block to features (b, k, t, d)."""
        n = rearrange(self.norm(x), "b k t d -> b (k t) d")
        x = x + rearrange(self.attention(n, n), "b (k t) d -> b k t d", k=x.shape[1])
        return self.ff(x)


def memory_bank(levels: Sequence[Float[Tensor, "b k _ d"]], tokens: Sequence[int]) -> Float[Tensor, "b k m d"]:
    """Pool every level along time to its number of tokens and concatenate them along the token axis."""
    pooled = [
        einsum(constant(pool_matrix(level.shape[2], n), level), level, "m t, b k t d -> b k m d")
        for level, n in zip(levels, tokens, strict=True)
        if n
    ]
    return concatenate(pooled, 2)


class CrossAttention(Module):
    """x + MHA(RMSNorm(x), RMSNorm(memory)): queries from x (b, l, d), keys and values from memory (b, m, d)."""

    def __init__(self, model: BandSplitConfig):
        super().__init__()
        self.norm_q = RMSNorm(model.d_model)
        self.norm_kv = RMSNorm(model.d_model)
        self.attention = MultiHeadAttention(model.d_model, model.n_heads)

    def forward(self, x: Float[Tensor, "b l d"], memory: Float[Tensor, "b m d"]) -> Float[Tensor, "b l d"]:
        """Apply the block to sequences ``x`` (b, l, d), given the memory (b, m, d)."""
        return x + self.attention(self.norm_q(x), self.norm_kv(memory))


class MemoryAttention(Module):
    """Cross-attention to the memory: along time in each band, then along bands in each frame.

    In the second, a frame's keys are one summary of the memory per band (:func:`summary_matrix`).
    """

    def __init__(self, model: UNetConfig):
        super().__init__()
        self.alignment, self.tokens = model.memory_alignment, model.memory_tokens
        self.time = CrossAttention(model)
        self.band = CrossAttention(model)

    def forward(self, x: Float[Tensor, "b k t d"], memory: Float[Tensor, "b k m d"]) -> Float[Tensor, "b k t d"]:
        """Apply the block to features ``x`` (b, k, t, d), given the memory (b, k, m, d)."""
        b, k, t, _ = x.shape
        keys = memory  # (b, k, m, d)
        if self.alignment == "reference":
            pool = constant(pool_matrix(memory.shape[2], REFERENCE_TIME_TOKENS), memory)
            keys = einsum(pool, memory, "n m, b k m d -> b k n d")
        x = self.time(rearrange(x, "b k t d -> (b k) t d"), rearrange(keys, "b k m d -> (b k) m d"))
        x = rearrange(x, "(b k) t d -> (b t) k d", k=k)
        summary = constant(summary_matrix(self.alignment, self.tokens, t), memory)
        x = self.band(x, einsum(summary, memory, "t m, b k m d -> b t k d").reshape(x.shape))  # (b·t, k, d)
        return rearrange(x, "(b t) k d -> b k t d", b=b)


class SkipGate(Module):
    """x + g ⊙ W_p n_s, g = sigmoid(W_g [n_x ; n_s]); n_x = RMSNorm(x), n_s = RMSNorm(skip) of the encoder."""

    def __init__(self, model: BandSplitConfig):
        super().__init__()
        self.norm_x = RMSNorm(model.d_model)
        self.norm_skip = RMSNorm(model.d_model)
        self.gate = Linear(2 * model.d_model, model.d_model, bias=False)
        self.proj = Linear(model.d_model, model.d_model, bias=False)

    def forward(self, x: Float[Tensor, "*b d"], skip: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Add to features ``x`` the encoder's features of the same level, ``skip``, both (…, d)."""
        s = self.norm_skip(skip)
        return x + sigmoid(self.gate(concatenate([self.norm_x(x), s], -1))) * self.proj(s)


class DecoderBlock(Module):
    """Memory attention (if the model has a memory), gated skip connection, SwiGLU."""

    def __init__(self, model: UNetConfig):
        super().__init__()
        self.memory = MemoryAttention(model) if model.has_memory else None
        self.skip = SkipGate(model)
        self.ff = SwiGLU(model)

    def forward(
        self, x: Float[Tensor, "b k t d"], memory: Float[Tensor, "b k m d"] | None, skip: Float[Tensor, "b k t d"]
    ) -> Float[Tensor, "b k t d"]:
        """Apply the block to features ``x`` (b, k, t, d), memory, and ``skip`` of the same encoder level."""
        if self.memory is not None:
            x = self.memory(x, memory)
        return self.ff(self.skip(x, skip))
