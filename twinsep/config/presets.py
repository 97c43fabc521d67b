"""The named configurations."""

from __future__ import annotations

from typing import Any

from twinsep.config import mixers
from twinsep.config.schema import Config, LossConfig, ModelConfig
from twinsep.errors import InputError


def _presets() -> dict[str, Config]:
    reference_mix = LossConfig(weights={"magnitude": 0.25, "log_magnitude": 1.25, "si_sdr": 0.5})
    faults: dict[str, Any] = {"bands": "reference68", "memory_alignment": "reference"}
    ours: dict[str, Any] = {"features": "complex+level", "init": "identity"}
    paper: dict[str, Any] = {"d_model": 256, "n_heads": 4, "n_enc": 4, "n_bottleneck": 6, "n_dec": 4}
    large: dict[str, Any] = {"d_model": 384, "n_heads": 8, "n_enc": 2, "n_bottleneck": 4, "n_dec": 2, "hop": 512}
    small: dict[str, Any] = {"d_model": 96, "n_heads": 4, "n_enc": 1, "n_bottleneck": 4, "n_dec": 2, "hop": 512}
    tiny: dict[str, Any] = {"d_model": 16, "n_heads": 2, "n_enc": 1, "n_bottleneck": 2, "n_dec": 1, "hop": 1024}
    # A segment of 1.5 s has 65, 32, 16 and 8 frames at hop 1024: every second one becomes a token.
    tokens: dict[str, Any] = {"memory_tokens": (32, 24, 16, 8)}
    return {
        "reference": Config(ModelConfig(**paper, **faults), reference_mix),
        "reference-large": Config(ModelConfig(**large, **faults), reference_mix),
        "paper": Config(ModelConfig(**paper, **ours)),
        "small": Config(ModelConfig(**small, **ours, mixer=mixers.Mamba(d_state=16))),
        "tiny": Config(ModelConfig(**tiny, **tokens, **ours, mixer=mixers.Mamba(d_state=8))),
    }


PRESETS: dict[str, Config] = _presets()


def preset(name: str) -> Config:
    """The named configuration; raises :class:`InputError` naming the known ones."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
