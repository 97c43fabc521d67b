"""The released weights: where they lie in an installation, and weights of half precision in general."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from twinsep.checkpoints.native import Tensors
from twinsep.errors import InputError

#: The released checkpoint, data of the package.
PATH = Path(__file__).parents[1] / "released" / "twinsep.safetensors"


def released_path() -> Path:
    """The released checkpoint; raises :class:`InputError` if this installation has none."""
    if not PATH.is_file():
        raise InputError("this version of twinsep comes without trained weights: name a checkpoint or a preset")
    return PATH


def full_precision(weights: Mapping[str, np.ndarray]) -> Tensors:
    """The weights with those of float16, which only files have, as float32."""
    return {name: w.astype(np.float32) if w.dtype == np.float16 else w for name, w in weights.items()}


def half_precision(weights: Mapping[str, np.ndarray]) -> Tensors:
    """The weights rounded to float16; raises :class:`InputError` for one beyond its range."""
    with np.errstate(over="ignore"):
        rounded = {name: w.astype(np.float16) for name, w in weights.items()}
    for name, w in rounded.items():
        if not np.isfinite(w).all():
            raise InputError(f"weight {name!r} does not fit into float16: keep this model in float32")
    return rounded
