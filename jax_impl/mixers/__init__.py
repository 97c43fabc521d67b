"""The sequence mixers by kind: one file each, one line each in :data:`MIXERS`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from jax_impl.layers import Module
from jax_impl.mixers.conv import Conv
from jax_impl.mixers.lstm import LSTM
from jax_impl.mixers.mamba import Mamba
from jax_impl.mixers.mamba2 import Mamba2
from jax_impl.mixers.transformer import Transformer
from twinsep.config import BandSplitConfig
from twinsep.model.mixers import build_mixer

MIXERS: dict[str, Callable[[BandSplitConfig], Module]] = {
    "mamba": Mamba,
    "mamba2": Mamba2,
    "transformer": Transformer,
    "lstm": LSTM,
    "conv": Conv,
}

#: build(model) -> the configured mixer, a module (b, l, d) -> (b, l, d).
build = partial(build_mixer, MIXERS)
