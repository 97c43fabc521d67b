"""Moises-Light (Hung et al. 2025, WASPAA, arXiv 2510.06785): a band-split U-Net with grouped convolutions.

Computes what the PyTorch package moises-light 0.1.5 computes, from the same weights under the same names;
the numbers that the paper leaves open are the package's. Features have the shape (b, c, f, t): batch, channel,
frequency, frame. The channels are K groups, one per band, and f counts the bins of one band.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from einops import einsum, rearrange
from flax import nnx
from jax import Array
from jaxtyping import Float

from jax_impl.layers import BatchNorm2d, Linear, Module, ModuleList, parameter
from jax_impl.network import Network
from jax_impl.ops import attention, complex_of, concatenate, pad_axis, rms_norm, sigmoid, split_complex
from twinsep.config import Config, PackageConfig
from twinsep.errors import InputError
from twinsep.model import initializers
from twinsep.stft import istft, stft

#: Real and imaginary parts of left and right.
REALS = 4
#: Levels of the encoder, each of which halves the frames; the decoder processes the deepest one only.
LEVELS = 3
#: Grouped convolutions in each half of a block of the encoder and the bottleneck, and of the decoder.
ENCODER_CONVS, DECODER_CONVS = 3, 1
#: Bins of a band for each hidden feature of its frequency layer.
BOTTLENECK_FACTOR = 8
HEADS, HEAD_DIM, FF_MULT = 4, 32, 2


@dataclass(frozen=True)
class Sizes:
    """Numbers in which the presets differ, by their names in the paper and the package."""

    G: int  # channels of the first level; level i has i·G
    n_bands: int  # K
    freq_dim: int  # bins that are processed, from 0 Hz on; the stems are silent above
    n_rope: int  # dual-path Transformer blocks
    n_fft: int = 6144
    hop: int = 1024

    def __post_init__(self) -> None:
        """Raise :class:`InputError` for numbers that do not divide into bands."""
        for name, value in (("G", self.G), ("freq_dim", self.freq_dim)):
            if value % self.n_bands:
                raise InputError(f"{name} {value} is not divisible by n_bands {self.n_bands}: choose a multiple of it")

    @property
    def band_bins(self) -> int:
        """Bins of one band."""
        return self.freq_dim // self.n_bands


#: System, as in ``model.system``, -> its sizes.
SIZES = {
    "moises-light/paper_large": Sizes(G=56, n_bands=4, freq_dim=2048, n_rope=5),
    "moises-light/paper_small": Sizes(G=32, n_bands=4, freq_dim=2048, n_rope=6),
    "moises-light/fullband_large": Sizes(G=60, n_bands=6, freq_dim=3072, n_rope=5),
    "moises-light/fullband_small": Sizes(G=36, n_bands=6, freq_dim=3072, n_rope=6),
    "moises-light/fullband_large_wide": Sizes(G=84, n_bands=6, freq_dim=3072, n_rope=5),
    "moises-light/fullband_small_wide": Sizes(G=48, n_bands=6, freq_dim=3072, n_rope=6),
}


class RMSNorm(Module):
    """x / sqrt(mean(x²)) · gamma over the last axis; zeros stay zeros."""

    def __init__(self, d: int):
        self.gamma = parameter((d,), initializers.ones)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Normalise the last axis."""
        # The package divides by max(‖x‖, 1e-12); this differs from it only where ‖x‖ is about 1e-12.
        return rms_norm(x, self.gamma[...], 1e-24 / x.shape[-1])


class Conv2d(Module):
    """Convolution over frequency and frames, zero-padded at both ends alike: (b, i, f, t) -> (b, o, f, ⌈t/stride⌉).

    The channels are convolved in ``groups``; the ``stride`` is along the frames.
    """

    def __init__(self, c_in: int, c_out: int, kernel: tuple[int, int], *, groups: int = 1, stride: int = 1):
        self.groups, self.stride = groups, stride
        shape = (c_out, c_in // groups, *kernel)
        start = initializers.uniform(int(np.prod(shape[1:])))
        self.weight = parameter(shape, start, decay=True)
        self.bias = parameter((c_out,), start)

    def __call__(self, x: Float[Array, "b i f t"]) -> Float[Array, "b o f t2"]:
        """Convolve."""
        y = jax.lax.conv_general_dilated(
            x,
            self.weight[...],
            window_strides=(1, self.stride),
            padding="SAME",
            dimension_numbers=("NCHW", "OIHW", "NCHW"),
            feature_group_count=self.groups,
        )
        return y + self.bias[...][:, None, None]


class DoublingConv2d(Module):
    """Transposed convolution of kernel 2 and stride 2 along the frames: (b, i, f, t) -> (b, o, f, 2t)."""

    def __init__(self, c_in: int, c_out: int):
        self.weight = parameter((c_in, c_out, 1, 2), initializers.uniform(2 * c_out), decay=True)
        self.bias = parameter((c_out,), initializers.uniform(2 * c_out))

    def __call__(self, x: Float[Array, "b i f t"]) -> Float[Array, "b o f t2"]:
        """Return t2 = 2t frames for t."""
        pairs = einsum(x, self.weight[..., 0, :], "b i f t, i o j -> b o f t j")
        return rearrange(pairs, "b o f t j -> b o f (t j)") + self.bias[...][:, None, None]


class ConvBlock(Module):
    """relu(BatchNorm(convolution(x)))."""

    def __init__(self, conv: Conv2d | DoublingConv2d, channels: int):
        self.conv = conv
        self.bn = BatchNorm2d(channels)

    def __call__(self, x: Float[Array, "b i f t"]) -> Float[Array, "b o f t2"]:
        """Apply the block."""
        return jax.nn.relu(self.bn(self.conv(x)))


def band_conv(c_in: int, c_out: int, n_bands: int) -> ConvBlock:
    """Build a block whose 3×3 convolution sees one band at a time: the paper's split module."""
    return ConvBlock(Conv2d(c_in, c_out, (3, 3), groups=n_bands), c_out)


class FrequencyLayer(Module):
    """Two fully connected layers along the bins of a band, f -> f/8 -> f, each with batch norm and ReLU.

    The TDF of Chen et al. 2023 (DTTNet, arXiv 2309.08684).
    """

    def __init__(self, channels: int, bins: int):
        self.fc1 = Linear(bins, bins // BOTTLENECK_FACTOR, bias=True)
        self.bn1 = BatchNorm2d(channels)
        self.fc2 = Linear(bins // BOTTLENECK_FACTOR, bins, bias=True)
        self.bn2 = BatchNorm2d(channels)

    def __call__(self, x: Float[Array, "b c f t"]) -> Float[Array, "b c f t"]:
        """Map the bins of every frame and channel."""
        y = jax.nn.relu(self.bn1(self.fc1(x.mT)))  # (b, c, t, f/8)
        return jax.nn.relu(self.bn2(self.fc2(y))).mT


class SplitMerge(Module):
    """r(x) + g(y + d(y)), y = h(x): grouped convolutions r, g and h, and the frequency layer d.

    The paper's split and merge module; g and h are ``convs`` blocks each.
    """

    def __init__(self, channels: int, convs: int, sizes: Sizes):
        self.res = band_conv(channels, channels, sizes.n_bands)
        self.split1 = ModuleList([band_conv(channels, channels, sizes.n_bands) for _ in range(convs)])
        self.tdf = FrequencyLayer(channels, sizes.band_bins)
        self.split2 = ModuleList([band_conv(channels, channels, sizes.n_bands) for _ in range(convs)])

    def __call__(self, x: Float[Array, "b c f t"]) -> Float[Array, "b c f t"]:
        """Apply the module."""
        y = x
        for block in self.split1:
            y = block(y)
        y = y + self.tdf(y)
        for block in self.split2:
            y = block(y)
        return y + self.res(x)


class RotaryEmbedding(Module):
    """Rotary positions (Su et al. 2021, arXiv 2104.09864, equation 34) of neighbouring features 2i and 2i + 1.

    The frequencies are weights by name, but not trained.
    """

    def __init__(self) -> None:
        self.freqs = parameter((HEAD_DIM // 2,), lambda _, shape: 10_000.0 ** (-np.arange(shape[0]) / shape[0]))

    def __call__(self, x: Float[Array, "b h l e"]) -> Float[Array, "b h l e"]:
        """Rotate the pair i at position t by the angle t · freqs_i."""
        # In float32, as in the package: an angle of 500 is rounded by 3e-5.
        angle = jnp.outer(jnp.arange(x.shape[-2], dtype=x.dtype), jax.lax.stop_gradient(self.freqs[...]))  # (l, e/2)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        even, odd = rearrange(x, "b h l (e two) -> two b h l e", two=2)
        return rearrange(jnp.stack([even * cos - odd * sin, odd * cos + even * sin]), "two b h l e -> b h l (e two)")


class GatedAttention(Module):
    """W [sigmoid(W_g n + b_g) ⊙ MHA(n)], n = RMSNorm(x): multi-head attention with one gate for each head and frame."""

    def __init__(self, d: int):
        self.norm = RMSNorm(d)
        self.rotary_embed = RotaryEmbedding()
        self.to_qkv = Linear(d, 3 * HEADS * HEAD_DIM, bias=False)
        self.to_gates = Linear(d, HEADS, bias=True)
        self.to_out = ModuleList([Linear(HEADS * HEAD_DIM, d, bias=False)])

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Apply the layer to sequences (b, l, d)."""
        n = self.norm(x)
        q, k, v = rearrange(self.to_qkv(n), "b l (three h e) -> three b h l e", three=3, h=HEADS)
        y = attention(self.rotary_embed(q), self.rotary_embed(k), v)
        gates = rearrange(sigmoid(self.to_gates(n)), "b l h -> b h l 1")
        return self.to_out[0](rearrange(y * gates, "b h l e -> b l (h e)"))


class FeedForward(Module):
    """W2 gelu(W1 RMSNorm(x) + b1) + b2."""

    def __init__(self, d: int):
        # The package counts its activation and its dropouts, too.
        self.net = nnx.Dict(
            {"0": RMSNorm(d), "1": Linear(d, FF_MULT * d, bias=True), "4": Linear(FF_MULT * d, d, bias=True)}
        )

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Apply the layer to sequences (b, l, d)."""
        return self.net["4"](jax.nn.gelu(self.net["1"](self.net["0"](x)), approximate=False))


class Transformer(Module):
    """y + FeedForward(y), y = x + GatedAttention(x)."""

    def __init__(self, d: int):
        self.layers = ModuleList([ModuleList([GatedAttention(d), FeedForward(d)])])

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Apply the layers to sequences (b, l, d)."""
        for layer, feed_forward in self.layers:
            x = x + layer(x)
            x = x + feed_forward(x)
        return x


class DualPath(Module):
    """A Transformer along the frames of each bin, then one along the bins of each frame."""

    def __init__(self, channels: int):
        self.time_transformer = Transformer(channels)
        self.freq_transformer = Transformer(channels)

    def __call__(self, x: Float[Array, "b f t c"]) -> Float[Array, "b f t c"]:
        """Apply the block to features with the channels last (b, f, t, c)."""
        b, f = x.shape[:2]
        x = rearrange(self.time_transformer(rearrange(x, "b f t c -> (b f) t c")), "(b f) t c -> b f t c", f=f)
        return rearrange(self.freq_transformer(rearrange(x, "b f t c -> (b t) f c")), "(b t) f c -> b f t c", b=b)


class Bottleneck(Module):
    """SplitMerge, then dual-path Transformers and an RMSNorm over the channels."""

    def __init__(self, channels: int, sizes: Sizes):
        self.split_merge = SplitMerge(channels, ENCODER_CONVS, sizes)
        self.rope_blocks = ModuleList([DualPath(channels) for _ in range(sizes.n_rope)])
        self.final_norm = RMSNorm(channels)

    def __call__(self, x: Float[Array, "b c f t"]) -> Float[Array, "b c f t"]:
        """Apply the level to features (b, c, f, t)."""
        y = rearrange(self.split_merge(x), "b c f t -> b f t c")
        for block in self.rope_blocks:
            y = block(y)
        return rearrange(self.final_norm(y), "b f t c -> b c f t")


class MoisesLight(Module):
    """Mixture (b, 2, s) to ``stems`` stems (b, stems, 2, s), silent above the first ``freq_dim`` bins.

    A real mask for every real number of the mixture's STFT, which may have any value.
    """

    def __init__(self, sizes: Sizes, stems: int):
        self.sizes, self.stems = sizes, stems
        G, k = sizes.G, sizes.n_bands
        widths = [G * (level + 1) for level in range(LEVELS + 1)]
        self.first_conv = band_conv(REALS * k, G, k)
        self.encoder_blocks = ModuleList([SplitMerge(c, ENCODER_CONVS, sizes) for c in widths[:-1]])
        self.ds = ModuleList([ConvBlock(Conv2d(c, c + G, (1, 2), stride=2), c + G) for c in widths[:-1]])
        self.bottleneck = Bottleneck(widths[-1], sizes)
        up = [ConvBlock(DoublingConv2d(c, c - G), c - G) for c in reversed(widths[1:])]
        self.dec_heavy_us = ModuleList(up[:1])
        self.dec_heavy_blocks = ModuleList([SplitMerge(widths[-2], DECODER_CONVS, sizes)])
        self.dec_light_us = ModuleList(up[1:])
        self.final_conv = Conv2d(G, REALS * k, (3, 3), groups=k)
        self.source_head = Conv2d(REALS, stems * REALS, (1, 1)) if stems > 1 else None

    def __call__(self, x: Float[Array, "b 2 s"]) -> Float[Array, "b stems 2 s"]:
        """Separate the mixture into stems."""
        samples, n_fft, hop = x.shape[-1], self.sizes.n_fft, self.sizes.hop
        # At least one sample of padding, up to a number of frames that can be halved at every level.
        hops = samples // hop + 1
        hops += -(hops + 1) % 2**LEVELS
        x = pad_axis(x, -1, hops * hop - samples)
        spectrum = stft(x, n_fft=n_fft, hop=hop)[:, :, : self.sizes.freq_dim]  # (b, 2, f, t)
        numbers = rearrange(split_complex(spectrum), "b c f t r -> b (c r) f t")
        mask = self.mask(standardised(numbers / n_fft**0.5))  # (b, stems, (c r), f, t)
        masked = rearrange(mask * numbers[:, None], "b stems (c r) f t -> r b stems c f t", r=2)
        cut = n_fft // 2 + 1 - self.sizes.freq_dim
        return istft(pad_axis(complex_of(*masked), -2, cut), n_fft=n_fft, hop=hop, length=x.shape[-1])[..., :samples]

    def mask(self, x: Float[Array, "b r f t"]) -> Float[Array, "b stems r f t"]:
        """Return the masks of the stems from the standardised spectrum."""
        k = self.sizes.n_bands
        x = self.first_conv(rearrange(x, "b r (k f) t -> b (k r) f t", k=k))
        skips = []
        for block, down in zip(self.encoder_blocks, self.ds, strict=True):
            skips.append(block(x))
            x = down(skips[-1])
        x = self.bottleneck(x)
        for up, block in zip(self.dec_heavy_us, self.dec_heavy_blocks, strict=True):
            x = block(up(x) * skips.pop())
        for up in self.dec_light_us:
            x = up(x) * skips.pop()
        x = rearrange(self.final_conv(x), "b (k r) f t -> b r (k f) t", k=k)
        if self.source_head is not None:
            x = self.source_head(x)
        return rearrange(x, "b (stems r) f t -> b stems r f t", stems=self.stems)


def standardised(x: Float[Array, "b r f t"]) -> Float[Array, "b r f t"]:
    """(x − mean) / (1e-5 + standard deviation), over all of each item; the variance divides by one less."""
    centred = x - x.mean((1, 2, 3), keepdims=True)
    variance = (centred * centred).sum((1, 2, 3), keepdims=True) / (x[0].size - 1)
    return centred / (1e-5 + jnp.sqrt(variance))


class MoisesLightNetwork(Network):
    """Moises-Light for the stems of a configuration: mixture (b, 2, s) to stems (b, stems, 2, s), float32, s ≥ 1."""

    def __init__(self, config: Config):
        super().__init__(config)
        assert isinstance(config.model, PackageConfig)
        self.model = config.model
        self.inner = MoisesLight(SIZES[config.model.system], len(config.model.targets))

    @overload
    def __call__(self, mixture: Array, *, return_auxiliary_outputs: Literal[False] = False) -> Array: ...

    @overload
    def __call__(
        self, mixture: Array, *, return_auxiliary_outputs: Literal[True]
    ) -> tuple[Array, dict[str, Array]]: ...

    def __call__(
        self, mixture: Float[Array, "b 2 s"], *, return_auxiliary_outputs: bool = False
    ) -> Float[Array, "b stems 2 s"] | tuple[Float[Array, "b stems 2 s"], dict[str, Array]]:
        """Separate the mixture into stems; with ``return_auxiliary_outputs`` also return an empty dictionary.

        The dictionary is what the package returns.
        """
        samples = mixture.shape[-1]
        x = pad_axis(mixture, -1, max(0, self.model.min_samples - samples))
        y = self.inner(x)[..., :samples]
        if self.model.residual:
            y = concatenate([y, (mixture - y.sum(1))[:, None]], 1)
        return (y, {}) if return_auxiliary_outputs else y
