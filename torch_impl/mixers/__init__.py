"""The sequence mixers by kind: one file each, one line each in :data:`MIXERS`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch_impl.layers import Module
from torch_impl.mixers.conv import CausalConv, Conv
from torch_impl.mixers.lstm import LSTM
from torch_impl.mixers.mamba import Mamba
from torch_impl.mixers.mamba2 import Mamba2
from torch_impl.mixers.transformer import CausalTransformer, Transformer
from twinsep.config import BandSplitConfig
from twinsep.model.mixers import build_mixer

MIXERS: dict[str, Callable[[BandSplitConfig], Module]] = {
    "mamba": Mamba,
    "mamba2": Mamba2,
    "transformer": Transformer,
    "lstm": LSTM,
    "conv": Conv,
}

#: Mixers that read no later frame, with ``start`` and ``step``, by kind: for the time axis of a causal network.
CAUSAL_MIXERS: dict[str, Callable[[BandSplitConfig], Module]] = {
    "mamba": Mamba,
    "mamba2": Mamba2,
    "transformer": CausalTransformer,
    "lstm": LSTM,
    "conv": CausalConv,
}

#: build(model) -> the configured mixer, a module (b, l, d) -> (b, l, d).
build = partial(build_mixer, MIXERS)
#: build_causal(model) -> the configured mixer in a form that reads no later frame.
build_causal = partial(build_mixer, CAUSAL_MIXERS)
