"""The lookup of a mixer in a twin's registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from twinsep.config import BandSplitConfig

Module = TypeVar("Module")


def build_mixer(registry: Mapping[str, Callable[[BandSplitConfig], Module]], model: BandSplitConfig) -> Module:
    """Build the configured mixer, a module (b, l, d) -> (b, l, d), from a twin's ``registry`` (kind -> class)."""
    return registry[model.mixer.kind](model)
