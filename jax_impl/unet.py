"""The network: STFT, band split, U-Net with memory, mask, inverse STFT."""

from __future__ import annotations

import math
from typing import Literal, overload

from einops import einsum
from jax import Array
from jaxtyping import Float

from jax_impl.bandsplit import BandSplit, MaskHead
from jax_impl.blocks import DecoderBlock, Downsample, DualPath, EncoderBlock, GlobalAttention, Upsample, memory_bank
from jax_impl.layers import Module, ModuleList, named_parameters
from jax_impl.ops import concatenate, constant, pad_axis, rematerialised
from twinsep.config import Config, ModelConfig
from twinsep.model.stereo import MID_SIDE
from twinsep.stft import istft, stft


class BandSplitUNet(Module):
    """Mixture (b, 2, s) to stems (b, stems, 2, s), float32 at ``config.model.sample_rate``, s ≥ 1."""

    def __init__(self, config: Config):
        self.config = config
        self.model = model = config.model
        self.band_split = BandSplit(model)
        if model.levels >= 1:
            self.enc1 = ModuleList([EncoderBlock(model, conv=True) for _ in range(model.n_enc)])
        if model.levels == 3:
            self.add_deeper_levels(model)
        self.mask_head = MaskHead(model)

    def add_deeper_levels(self, model: ModelConfig) -> None:
        """Add the encoder's levels 2 and 3, the bottleneck and the decoder."""
        enc, dec = range(model.n_enc), range(model.n_dec)
        self.down1 = Downsample(model)
        self.enc2 = ModuleList([EncoderBlock(model, conv=True) for _ in enc])
        self.down2 = Downsample(model)
        self.enc3 = ModuleList([EncoderBlock(model, conv=False) for _ in enc])
        self.down3 = Downsample(model)
        pairs = range(model.n_bottleneck // 2)
        self.bottleneck = ModuleList([block(model) for _ in pairs for block in (DualPath, GlobalAttention)])
        self.up3 = Upsample(model)
        self.dec3 = ModuleList([DecoderBlock(model) for _ in dec])
        self.up2 = Upsample(model)
        self.dec2 = ModuleList([DecoderBlock(model) for _ in dec])
        self.up1 = Upsample(model)
        self.dec1 = ModuleList([DecoderBlock(model) for _ in dec])

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of the stems along the second axis of the output."""
        return self.model.stems

    @property
    def parameter_count(self) -> int:
        """Number of scalar weights."""
        return sum(math.prod(weight.shape) for weight in named_parameters(self).values())

    @overload
    def __call__(self, mixture: Array, *, return_auxiliary_outputs: Literal[False] = False) -> Array: ...

    @overload
    def __call__(
        self, mixture: Array, *, return_auxiliary_outputs: Literal[True]
    ) -> tuple[Array, dict[str, Array]]: ...

    def __call__(
        self, mixture: Float[Array, "b 2 s"], *, return_auxiliary_outputs: bool = False
    ) -> Float[Array, "b stems 2 s"] | tuple[Float[Array, "b stems 2 s"], dict[str, Array]]:
        """Separate the mixture into stems.

        With ``return_auxiliary_outputs``, also return the complex "mask" (b, targets, c, f, t) and the "spectrum" of
        the mixture (b, c, f, t), both of mid and side for a model with ``mid_side``.
        """
        samples = mixture.shape[-1]
        x = pad_axis(mixture, -1, max(0, self.model.min_samples - samples))
        if self.model.mid_side:
            x = einsum(constant(MID_SIDE, x), x, "m c, b c s -> b m s")
        spectrum = stft(x, n_fft=self.model.n_fft, hop=self.model.hop)  # (b, c, f, t)
        mask = self.mask_head(self.network(self.band_split(spectrum)))  # (b, targets, c, f, t)
        masked = mask * spectrum[:, None]
        y = istft(masked, n_fft=self.model.n_fft, hop=self.model.hop, length=x.shape[-1])[..., :samples]
        if self.model.mid_side:
            y = einsum(constant(2 * MID_SIDE, y), y, "m c, b stems m s -> b stems c s")
        if self.model.residual:
            y = concatenate([y, (mixture - y.sum(1))[:, None]], 1)
        return (y, {"mask": mask, "spectrum": spectrum}) if return_auxiliary_outputs else y

    def network(self, x: Float[Array, "b k t d"]) -> Float[Array, "b k t d"]:
        """Apply the U-Net to band features, or as much of it as ``model.levels`` says."""
        if self.model.levels == 0:
            return x
        e1 = self.stage("enc1", x)  # (b, k, t, d)
        if self.model.levels == 1:
            return e1
        e2 = self.stage("enc2", self.down1(e1))  # (b, k, t/2, d)
        e3 = self.stage("enc3", self.down2(e2))  # (b, k, t/4, d)
        y = self.stage("bottleneck", self.down3(e3))  # (b, k, t/8, d)
        memory = memory_bank([e1, e2, e3, y], self.model.memory_tokens) if self.model.has_memory else None
        y = self.stage("dec3", self.up3(y, e3.shape[2]), memory, e3)
        y = self.stage("dec2", self.up2(y, e2.shape[2]), memory, e2)
        return self.stage("dec1", self.up1(y, e1.shape[2]), memory, e1)

    def stage(self, name: str, x: Float[Array, "b k t d"], *context: Array | None) -> Float[Array, "b k t d"]:
        """Apply all blocks of one level in order, rematerialised if the configuration says so."""

        def blocks(x: Array, *context: Array | None) -> Array:
            for block in getattr(self, name):
                x = block(x, *context)
            return x

        return (
            rematerialised(blocks, x, *context) if name in self.config.training.rematerialise else blocks(x, *context)
        )
