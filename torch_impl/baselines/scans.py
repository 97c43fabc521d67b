"""Published CPU implementations of the selective scan, for comparisons of speed.

``pip install 'twinsep[peers]'`` installs mambapy. mamba_ssm cannot be installed without a CUDA compiler, but its
reference function needs none: it is read from the sources in the folder that ``TWINSEP_MAMBA_SSM`` names.
"""

from __future__ import annotations

import ast
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import einops
import torch
from torch import Tensor
from torch.nn.functional import silu

from twinsep.errors import InputError

Scan = Callable[..., Tensor]
SOURCES = "TWINSEP_MAMBA_SSM"


def available() -> list[str]:
    """Return the names of the scans that can be used on this machine."""
    found = []
    for name in SCANS:
        try:
            load_scan(name)
        except InputError:
            continue
        found.append(name)
    return found


def load_scan(name: str) -> Scan:
    """Return a scan with the signature of :func:`torch_impl.scan.selective_scan`.

    Raises :class:`InputError` for a name that is unknown or not installed.
    """
    if name not in SCANS:
        raise InputError(f"unknown scan {name!r}; known: default, definition, {', '.join(SCANS)}")
    return SCANS[name]()


def _mambapy() -> Scan:
    """mambapy's scan (Torres-Leguet): pscan, a parallel scan over whole states, as called in its MambaBlock."""
    try:
        module = importlib.import_module("mambapy.mamba")
    except ModuleNotFoundError as error:
        raise InputError(
            f"mambapy needs the package {error.name}; install it with: pip install 'twinsep[peers]'"
        ) from error

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
        return module.MambaBlock.selective_scan(None, u, delta, A, B, C, D) * silu(
            z
        )  # the method uses no weights of the block

    return scan


def _mamba_ssm() -> Scan:
    """mamba_ssm's selective_scan_ref: whole states, then a loop over the frames, on (b, e, l)."""
    folder = os.environ.get(SOURCES)
    path = Path(folder or "", "mamba_ssm/ops/selective_scan_interface.py")
    if not folder or not path.is_file():
        raise InputError(f"mamba_ssm's reference needs its sources; set {SOURCES} to the folder that holds mamba_ssm/")
    # Take only the function: the file imports compiled modules, which it does not use.
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "selective_scan_ref"]
    names: dict[str, Any] = {
        "torch": torch,
        "F": torch.nn.functional,
        "rearrange": einops.rearrange,
        "repeat": einops.repeat,
    }
    exec(compile(tree, str(path), "exec"), names)
    reference = names["selective_scan_ref"]

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
        return reference(u.mT, delta.mT, A, B.mT, C.mT, D, z.mT).mT

    return scan


SCANS: dict[str, Callable[[], Scan]] = {"mambapy": _mambapy, "mamba_ssm": _mamba_ssm}
