"""Dual-path layers at one resolution, as in BSRNN, BS-RoFormer and BSMamba2."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from torch_impl.blocks import DualPath
from torch_impl.layers import ModuleList
from torch_impl.network import BandSplitNetwork
from torch_impl.ops import rematerialised
from twinsep.config import Config, FlatConfig


class BandSplitFlat(BandSplitNetwork):
    """Band split, dual-path layers, mask head: mixture (b, 2, s) to stems (b, stems, 2, s).

    Luo and Yu 2022 (BSRNN, arXiv 2209.15174), Lu et al. 2023 (BS-RoFormer, arXiv 2309.02612), Kim and Choi 2025
    (BSMamba2, arXiv 2508.14556) differ in bands, sequence mixer and sizes.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        model = config.model
        assert isinstance(model, FlatConfig)
        self.layers = ModuleList([DualPath(model, feed_forward=model.feed_forward) for _ in range(model.n_layers)])

    def network(self, x: Float[Tensor, "b k t d"]) -> Float[Tensor, "b k t d"]:
        """Apply all layers in order, each rematerialised if the configuration says so."""
        for layer in self.layers:
            x = rematerialised(layer, x) if "layers" in self.config.training.rematerialise else layer(x)
        return x
