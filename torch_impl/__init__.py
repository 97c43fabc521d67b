"""The PyTorch implementation. Its public interface is :func:`load` and :func:`create`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch_impl.devices import find_device
from torch_impl.layers import initialise, set_training
from torch_impl.network import Network
from torch_impl.networks import build
from torch_impl.train import load_weights
from twinsep import checkpoints
from twinsep.config import PackageConfig, preset

__all__ = ["create", "load"]


def create(name: str, changes: Mapping[str, Any] | None = None, *, seed: int = 0) -> Network:
    """Create the network of the preset ``name`` with weights drawn from ``seed``, in evaluation mode.

    ``changes`` are nested values of the configuration, such as ``{"model": {"targets": ["drums", "vocals"]}}``. Raises
    :class:`twinsep.errors.InputError` for an unknown preset, an unknown key or a value out of range.
    """
    config = preset(name).override(changes or {})
    model = build(config)
    initialise(model, seed, config.model.init)
    set_training(model, False)
    return model


def load(path_or_preset: str | Path, *, weights: str = "ema", seed: int = 0, device: str = "cpu") -> Network:
    """Load the network: float32 (b, 2, s) -> (b, stems, 2, s), at ``.config.model.sample_rate``, in evaluation mode.

    ``path_or_preset`` is a checkpoint, of which ``weights`` ("ema" or "model") are loaded, or the name of a preset,
    whose weights are drawn from ``seed``; a system of another package has its published weights, if there are any.
    Raises :class:`twinsep.errors.InputError` for anything else and for a ``device`` that cannot be used.
    """
    config, tensors = checkpoints.config_and_weights(path_or_preset, weights)
    model = build(config)
    if tensors is None:
        initialise(model, seed, config.model.init)
        if isinstance(config.model, PackageConfig):
            model.load_pretrained()  # type: ignore[operator]
    else:
        load_weights(model, tensors, str(path_or_preset))
    set_training(model, False)
    return model.to(find_device(device))
