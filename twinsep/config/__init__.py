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
    SampleFormat,
)
from twinsep.config.presets import PRESETS, preset
from twinsep.config.schema import (
    NETWORKS,
    BandSplitConfig,
    Config,
    DataConfig,
    FlatConfig,
    LossConfig,
    ModelConfig,
    PackageConfig,
    TrainingConfig,
    UNetConfig,
    from_dict,
)

__all__ = [
    "CLIP_MODES",
    "FRAMEWORKS",
    "LOSS_NAMES",
    "NETWORKS",
    "PRESETS",
    "SOURCES",
    "STAGES",
    "STEMS",
    "BandSplitConfig",
    "ClipMode",
    "Config",
    "DataConfig",
    "FlatConfig",
    "Framework",
    "LossConfig",
    "ModelConfig",
    "PackageConfig",
    "Precision",
    "SampleFormat",
    "TrainingConfig",
    "UNetConfig",
    "from_dict",
    "preset",
]
