"""The lookup of a mixer in a twin's registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from twinsep.config import BandSplitConfig
from twinsep.errors import InputError

Module = TypeVar("Module")


def build_mixer(registry: Mapping[str, Callable[[BandSplitConfig], Module]], model: BandSplitConfig) -> Module:
    """Build the configured mixer, a module (b, l, d) -> (b, l, d), from a twin's ``registry`` (kind -> class).

    Raises :class:`InputError` for a kind that the registry lacks.
    """
    kind = model.mixer.kind
    if kind not in registry:
        raise InputError(f"the mixer {kind} has no form that reads only the past: choose one of {', '.join(registry)}")
    return registry[kind](model)
