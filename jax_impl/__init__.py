"""The JAX implementation. Its public interface is :func:`load`."""

from __future__ import annotations

from pathlib import Path

import jax
from flax import nnx

from jax_impl.devices import find_device
from jax_impl.layers import initialise
from jax_impl.network import Network
from jax_impl.networks import build
from jax_impl.train import load_weights
from twinsep import checkpoints

__all__ = ["load"]


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
