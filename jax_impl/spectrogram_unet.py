"""A U-Net of 2-D convolutions over the magnitudes of a spectrogram."""

from __future__ import annotations

from itertools import pairwise

from einops import rearrange
from jax import Array
from jaxtyping import Complex, Float

from jax_impl.layers import Conv2d, ConvNormReLU2d, DoublingConv2d, Module, ModuleList
from jax_impl.network import MaskingNetwork
from jax_impl.ops import concatenate, max_pool2d, pad_axis, sigmoid
from twinsep.config import Config, SpectrogramUNetConfig
from twinsep.model.features import magnitudes


class ConvBlock(Module):
    """Two convolutions with batch norm and ReLU: (b, i, h, w) -> (b, o, h, w)."""

    def __init__(self, d_in: int, d_out: int):
        self.conv1 = ConvNormReLU2d(d_in, d_out)
        self.conv2 = ConvNormReLU2d(d_out, d_out)

    def __call__(self, x: Float[Array, "b i h w"]) -> Float[Array, "b o h w"]:
        """Apply both."""
        return self.conv2(self.conv1(x))


class DecoderStage(Module):
    """Doubles rows and columns, appends the skip, and applies a ConvBlock: (b, i, h, w) -> (b, o, 2h, 2w)."""

    def __init__(self, d_in: int, d_out: int):
        self.up = DoublingConv2d(d_in, d_out)
        self.block = ConvBlock(2 * d_out, d_out)

    def __call__(self, x: Float[Array, "b i h w"], skip: Float[Array, "b o h2 w2"]) -> Float[Array, "b o h2 w2"]:
        """Return the features of the level of ``skip``."""
        return self.block(concatenate([self.up(x), skip], 1))


class SpectrogramUNet(MaskingNetwork):
    """A U-Net over the magnitudes of each channel: mixture (b, 2, s) to stems (b, stems, 2, s) with the mixture phase.

    Two convolutions with batch norm and ReLU a level, maxima of blocks of 2 × 2 between levels, transposed convolutions
    and skips on the way up, a 1 × 1 convolution and a sigmoid for the masks, as Ronneberger et al. 2015 (arXiv
    1505.04597) and Jansson et al. 2017 (ISMIR). Each channel is processed separately, by the same weights.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        model = config.model
        assert isinstance(model, SpectrogramUNetConfig)
        self.bins = model.used_bins
        widths = model.widths
        self.encoder = ModuleList([ConvBlock(d_in, d_out) for d_in, d_out in pairwise((1, *widths))])
        self.decoder = ModuleList([DecoderStage(d_in, d_out) for d_in, d_out in pairwise(widths[::-1])])
        self.head = Conv2d(widths[0], len(model.targets), 1)

    def mask(self, spectrum: Complex[Array, "b c f t"]) -> Float[Array, "b n c f t"]:
        """Return the mask of every target, channel and bin, between 0 and 1; 0 above ``model.max_frequency``."""
        frames, factor = spectrum.shape[-1], 2 ** len(self.decoder)
        x = rearrange(magnitudes(spectrum[:, :, : self.bins]), "b c f t -> (b c) 1 f t")
        x = pad_axis(pad_axis(x, -1, -frames % factor), -2, -self.bins % factor)
        skips: list[Array] = []
        for block in self.encoder:
            x = block(x if not skips else max_pool2d(x))
            skips.append(x)
        for stage, skip in zip(self.decoder, reversed(skips[:-1]), strict=True):
            x = stage(x, skip)
        masks = sigmoid(self.head(x)[:, :, : self.bins, :frames])
        masks = rearrange(masks, "(b c) n f t -> b n c f t", b=spectrum.shape[0])
        return pad_axis(masks, -2, spectrum.shape[2] - self.bins)
