"""The JAX implementation. Its public interface is :func:`load` and :func:`create`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from jax_impl.devices import find_device
from jax_impl.layers import initialise
from jax_impl.network import Network
from jax_impl.networks import build
from jax_impl.train import load_weights
from twinsep import checkpoints
from twinsep.config import preset

__all__ = ["create", "load"]


def create(name: str, changes: Mapping[str, Any] | None = None, *, seed: int = 0) -> Network:
    """Create the network of the preset ``name`` with weights drawn from ``seed``, in evaluation mode.

    ``changes`` are nested values of the configuration, such as ``{"model": {"targets": ["drums", "vocals"]}}``. Raises
    :class:`twinsep.errors.InputError` for an unknown preset, an unknown key or a value out of range.
    """
    config = preset(name).override(changes or {})
    model = build(config)
    initialise(model, seed, config.model.init)
    return model


def load(path_or_preset: str | Path, *, weights: str = "ema", seed: int = 0, device: str = "cpu") -> Network:
    """Load the network: float32 (b, 2, s) -> (b, stems, 2, s), at ``.config.model.sample_rate``.

    ``path_or_preset`` is a checkpoint, of which ``weights`` ("ema" or "model") are loaded, or the name of a preset,
    whose weights are drawn from ``seed``. Raises :class:`twinsep.errors.InputError` for anything else and for a
    ``device`` that cannot be used.
    """
    config, tensors = checkpoints.config_and_weights(path_or_preset, weights)
    model = build(config)
    if tensors is None:
        initialise(model, seed, config.model.init)
    else:
        load_weights(model, tensors, str(path_or_preset))
    nnx.update(model, jax.device_put(nnx.state(model), find_device(device)))
    return model
