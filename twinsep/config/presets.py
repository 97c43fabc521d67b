"""The named configurations."""

from __future__ import annotations

from typing import Any

from twinsep.config import mixers
from twinsep.config.choices import SOURCES
from twinsep.config.schema import (
    Config,
    DataConfig,
    FlatConfig,
    LossConfig,
    PackageConfig,
    SpectrogramUNetConfig,
    TrainingConfig,
    UNetConfig,
)
from twinsep.errors import InputError


def _presets() -> dict[str, Config]:
    reference_mix = LossConfig(weights={"magnitude": 0.25, "log_magnitude": 1.25, "si_sdr": 0.5})
    faults: dict[str, Any] = {"bands": "reference68", "memory_alignment": "reference"}
    ours: dict[str, Any] = {"features": "complex+level", "init": "identity", "mid_side": True}
    paper: dict[str, Any] = {"d_model": 256, "n_heads": 4, "n_enc": 4, "n_bottleneck": 6, "n_dec": 4}
    large: dict[str, Any] = {"d_model": 384, "n_heads": 8, "n_enc": 2, "n_bottleneck": 4, "n_dec": 2, "hop": 512}
    small: dict[str, Any] = {"d_model": 96, "n_heads": 4, "n_enc": 1, "n_bottleneck": 4, "n_dec": 2, "hop": 512}
    tiny: dict[str, Any] = {"d_model": 16, "n_heads": 2, "n_enc": 1, "n_bottleneck": 2, "n_dec": 1, "hop": 1024}
    # A segment of 1.5 s has 65, 32, 16 and 8 frames at hop 1024: every second one becomes a token.
    tokens: dict[str, Any] = {"memory_tokens": (32, 24, 16, 8)}
    # Waveform and complex spectra at five resolutions, the loss of BS-RoFormer and BSMamba2.
    waveform = LossConfig(weights={"waveform_l1": 1.0, "mr_stft_complex": 1.0}, loudness_weighting=False)
    flat: dict[str, Any] = {"mask": "glu"}
    bsrnn: dict[str, Any] = {"bands": "bsrnn41", "mixer": mixers.LSTM(), "feed_forward": False, **flat}
    roformer: dict[str, Any] = {"bands": "bsroformer62", "mixer": mixers.Transformer(), **flat}
    bsmamba2: dict[str, Any] = {"bands": "bsroformer62", "feed_forward": False, **flat}
    training = TrainingConfig(batch_size=5, accumulation=6, segment_seconds=8.0, ema_decay=0.999, precision="bfloat16")
    # Music-U-Net: what its card says; batch size, STFT, sizes of masks and noise are ours, the card has none.
    masks = DataConfig(time_mask=0.3, frequency_mask=1000.0, noise=1e-3)
    phase = LossConfig(weights={"mixture_phase_l1": 1.0}, loudness_weighting=False)
    adam: dict[str, Any] = {"learning_rate": 1e-4, "cosine_floor": 0.1, "warmup_steps": 0, "weight_decay": 0.0}
    # Adam as PyTorch has it; 50 passes over 100 songs of 40 segments each, 8 at a time.
    card = TrainingConfig(batch_size=8, steps=25_000, beta2=0.999, **adam)
    magnitudes: dict[str, Any] = {"hop": 512, "max_frequency": 8000.0, "targets": SOURCES}
    few: dict[str, Any] = {"d_model": 16, "n_heads": 2, "n_layers": 2, "hop": 1024, **ours}
    return {
        "reference": Config(UNetConfig(**paper, **faults), reference_mix),
        "reference-large": Config(UNetConfig(**large, **faults), reference_mix),
        "paper": Config(UNetConfig(**paper, **ours)),
        "small": Config(UNetConfig(**small, **ours, mixer=mixers.Mamba(d_state=16))),
        "tiny": Config(UNetConfig(**tiny, **tokens, **ours, mixer=mixers.Mamba(d_state=8))),
        # As tiny, for live signals: a window of 46 ms, and 8 running means of each level as its memory.
        "tiny-causal": Config(
            UNetConfig(**tiny, **ours, mixer=mixers.Mamba(d_state=8), causal=True, memory_tokens=(8, 8, 8, 8))
        ),
        # Systems of the field from our own parts. Those named -tiny have our input and start, to learn in minutes.
        "bsrnn": Config(FlatConfig(d_model=128, n_heads=4, n_layers=12, hop=512, **bsrnn), waveform),
        "bsrnn-tiny": Config(FlatConfig(**few, **bsrnn), waveform),
        "bs-roformer": Config(FlatConfig(d_model=384, n_heads=8, n_layers=6, hop=441, **roformer), waveform, training),
        "bs-roformer-tiny": Config(FlatConfig(**few, **roformer), waveform),
        "bsmamba2": Config(
            FlatConfig(
                d_model=256,
                n_heads=4,
                n_layers=6,
                hop=441,
                mixer=mixers.Mamba2(d_state=128, expand=4, head_dim=64),
                **bsmamba2,
            ),
            waveform,
            training,
        ),
        "music-unet": Config(SpectrogramUNetConfig(**magnitudes), phase, card, masks),
        "music-unet-tiny": Config(
            SpectrogramUNetConfig(**magnitudes | {"hop": 1024}, widths=(8, 16, 32, 64)), phase, data=masks
        ),
        "bsmamba2-tiny": Config(FlatConfig(**few, mixer=mixers.Mamba2(d_state=8, head_dim=16), **bsmamba2), waveform),
    }


def _packages() -> dict[str, Config]:
    """Systems that their own packages compute, with the length of chunks each was designed for."""
    four, six = SOURCES, (*SOURCES, "guitar", "piano")

    def config(system: str, targets: tuple[str, ...], seconds: float, **options: Any) -> Config:
        model = PackageConfig(system=system, targets=targets, **options)
        waveform = LossConfig(weights={"waveform_l1": 1.0, "mr_stft_complex": 1.0}, loudness_weighting=False)
        return Config(model, waveform, TrainingConfig(segment_seconds=seconds))

    moises = [f"{size}_{width}" for size in ("paper", "fullband") for width in ("large", "small")]
    moises += ["fullband_large_wide", "fullband_small_wide"]
    return {
        "bs-roformer/package": config("bs-roformer/package", ("instrumental",), 8.0),
        **{f"moises-light/{name}": config(f"moises-light/{name}", four, 6.0) for name in moises},
        "htdemucs": config("htdemucs", four, 7.8, max_segment=7.8),
        "htdemucs_ft": config("htdemucs_ft", four, 7.8, max_segment=7.8),
        "htdemucs_6s": config("htdemucs_6s", six, 7.8, max_segment=7.8),
        "mdx_extra": config("mdx_extra", four, 44.0),
        # Songs up to two minutes in one piece: it cuts them into blocks itself, and moving these changes its score.
        "spleeter-2stems": config("spleeter-2stems", ("instrumental",), 120.0, overlap=0.0),
    }


PRESETS: dict[str, Config] = _presets() | _packages()


def preset(name: str) -> Config:
    """The named configuration; raises :class:`InputError` naming the known ones."""
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]
