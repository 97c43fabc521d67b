"""Devices of this machine, and models as functions of NumPy arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from torch_impl.kernels import cpu_kernels, guard, own_operations, published
from torch_impl.layers import initialise, set_training
from torch_impl.unet import BandSplitUNet
from twinsep.config import preset
from twinsep.errors import InputError
from twinsep.utils import provenance


def on_numpy(model: nn.Module, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    """Wrap ``model`` as a function from NumPy arrays to NumPy arrays, without gradients."""
    set_training(model, False)

    @torch.inference_mode()
    def function(x: np.ndarray) -> np.ndarray:
        """Return the output of the model for ``x``."""
        return model(torch.from_numpy(x).to(device)).cpu().numpy()

    return function


def stream_on_numpy(model: Any) -> Callable[[], Callable[[np.ndarray], np.ndarray]]:
    """Wrap ``push`` of a causal model as a function that starts streams, without gradients.

    A stream is a function from the next block (2, hop) to the stems (stems, 2, hop), on the device of the weights.
    """
    device = model.band_split.bias.device

    def start() -> Callable[[np.ndarray], np.ndarray]:
        """Start a stream."""
        with torch.inference_mode():
            state = model.start()

        @torch.inference_mode()
        def advance(block: np.ndarray) -> np.ndarray:
            """Return the stems of the next block."""
            nonlocal state
            y, state = model.push(torch.from_numpy(block)[None].to(device), state)
            return y[0].cpu().numpy()

        return advance

    return start


def choose_device() -> str:
    """Return "cuda" if PyTorch can use such a GPU, else "mps" if an Apple GPU computes as the CPU does, else "cpu"."""
    if torch.cuda.is_available():
        with contextlib.suppress(InputError):  # a GPU that this build has no code for
            find_device("cuda")
            return "cuda"
    if torch.backends.mps.is_available() and agrees_with_cpu("mps"):
        return "mps"
    return "cpu"


def agrees_with_cpu(name: str) -> bool:
    """Return True if a small network on the device ``name`` agrees with float64 on the CPU; else warn once.

    Compares the output and the gradient of the input, which pass through every kind of layer of the default mixer.
    """
    config = preset("tiny").override({"model": {"d_model": 8, "n_heads": 2, "bands": "vocal18"}})
    models = [BandSplitUNet(config), BandSplitUNet(config)]
    for model in models:
        initialise(model, 0)
    exact, on_device = models[0].double(), models[1]

    def definition(mixture: torch.Tensor) -> torch.Tensor:
        with own_operations():
            return exact(mixture)

    def samples() -> list[guard.Inputs]:
        return [{"mixture": 0.1 * guard.random(0, (1, 2, 20_000)).to(name)}]

    return guard.checked(f"The device {name}", lambda: on_device.to(name), definition, samples) is not None


def find_device(name: str) -> torch.device:
    """Return the device ``name``; raises :class:`InputError` if it cannot be used on this machine."""
    try:
        probe = torch.zeros(1, device=name)
        probe.cpu()  # fails on devices that compute nothing, such as "meta"
        return probe.device
    except (RuntimeError, AssertionError) as error:  # unknown device; PyTorch built without CUDA
        raise InputError(f"device {name!r} cannot be used here; --device cpu always can") from error


def describe_machine() -> dict[str, Any]:
    """Describe this machine: "devices" by ``--device`` name, CPU "threads", "scan" implementation by kind of device."""
    devices = {"cpu": provenance.processor()}
    devices |= {f"cuda:{number}": torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())}
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    scan = {"cpu": "tensor operations" if cpu_kernels() is None else "Numba kernel"}
    if "mps" in devices:
        scan["mps"] = "tensor operations"
    if torch.cuda.device_count():
        kernels = {"mamba-ssm's kernel": "mamba_ssm", "Triton kernel": "triton"}
        installed = [kernel for kernel, package in kernels.items() if published.installed(package)]
        scan["cuda"] = " or ".join([*installed, "tensor operations"])  # a kernel is used only if it passes its check
    return {"devices": devices, "threads": torch.get_num_threads(), "scan": scan}
