"""Devices of this machine, and models as functions of NumPy arrays."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from jax_impl.kernels import cpu_kernels
from twinsep.errors import InputError
from twinsep.utils import provenance


def on_numpy(model: nnx.Module, device: jax.Device) -> Callable[[np.ndarray], np.ndarray]:
    """Wrap ``model`` as a function from NumPy arrays to NumPy arrays, compiled once per shape."""
    definition = nnx.graphdef(model)
    compiled = jax.jit(lambda weights, x: nnx.merge(definition, weights)(x))

    def function(x: np.ndarray) -> np.ndarray:
        """Return the output of the model for ``x``."""
        return np.asarray(compiled(nnx.state(model), jax.device_put(x, device)))

    return function


def stream_on_numpy(model: Any) -> Callable[[], Callable[[np.ndarray], np.ndarray]]:
    """Wrap ``push`` of a causal model, compiled once, as a function that starts streams.

    A stream is a function from the next block (2, hop) to the stems (stems, 2, hop), on the device of the weights.
    """
    definition, weights = nnx.split(model)
    device = next(iter(model.band_split.bias[...].devices()))
    silence = jax.jit(lambda weights: nnx.merge(definition, weights).start())(weights)
    compiled = jax.jit(lambda weights, block, state: nnx.merge(definition, weights).push(block, state))

    def start() -> Callable[[np.ndarray], np.ndarray]:
        """Start a stream."""
        state = silence

        def advance(block: np.ndarray) -> np.ndarray:
            """Return the stems of the next block."""
            nonlocal state
            y, state = compiled(weights, jax.device_put(block[None], device), state)
            return np.asarray(y)[0]

        return advance

    return start


def choose_device() -> str:
    """Return "cuda" if JAX's default device is such a GPU, else "cpu"."""
    return "cuda" if jax.default_backend() in ("gpu", "cuda") else "cpu"


def find_device(name: str) -> jax.Device:
    """Return the device ``name``; raises :class:`InputError` if it cannot be used on this machine."""
    try:
        return jax.devices(name)[0]
    except RuntimeError as error:  # unknown device, or JAX built without it
        raise InputError(f"device {name!r} cannot be used here; --device cpu always can") from error


def describe_machine() -> dict[str, Any]:
    """Describe this machine: "devices" by ``--device`` name, CPU "threads", "scan" implementation by kind of device."""
    devices = {"cpu": provenance.processor()}
    if jax.default_backend() != "cpu":
        devices[jax.default_backend()] = ", ".join(device.device_kind for device in jax.devices())
    # The default backend decides, for every device: see selective_scan.
    if jax.default_backend() in ("gpu", "cuda"):
        scan = "Pallas kernel or JAX's associative scan"  # the kernel is used only if it passes its check
    elif jax.default_backend() != "cpu":
        scan = "JAX's associative scan"
    elif cpu_kernels() is None:
        scan = "JAX's operations, one frame after another"
    else:
        scan = "Numba kernel"
    return {"devices": devices, "threads": os.cpu_count(), "scan": dict.fromkeys(devices, scan)}
