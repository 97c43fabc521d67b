"""The U-Net of bidirectional sequence blocks whose decoder reads a small pooled memory."""

from __future__ import annotations

from typing import ClassVar

from jax import Array
from jaxtyping import Float

from jax_impl.blocks import DecoderBlock, Downsample, DualPath, EncoderBlock, GlobalAttention, Upsample, memory_bank
from jax_impl.layers import ModuleList
from jax_impl.network import BandSplitNetwork
from jax_impl.ops import rematerialised
from twinsep.config import Config, UNetConfig


class BandSplitUNet(BandSplitNetwork):
    """The band-split U-Net with memory: mixture (b, 2, s) to stems (b, stems, 2, s)."""

    encoder_block: ClassVar[type] = EncoderBlock
    dual_path: ClassVar[type] = DualPath
    global_attention: ClassVar[type] = GlobalAttention
    decoder_block: ClassVar[type] = DecoderBlock

    def __init__(self, config: Config):
        super().__init__(config)
        model = config.model
        assert isinstance(model, UNetConfig)
        if model.levels >= 1:
            self.enc1 = ModuleList([self.encoder_block(model, conv=True) for _ in range(model.n_enc)])
        if model.levels == 3:
            self.add_deeper_levels(model)

    def add_deeper_levels(self, model: UNetConfig) -> None:
        """Add the encoder's levels 2 and 3, the bottleneck and the decoder."""
        enc, dec = range(model.n_enc), range(model.n_dec)
        self.down1 = Downsample(model)
        self.enc2 = ModuleList([self.encoder_block(model, conv=True) for _ in enc])
        self.down2 = Downsample(model)
        self.enc3 = ModuleList([self.encoder_block(model, conv=False) for _ in enc])
        self.down3 = Downsample(model)
        pairs = [(self.dual_path, self.global_attention)] * (model.n_bottleneck // 2)
        self.bottleneck = ModuleList([block(model) for pair in pairs for block in pair])
        self.up3 = Upsample(model)
        self.dec3 = ModuleList([self.decoder_block(model) for _ in dec])
        self.up2 = Upsample(model)
        self.dec2 = ModuleList([self.decoder_block(model) for _ in dec])
        self.up1 = Upsample(model)
        self.dec1 = ModuleList([self.decoder_block(model) for _ in dec])

    def network(self, x: Float[Array, "b k t d"]) -> Float[Array, "b k t d"]:
        """Apply the U-Net to band features, or as much of it as ``model.levels`` says."""
        model = self.model
        assert isinstance(model, UNetConfig)
        if model.levels == 0:
            return x
        e1 = self.stage("enc1", x)  # (b, k, t, d)
        if model.levels == 1:
            return e1
        e2 = self.stage("enc2", self.down1(e1))  # (b, k, t/2, d)
        e3 = self.stage("enc3", self.down2(e2))  # (b, k, t/4, d)
        y = self.stage("bottleneck", self.down3(e3))  # (b, k, t/8, d)
        memory = memory_bank([e1, e2, e3, y], model.memory_tokens) if model.has_memory else None
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
