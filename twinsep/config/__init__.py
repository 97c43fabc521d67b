"""Every choice of an experiment: frozen, validated configurations, and the named presets."""

from twinsep.config.choices import (
    CLIP_MODES,
    FRAMEWORKS,
    LOSS_NAMES,
    SOURCES,
    STAGES,
    STEMS,
    ClipMode,
    Framework,
    Precision,
)
from twinsep.config.presets import PRESETS, preset
from twinsep.config.schema import Config, DataConfig, LossConfig, ModelConfig, TrainingConfig, from_dict

__all__ = [
    "CLIP_MODES",
    "FRAMEWORKS",
    "LOSS_NAMES",
    "PRESETS",
    "SOURCES",
    "STAGES",
    "STEMS",
    "ClipMode",
    "Config",
    "DataConfig",
    "Framework",
    "LossConfig",
    "ModelConfig",
    "Precision",
    "TrainingConfig",
    "from_dict",
    "preset",
]
