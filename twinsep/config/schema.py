"""Every choice of an experiment, frozen and validated, and the named presets.

A :class:`Config` is the only thing passed around: the model, the losses, the training and the data
read their numbers from it and from its derived properties, never from a default of their own.
Symbols are those of the paper's table 1 (see :data:`twinsep.GLOSSARY`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, SerializeAsAny, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from twinsep import bands
from twinsep.config import mixers
from twinsep.errors import InputError

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Positive = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0, le=1)]

# ---------------------------------------------------------------------------- sections


@dataclass(frozen=True, config=_STRICT)
class ModelConfig:
    """The separator: signal, bands, sizes, mixer, memory and stems."""

    d_model: Positive
    n_heads: Positive
    n_enc: Positive
    n_bottleneck: Annotated[int, Field(ge=2)]
    n_dec: Positive
    mixer: Annotated[SerializeAsAny[mixers.Mixer], BeforeValidator(mixers.from_mapping)] = mixers.Mamba()
    sample_rate: Positive = 44_100
    n_fft: Positive = 2048
    hop: Positive = 256
    bands: str = "vocal72"
    memory_alignment: Literal["aligned", "reference"] = "aligned"
    memory_tokens: tuple[int, int, int, int] = (64, 48, 32, 16)
    mid_side: bool = False
    targets: tuple[str, ...] = ("instrumental",)
    residual: bool = False

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(f"n_heads {self.n_heads} must divide d_model {self.d_model} into even head sizes")
        if self.n_fft % 2 or not 0 < self.hop <= self.n_fft // 2:
            raise ValueError(f"n_fft {self.n_fft} must be even and hop {self.hop} at most half of it")
        if min(self.memory_tokens) < 0:
            raise ValueError(f"memory_tokens {self.memory_tokens} must not be negative")
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError(f"targets {self.targets} must be a non-empty list of different stems")
        for target in self.targets:
            if target not in STEMS:
                raise ValueError(f"unknown target {target!r}; known: {', '.join(STEMS)}")
        self.mixer.check(self.d_model)
        _ = self.band_table  # names an unknown table, or one that does not exist at this n_fft

    @property
    def band_table(self) -> np.ndarray:
        """(K, 2) half-open bin ranges."""
        return bands.table(self.bands, n_fft=self.n_fft, sample_rate=self.sample_rate)

    @property
    def n_bands(self) -> int:
        """K."""
        return len(self.band_table)

    @property
    def n_bins(self) -> int:
        """F = n_fft/2 + 1."""
        return self.n_fft // 2 + 1

    @property
    def d_ff(self) -> int:
        """Hidden width of SwiGLU, ⌊D·4·2/3⌋."""
        return self.d_model * 8 // 3

    @property
    def min_samples(self) -> int:
        """Shorter inputs are zero-padded to this: reflect padding and three halvings need it."""
        return max(self.n_fft // 2 + 1, 7 * self.hop)

    @property
    def has_memory(self) -> bool:
        return any(self.memory_tokens)

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of the stems that come out, the residual last."""
        if not self.residual:
            return self.targets
        return (*self.targets, "vocals" if self.targets == ("instrumental",) else "residual")


#: The stems of MUSDB18 and the one that is the sum of all but the vocals.
SOURCES = ("drums", "bass", "other", "vocals")
STEMS = (*SOURCES, "instrumental")

Weight = Annotated[float, Field(ge=0)]
#: The losses by name; :mod:`twinsep.losses` defines each.
LOSS_NAMES = (
    "magnitude",
    "band",
    "log_magnitude",
    "si_sdr",
    "si_sdr_unclipped",
    "mr_stft",
    "spectral_sdr",
    "waveform_l1",
    "mr_stft_complex",
    "mixture_phase_l1",
)
#: The levels of the U-Net in the order they are computed.
Stage = Literal["enc1", "enc2", "enc3", "bottleneck", "dec3", "dec2", "dec1"]
STAGES: tuple[str, ...] = get_args(Stage)


@dataclass(frozen=True, config=_STRICT)
class LossConfig:
    """Weights of the losses by name (see :data:`twinsep.losses.LOSSES`) and their options."""

    weights: dict[str, Weight] = Field(default_factory=lambda: {"magnitude": 0.25, "band": 1.25, "si_sdr": 0.5})
    log_floor: Annotated[float, Field(gt=0)] = 1e-3
    loudness_weighting: bool = True

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(LOSS_NAMES))
        if unknown:
            raise ValueError(f"unknown loss {unknown[0]!r}; known: {', '.join(LOSS_NAMES)}")
        if not any(self.weights.values()):
            raise ValueError("every loss has weight 0; give at least one a weight")


@dataclass(frozen=True, config=_STRICT)
class TrainingConfig:
    """Optimiser, schedule, averaging and bookkeeping of one run. Steps are optimiser steps."""

    seed: Annotated[int, Field(ge=0)] = 0
    steps: Positive = 1000
    batch_size: Positive = 1
    accumulation: Positive = 1
    segment_seconds: Annotated[float, Field(gt=0)] = 3.0
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    cosine_floor: Probability = 0.05
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    validate_every: Positive = 200
    validation_tracks: Positive = 8
    validation_seconds: Annotated[float, Field(gt=0)] = 6.0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    rematerialise: tuple[Stage, ...] = ()


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    """Where the songs are and how a training example is made of them."""

    root: str = "results/data/generated"
    remix: Probability = 0.5
    gain_db: Annotated[float, Field(ge=0)] = 3.0
    channel_swap: Probability = 0.5
    polarity: Probability = 0.5
    silent_target: Probability = 0.05
    low_pass: Probability = 0.5
    workers: Annotated[int, Field(ge=0)] = 0
    #: Names of songs to leave out of training and validation.
    exclude: tuple[str, ...] = ()
    #: Whether training leaves out what cannot be read, saying so, instead of ending there.
    skip_unreadable: bool = False


@dataclass(frozen=True, config=_STRICT)
class Config:
    """One experiment."""

    model: ModelConfig
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    data: DataConfig = DataConfig()

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types; :func:`from_dict` reads it back."""
        return TypeAdapter(Config).dump_python(self, mode="json")

    def override(self, changes: Mapping[str, Any]) -> Config:
        """The same experiment with nested ``changes``, validated anew.

        Raises :class:`InputError` for an unknown key or a value out of range.
        """
        return from_dict(_merge(self.to_dict(), changes))

    @property
    def segment_samples(self) -> int:
        """Samples of one training example."""
        return round(self.training.segment_seconds * self.model.sample_rate)

    @property
    def hash(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON: two runs of one hash are one run."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def from_dict(values: Mapping[str, Any]) -> Config:
    """A validated configuration from nested plain values; raises :class:`InputError` in one sentence."""
    try:
        return TypeAdapter(Config).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "configuration"
        raise InputError(f"configuration: {where}: {first['msg'].removeprefix('Value error, ')}") from error


def _merge(base: Any, changes: Any) -> Any:
    # A dictionary of another ``kind`` replaces the old one whole: its keys mean something else.
    # Loss weights are replaced whole too, so that a row names its full mix.
    if not (isinstance(base, Mapping) and isinstance(changes, Mapping)):
        return changes
    if "kind" in changes and changes["kind"] != base.get("kind"):
        return changes
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = value if key == "weights" or key not in base else _merge(base[key], value)
    return merged
