"""Every choice of an experiment: frozen, validated configurations, and the named presets."""

from twinsep.config.presets import PRESETS, preset
from twinsep.config.schema import (
    LOSS_NAMES,
    SOURCES,
    STAGES,
    STEMS,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    TrainingConfig,
    from_dict,
)

__all__ = [
    "LOSS_NAMES",
    "PRESETS",
    "SOURCES",
    "STAGES",
    "STEMS",
    "Config",
    "DataConfig",
    "LossConfig",
    "ModelConfig",
    "TrainingConfig",
    "from_dict",
    "preset",
]
