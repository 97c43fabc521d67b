"""Implementations by others to test against, where the machine has them. Nothing of theirs is copied here."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import pytest


class MambaSSM(NamedTuple):
    """The parts of the package mamba_ssm (by the authors of Mamba) that are plain PyTorch and run on any device."""

    selective_scan_ref: Any  # u, delta, z (b, e, l), B, C (b, n, l) -> (b, e, l), computed in float32
    Mamba: Any  # the module; make it with use_fast_path=False


def _folder() -> Path | None:
    """The folder with the package mamba_ssm in it: $TWINSEP_MAMBA_SSM, or wherever it is installed."""
    if named := os.environ.get("TWINSEP_MAMBA_SSM"):
        return Path(named)
    spec = importlib.util.find_spec("mamba_ssm")
    return Path(spec.origin).parent.parent if spec and spec.origin else None


def _package(name: str, path: Path) -> ModuleType:
    """An empty package at `path`: importing from it does not run its own __init__."""
    package = ModuleType(name)
    package.__path__ = [str(path)]
    return package


def mamba_ssm() -> MambaSSM | None:
    """mamba_ssm's references, or None where the package is not there.

    Importing the package itself needs CUDA extensions, triton and transformers. Its two modules that matter use none of
    them in the code that we call, so we import only these, with an empty module in place of each import that cannot
    work, and leave no trace of it in sys.modules.
    """
    folder = _folder()
    if folder is None or not (folder / "mamba_ssm").is_dir():
        return None
    norms = ModuleType("mamba_ssm.ops.triton.layer_norm")
    for name in ("_layer_norm_fwd", "RMSNorm", "layer_norm_fn", "rms_norm_fn"):
        setattr(norms, name, None)
    # None in sys.modules makes an import fail; the modules have their own plain fallbacks for these.
    absent = {"causal_conv1d": None, "mamba_ssm.ops.triton.selective_state_update": None}
    stand_ins = {
        "mamba_ssm": _package("mamba_ssm", folder / "mamba_ssm"),
        "mamba_ssm.ops.triton": _package("mamba_ssm.ops.triton", folder / "mamba_ssm" / "ops" / "triton"),
        "mamba_ssm.ops.triton.layer_norm": norms,
        "selective_scan_cuda": ModuleType("selective_scan_cuda"),
    }
    import torch._dynamo  # noqa: F401 (what the modules pull in of torch must stay imported)

    others = {name: module for name, module in sys.modules.items() if not name.startswith("mamba_ssm")}
    with mock.patch.dict(sys.modules, {**others, **stand_ins, **absent}):
        interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
        simple = importlib.import_module("mamba_ssm.modules.mamba_simple")
    simple.selective_scan_fn = interface.selective_scan_ref  # this private copy of the module only
    return MambaSSM(interface.selective_scan_ref, simple.Mamba)


def need_mamba_ssm() -> MambaSSM:
    """The same, or skip the test."""
    oracle = mamba_ssm()
    if oracle is None:
        pytest.skip("mamba_ssm is not installed and TWINSEP_MAMBA_SSM names no folder that holds it")
    return oracle
