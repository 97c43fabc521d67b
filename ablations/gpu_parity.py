"""Distances of both twins on an NVIDIA GPU from PyTorch in float64 on the CPU: ``python -m ablations.gpu_parity``.

No stage runs it, since most machines have no GPU. It writes ``results/parity_gpu.json``: the modules and networks of
:mod:`ablations.comparison` in float32 with factors of full precision, and networks in TF32 and bfloat16 beside them.
JAX compiles for long, so that it computes the first cases alone.
"""

from __future__ import annotations

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs the memory, too

from pathlib import Path
from typing import Any

import torch

from ablations import comparison
from ablations.comparison import QUIET, TOLERANCE, Arrays, configuration, distance
from torch_impl.kernels import own_operations
from twinsep.errors import guarded
from twinsep.utils import progress, provenance
from twinsep.utils.files import write_json

OUT = Path("results/parity_gpu.json")
DEVICE = "cuda"
#: Number of cases that JAX computes.
IN_JAX = 2
DRAWS = [(QUIET, 0), (QUIET, 1)]


def main() -> None:
    """Write ``results/parity_gpu.json``."""
    record: dict[str, Any] = {"tolerance": TOLERANCE, "modules": {}, "networks": {}}
    cases = comparison.cases()
    in_jax: dict[str, tuple[Any, list[Arrays]]] = {}  # name: configuration and exact values
    with progress.progress_bar("parity on the GPU") as report:
        for done, (name, model) in enumerate(cases.items()):
            config = configuration(model)
            with own_operations():
                wanted = comparison.modules_in_torch(config, "float64")
            for module, found in comparison.modules_in_torch(config, "float32", device=DEVICE).items():
                worst = record["modules"].setdefault(module, {})
                for key, prefix in (("forward", "y"), ("backward", "d ")):
                    worst[key] = float(f"{max(worst.get(key, 0.0), distance(found, wanted[module], prefix)):.2e}")
            with own_operations():
                exact = comparison.network_in_torch(config, "float64", DRAWS)
            entry = record["networks"][name] = {"PyTorch, float32": compare(in_torch(config), exact)}
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            entry["PyTorch, TF32"] = compare(in_torch(config), exact)
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
            entry["PyTorch, bfloat16"] = compare(in_torch(config, torch.bfloat16), exact)
            if done < IN_JAX:
                in_jax[name] = config, exact
            save(record)
            report(done + 1, len(cases) + IN_JAX)
        for done, (name, (config, exact)) in enumerate(in_jax.items(), len(cases)):
            computed = comparison.network_in_jax(config, "float32", DRAWS, as_for_users=True)
            record["networks"][name]["JAX, float32"] = compare(computed, exact)
            save(record)
            report(done + 1, len(cases) + IN_JAX)


def save(record: dict[str, Any]) -> None:
    """Write what is known so far, since JAX may take longer than there is time."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    write_json(OUT, {**record, **provenance.describe(device)})


def in_torch(config: Any, compute: torch.dtype | None = None) -> list[Arrays]:
    """The network in PyTorch on the GPU."""
    return comparison.network_in_torch(config, "float32", DRAWS, device=DEVICE, compute=compute)


def compare(found: list[Arrays], wanted: list[Arrays]) -> dict[str, float]:
    """The largest distances of outputs and of gradients."""
    both = list(zip(found, wanted, strict=True))
    largest = {"forward": max(distance(*pair, "y") for pair in both)}
    largest["gradients"] = max(distance(*pair, "d ") for pair in both)
    return {key: float(f"{value:.2e}") for key, value in largest.items()}


if __name__ == "__main__":
    guarded(main)
