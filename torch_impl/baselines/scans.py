"""Other people's ways to compute the selective scan on a CPU, as they come: for comparisons of speed.

mambapy comes with ``pip install 'twinsep[peers]'``. mamba_ssm cannot be installed without a CUDA compiler, and its
reference needs none: where ``TWINSEP_MAMBA_SSM`` names a folder with its sources, that one function is read from them.
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
    """Those that are here."""
    found = []
    for name in SCANS:
        try:
            scan_of(name)
        except InputError:
            continue
        found.append(name)
    return found


def scan_of(name: str) -> Scan:
    """A function of (u, delta, A, B, C, D, z) as :func:`torch_impl.scan.selective_scan` is.

    Raises :class:`InputError` for an unknown name and for one that is not installed."""
    if name not in SCANS:
        raise InputError(f"unknown scan {name!r}; known: default, definition, {', '.join(SCANS)}")
    return SCANS[name]()


def _mambapy() -> Scan:
    """pscan of mambapy (Torres-Leguet), a parallel scan over whole states, with what its own block does about it."""
    try:
        module = importlib.import_module("mambapy.mamba")
    except ModuleNotFoundError as error:
        raise InputError(
            f"mambapy needs the package {error.name}; install it with: pip install 'twinsep[peers]'"
        ) from error

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
        return module.MambaBlock.selective_scan(None, u, delta, A, B, C, D) * silu(z)  # which uses no block's weights

    return scan


def _mamba_ssm() -> Scan:
    """selective_scan_ref of mamba_ssm: whole states, then a loop over the frames; (b, e, l) in and out."""
    folder = os.environ.get(SOURCES)
    path = Path(folder or "", "mamba_ssm/ops/selective_scan_interface.py")
    if not folder or not path.is_file():
        raise InputError(f"mamba_ssm's reference needs its sources; set {SOURCES} to the folder that holds mamba_ssm/")
    # The file imports compiled modules; the function uses none of them.
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
