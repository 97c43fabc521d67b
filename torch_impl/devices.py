"""The devices of this machine, and a model as a function of NumPy arrays on one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from torch_impl.kernels import cpu_kernels, published
from twinsep.errors import InputError
from twinsep.utils import provenance


def on_numpy(model: nn.Module, device: torch.device) -> Callable[[np.ndarray], np.ndarray]:
    """``model`` as a function from NumPy arrays to NumPy arrays, without gradients."""

    @torch.inference_mode()
    def function(x: np.ndarray) -> np.ndarray:
        return model(torch.from_numpy(x).to(device)).cpu().numpy()

    return function


def find_device(name: str) -> torch.device:
    """The device, tried out; raises :class:`InputError` where this machine has none of that name."""
    try:
        tried = torch.zeros(1, device=name)
        tried.cpu()  # fails where nothing is computed, such as on "meta"
        return tried.device
    except (RuntimeError, AssertionError) as error:  # PyTorch's ways to say: unknown name, built without CUDA
        raise InputError(f"device {name!r} cannot be used here; --device cpu always can") from error


def describe_machine() -> dict[str, Any]:
    """What there is here to compute on: "devices", by the names that ``--device`` takes; CPU "threads"; and the "scan",
    the way the selective scan is computed, by kind of device."""
    devices = {"cpu": provenance.processor()}
    devices |= {f"cuda:{number}": torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())}
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    scan = {"cpu": "tensor operations" if cpu_kernels() is None else "Numba kernel"}
    if "mps" in devices:
        scan["mps"] = "tensor operations"
    if torch.cuda.device_count():
        kernels = {"mamba-ssm's kernel": "mamba_ssm", "Triton kernel": "triton"}
        found = [kernel for kernel, package in kernels.items() if published.installed(package)]
        scan["cuda"] = " or ".join([*found, "tensor operations"])  # each kernel if it passes its check
    return {"devices": devices, "threads": torch.get_num_threads(), "scan": scan}
