"""The separator: STFT, band split, U-Net with memory, mask, inverse STFT."""

from __future__ import annotations

import math
from typing import Literal, overload

from einops import einsum
from jax import Array
from jaxtyping import Float

from jax_impl.bandsplit import BandSplit, MaskHead
from jax_impl.blocks import DecoderBlock, Downsample, DualPath, EncoderBlock, GlobalAttention, Upsample, memory_bank
from jax_impl.layers import Module, ModuleList, concatenate, constant, named_parameters, pad_axis, rematerialised
from twinsep.config import Config
from twinsep.model.stereo import MID_SIDE
from twinsep.stft import istft, stft


class BandSplitUNet(Module):
    """Mixture (b, 2, s) to stems (b, stems, 2, s), float32 at the model's rate, of any length from 1 sample."""

    def __init__(self, config: Config):
        self.config = config
        self.model = model = config.model
        enc, dec = range(model.n_enc), range(model.n_dec)
        self.band_split = BandSplit(model)
        self.enc1 = ModuleList([EncoderBlock(model, conv=True) for _ in enc])
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
        self.mask_head = MaskHead(model)

    @property
    def stems(self) -> tuple[str, ...]:
        """What the second axis of the output holds."""
        return self.model.stems

    @property
    def parameter_count(self) -> int:
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
        """The stems. With ``return_auxiliary_outputs`` also the complex "mask" (b, targets, c, f, t) and the mixture's
        "spectrum" (b, c, f, t), of mid and side where the model works on those."""
        samples = mixture.shape[-1]
        x = pad_axis(mixture, -1, max(0, self.model.min_samples - samples))
        if self.model.mid_side:
            x = einsum(constant(MID_SIDE, x), x, "m c, b c s -> b m s")
        spectrum = stft(x, n_fft=self.model.n_fft, hop=self.model.hop)
        mask = self.mask_head(self.network(self.band_split(spectrum)))
        masked = mask * spectrum[:, None]
        y = istft(masked, n_fft=self.model.n_fft, hop=self.model.hop, length=x.shape[-1])[..., :samples]
        if self.model.mid_side:
            y = einsum(constant(2 * MID_SIDE, y), y, "m c, b stems m s -> b stems c s")
        if self.model.residual:
            y = concatenate([y, (mixture - y.sum(1))[:, None]], 1)
        return (y, {"mask": mask, "spectrum": spectrum}) if return_auxiliary_outputs else y

    def network(self, x: Float[Array, "b k t d"]) -> Float[Array, "b k t d"]:
        """The U-Net proper, from band features to band features."""
        e1 = self.stage("enc1", x)
        e2 = self.stage("enc2", self.down1(e1))
        e3 = self.stage("enc3", self.down2(e2))
        y = self.stage("bottleneck", self.down3(e3))
        memory = memory_bank([e1, e2, e3, y], self.model.memory_tokens) if self.model.has_memory else None
        y = self.stage("dec3", self.up3(y, e3.shape[2]), memory, e3)
        y = self.stage("dec2", self.up2(y, e2.shape[2]), memory, e2)
        return self.stage("dec1", self.up1(y, e1.shape[2]), memory, e1)

    def stage(self, name: str, x: Float[Array, "b k t d"], *context: Array | None) -> Float[Array, "b k t d"]:
        """All blocks of one level, one after another."""

        def blocks(x: Array, *context: Array | None) -> Array:
            for block in getattr(self, name):
                x = block(x, *context)
            return x

        return (
            rematerialised(blocks, x, *context) if name in self.config.training.rematerialise else blocks(x, *context)
        )
