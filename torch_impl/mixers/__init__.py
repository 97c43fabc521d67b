"""The sequence mixers by kind: one file each, one line each here."""

from __future__ import annotations

from torch_impl.layers import Module
from torch_impl.mixers.conv import Conv
from torch_impl.mixers.lstm import LSTM
from torch_impl.mixers.mamba import Mamba
from torch_impl.mixers.mamba2 import Mamba2
from torch_impl.mixers.transformer import Transformer
from twinsep.config import ModelConfig

MIXERS: dict[str, type[Module]] = {
    "mamba": Mamba,
    "mamba2": Mamba2,
    "transformer": Transformer,
    "lstm": LSTM,
    "conv": Conv,
}


def build(config: ModelConfig) -> Module:
    """A new mixer of the configured kind, (b, l, d) -> (b, l, d)."""
    return MIXERS[config.mixer.kind](config)
