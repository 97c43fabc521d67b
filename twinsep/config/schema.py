"""Every choice of an experiment, frozen and validated.

A :class:`Config` is the only thing passed around: the model, the losses, the training and the data
read their numbers from it and from its derived properties, never from a default of their own.
Symbols are the paper's (see :data:`twinsep.GLOSSARY`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    model_serializer,
)
from pydantic.dataclasses import dataclass

from twinsep import bands
from twinsep.config import messages, mixers
from twinsep.config.choices import LOSS_NAMES, STEMS, Precision, Stage
from twinsep.errors import InputError

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class ModelConfig:
    """Options of every network: the signal, a band table, and stems."""

    network: str
    sample_rate: Positive = 44_100  # Hz
    n_fft: Positive = 2048  # samples of an STFT window
    hop: Positive = 256  # samples from one STFT frame to the next
    bands: str = "vocal72"  # name of a band table; floors without training use it, too
    targets: tuple[str, ...] = ("instrumental",)  # stems to estimate
    residual: bool = False  # also return the mixture minus the targets

    def __post_init__(self) -> None:
        if self.n_fft % 2 or not 0 < self.hop <= self.n_fft // 2:
            raise ValueError(f"n_fft {self.n_fft} must be even and hop {self.hop} at most half of it")
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError(f"targets {self.targets} must be a non-empty list of different stems")
        for target in self.targets:
            if target not in STEMS:
                raise ValueError(f"unknown target {target!r}; known: {', '.join(STEMS)}")
        _ = self.band_table  # raises for an unknown table, or one that does not exist at this n_fft

    @property
    def band_table(self) -> np.ndarray:
        """(K, 2) half-open bin ranges."""
        return bands.table(self.bands, n_fft=self.n_fft, sample_rate=self.sample_rate)

    @property
    def n_bands(self) -> int:
        """K, the number of bands."""
        return len(self.band_table)

    @property
    def n_bins(self) -> int:
        """F = n_fft/2 + 1, the number of STFT bins."""
        return self.n_fft // 2 + 1

    @property
    def min_samples(self) -> int:
        """Samples that shorter inputs are zero-padded to, for reflect padding."""
        return self.n_fft // 2 + 1

    @property
    def mixer_kind(self) -> str:
        """Kind of the sequence mixer; the network's name for one without."""
        return self.network

    @property
    def latency(self) -> int | None:
        """Samples that an estimate in a stream is late; None for a network that reads the whole signal."""
        return None

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of the output stems, the residual last."""
        if not self.residual:
            return self.targets
        return (*self.targets, "vocals" if self.targets == ("instrumental",) else "residual")


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class BandSplitConfig(ModelConfig):
    """Options of every band-split network: width, sequence mixer, features and mask."""

    d_model: Positive  # D, features per band and frame
    n_heads: Positive  # H, attention heads; D/H must be even, for rotary positions
    mixer: Annotated[SerializeAsAny[mixers.Mixer], BeforeValidator(mixers.from_mapping)] = mixers.Mamba()
    features: Literal["complex", "complex+level"] = "complex"  # of a bin: its reals; and the logarithms of its levels
    init: Literal["default", "identity"] = "default"  # initial weights: PyTorch's; or a network that passes features on
    mask: Literal["polar", "glu"] = "polar"  # sigmoid magnitude and phase; or any complex number, as in BS-RoFormer
    mid_side: bool = False  # feed (L+R)/2 and (L−R)/2 instead of left and right

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(f"n_heads {self.n_heads} must divide d_model {self.d_model} into even head sizes")
        self.mixer.check(self.d_model)

    @property
    def mixer_kind(self) -> str:
        """Kind of the sequence mixer."""
        return self.mixer.kind

    @property
    def d_ff(self) -> int:
        """Hidden width of SwiGLU, ⌊D·4·2/3⌋."""
        return self.d_model * 8 // 3


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class UNetConfig(BandSplitConfig):
    """The band-split U-Net: blocks of each level, and the decoder's memory."""

    network: Literal["unet"] = "unet"
    n_enc: Positive  # blocks per encoder level
    n_bottleneck: Annotated[int, Field(ge=2)]  # bottleneck layers: pairs of a dual-path block and global attention
    n_dec: Positive  # blocks per decoder level
    memory_alignment: Literal["aligned", "reference"] = "aligned"  # what the decoder reads; reference: the public fault
    memory_tokens: tuple[int, int, int, int] = (64, 48, 32, 16)  # tokens pooled from levels 1, 2, 3 and the bottleneck
    levels: Literal[0, 1, 3] = 3  # of the U-Net; 1: the first encoder level alone; 0: band split and mask head alone
    causal: bool = False  # read no frame before it has come, so that the network can run on a live signal
    attention_window: Positive = 32  # frames that attention over time reads if causal: the present one and those before

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.memory_tokens) < 0:
            raise ValueError(f"memory_tokens {self.memory_tokens} must not be negative")
        if self.causal and self.memory_alignment == "reference":
            raise ValueError("memory_alignment reference reads a whole chunk; a causal network needs aligned")

    @model_serializer(mode="wrap")
    def _without_unused(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        # A network that is not causal keeps the hash that its configuration had before there were causal ones.
        values = dump(self)
        return values if self.causal else {k: v for k, v in values.items() if k not in ("causal", "attention_window")}

    @property
    def min_samples(self) -> int:
        """Samples that shorter inputs are zero-padded to, for reflect padding and three halvings of the frames."""
        return max(self.n_fft // 2 + 1, 7 * self.hop)

    @property
    def has_memory(self) -> bool:
        """True if the network has a decoder and a memory token count is not 0."""
        return self.levels == 3 and any(self.memory_tokens)

    @property
    def latency(self) -> int | None:
        """Samples that an estimate in a stream is late, at most: one window, as no frame waits. None unless causal."""
        return self.n_fft if self.causal else None


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class FlatConfig(BandSplitConfig):
    """Dual-path layers between band split and mask head, without a U-Net: BSRNN, BS-RoFormer, BSMamba2."""

    network: Literal["flat"] = "flat"
    n_layers: Positive  # dual-path layers
    feed_forward: bool = True  # SwiGLU after the two paths of a layer


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class SpectrogramUNetConfig(ModelConfig):
    """A U-Net of 2-D convolutions over the magnitudes of each channel, as an image."""

    network: Literal["spectrogram-unet"] = "spectrogram-unet"
    widths: tuple[Positive, ...] = (32, 64, 128, 256, 512)  # channels of each level, the finest first
    max_frequency: Annotated[float, Field(gt=0)] = 22_050.0  # Hz; the stems are silent above
    init: Literal["default"] = "default"  # initial weights: PyTorch's

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths:
            raise ValueError("widths must name the channels of at least one level")

    @property
    def used_bins(self) -> int:
        """Number of STFT bins up to ``max_frequency``."""
        return min(self.n_bins, int(self.max_frequency * self.n_fft / self.sample_rate) + 1)


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class PackageConfig(ModelConfig):
    """A published system that its own package computes, in PyTorch; Moises-Light runs in JAX too."""

    network: Literal["package"] = "package"
    system: str  # its name in torch_impl/baselines/packages.py
    max_segment: Annotated[float, Field(gt=0)] | None = None  # longest chunk that it takes, s
    overlap: Annotated[float, Field(ge=0, le=0.95)] = 0.25  # fraction of a chunk that neighbours share
    init: Literal["default"] = "default"  # initial weights: the package's

    @property
    def min_samples(self) -> int:
        """Samples that shorter inputs are zero-padded to, above the windows of all systems."""
        return 8192


#: Network -> its configuration class.
NETWORKS: dict[str, type[ModelConfig]] = {
    "unet": UNetConfig,
    "flat": FlatConfig,
    "spectrogram-unet": SpectrogramUNetConfig,
    "package": PackageConfig,
}


def _with_network(value: Any) -> Any:
    """A network that is not named is the U-Net, as in checkpoints written when there was no other."""
    return {"network": messages.DEFAULT_NETWORK, **value} if isinstance(value, Mapping) else value


@dataclass(frozen=True, config=_STRICT)
class LossConfig:
    """The training loss: a weighted sum of the losses in :data:`twinsep.losses.LOSSES`."""

    #: Name → weight; a loss of weight 0 is not computed.
    weights: dict[str, NonNegative] = Field(default_factory=lambda: {"magnitude": 0.25, "band": 0.5, "si_sdr": 2.5})
    bands: str = "vocal72"  # name of the band loss's table, so that another table of the model leaves the loss as it is
    log_floor: Annotated[float, Field(gt=0)] = 1e-3  # ε of the band loss, a magnitude; below it lies 16-bit silence
    loudness_weighting: bool = True  # weigh loud batches up to twice as much, as the reference does

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(LOSS_NAMES))
        if unknown:
            raise ValueError(f"unknown loss {unknown[0]!r}; known: {', '.join(LOSS_NAMES)}")
        if not any(self.weights.values()):
            raise ValueError("every loss has weight 0: at least one must have a positive weight")


@dataclass(frozen=True, config=_STRICT)
class TrainingConfig:
    """Optimiser, schedule, averaging and validation of a run. Steps are optimiser steps."""

    seed: Annotated[int, Field(ge=0)] = 0  # of the initial weights and of every draw in the data
    steps: Positive = 1000
    batch_size: Positive = 1  # segments
    accumulation: Positive = 1  # batches whose gradients are averaged in a step
    segment_seconds: Annotated[float, Field(gt=0)] = 3.0  # length of a training segment, s
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4  # peak of the schedule
    warmup_steps: Annotated[int, Field(ge=0)] = 50  # linear warm-up
    cosine_floor: Probability = 0.05  # last learning rate, as a fraction of the peak
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9  # AdamW
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: NonNegative = 0.01  # of matrices; none on norms, biases, A_log, D, dt_bias and band embeddings
    clip_norm: Annotated[float, Field(gt=0)] = 1.0  # largest norm of the gradient
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999  # of the averaged weights, reached after a ramp
    validate_every: Positive = 200  # steps; a checkpoint is written then too
    validation_tracks: Positive = 8
    validation_seconds: Annotated[float, Field(gt=0)] = 6.0  # of the excerpt of each track, s
    precision: Precision = "float32"
    rematerialise: tuple[Stage, ...] = ()  # stages whose activations are recomputed in the backward pass


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    """The songs, and how a training example is made from them."""

    root: str = "results/data/generated"  # folder of songs: MUSDB18-HQ layout, or pairs
    remix: Probability = 0.5  # of taking each source from a song of its own
    gain_db: NonNegative = 3.0  # each source's gain is uniform in ± this, dB
    channel_swap: Probability = 0.5  # of swapping left and right, for each source
    polarity: Probability = 0.5  # of inverting the polarity, for each source
    silent_target: Probability = 0.05  # of silencing a target
    low_pass: Probability = 0.5  # of a low-pass on the whole example
    time_mask: NonNegative = 0.0  # longest span that is silenced in the mixture alone, s
    frequency_mask: NonNegative = 0.0  # widest range that is silenced in the mixture alone, Hz
    noise: NonNegative = 0.0  # rms of the Gaussian noise that is added to the mixture alone
    workers: Annotated[int, Field(ge=0)] = 0  # processes that read songs; 0: two threads of the training process
    exclude: tuple[str, ...] = ()  # names of songs to leave out of training and validation
    skip_unreadable: bool = False  # leave out songs that cannot be read, with a warning, instead of stopping


@dataclass(frozen=True, config=_STRICT)
class Config:
    """One experiment: model, loss, training and data."""

    model: Annotated[
        UNetConfig | FlatConfig | SpectrogramUNetConfig | PackageConfig,
        Field(discriminator="network"),
        BeforeValidator(_with_network),
    ]
    loss: LossConfig = LossConfig()
    training: TrainingConfig = TrainingConfig()
    data: DataConfig = DataConfig()

    def __post_init__(self) -> None:
        if self.loss.weights.get("band"):  # raises for an unknown table, or one that does not exist at this n_fft
            bands.table(self.loss.bands, n_fft=self.model.n_fft, sample_rate=self.model.sample_rate)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, which :func:`from_dict` reads back."""
        return TypeAdapter(Config).dump_python(self, mode="json")

    def override(self, changes: Mapping[str, Any]) -> Config:
        """Return the experiment with nested ``changes``, validated anew.

        A mixer of another kind and the loss weights are replaced whole; another network keeps the values that it shares
        with the former one. Raises :class:`InputError` for an unknown key
        or a value out of range.
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
    """Return the validated configuration of nested plain values; raises :class:`InputError` naming the first fault."""
    try:
        return TypeAdapter(Config).validate_python(dict(values))
    except ValidationError as error:
        raise InputError(f"configuration: {messages.describe_first(error, Config, values)}") from error


def _merge(base: Any, changes: Any) -> Any:
    # A mixer of another kind has other keys, so it replaces the old one whole. Loss weights are replaced whole so that
    # a row names its full mix.
    if not (isinstance(base, Mapping) and isinstance(changes, Mapping)):
        return changes
    if "kind" in changes and changes["kind"] != base.get("kind"):
        return changes
    merged = dict(base)
    if changes.get("network", base.get("network")) != base.get("network") and changes["network"] in NETWORKS:
        known = {field.name for field in fields(NETWORKS[changes["network"]])}
        merged = {key: value for key, value in base.items() if key in known}
    for key, value in changes.items():
        merged[key] = value if key == "weights" or key not in base else _merge(base[key], value)
    return merged
