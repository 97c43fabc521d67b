"""Independent implementations to test against, if they are installed. Nothing of them is copied here."""

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
    """Parts of mamba_ssm, by the authors of Mamba, that are plain PyTorch and run on any device."""

    selective_scan_ref: Any  # u, delta, z (b, e, l), B, C (b, n, l) -> (b, e, l), computed in float32
    Mamba: Any  # a module; pass use_fast_path=False
    Mamba2Simple: Any  # a module; pass use_mem_eff_path=False, and inputs whose length is a multiple of chunk_size


def _folder() -> Path | None:
    """Folder that contains mamba_ssm: $TWINSEP_MAMBA_SSM, or where it is installed."""
    if named := os.environ.get("TWINSEP_MAMBA_SSM"):
        return Path(named)
    spec = importlib.util.find_spec("mamba_ssm")
    return Path(spec.origin).parent.parent if spec and spec.origin else None


def _package(name: str, path: Path) -> ModuleType:
    """Make an empty package at `path`, so that importing from it does not run its own __init__."""
    package = ModuleType(name)
    package.__path__ = [str(path)]
    return package


def mamba_ssm() -> MambaSSM | None:
    """Import mamba_ssm's reference implementations; return None if the package is missing.

    Importing the package itself needs CUDA extensions, triton and transformers, which the code called here does not
    use. Only the modules needed are imported, with empty modules for failing imports, and removed from sys.modules.
    """
    folder = _folder()
    if folder is None or not (folder / "mamba_ssm").is_dir():
        return None
    kernels = ModuleType("mamba_ssm.ops.triton.ssd_combined")
    for name in ("mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined"):
        setattr(kernels, name, None)
    triton = mock.MagicMock(__version__="3.0.0")  # its decorators turn kernels, which are never called, into mocks
    norms = ModuleType("mamba_ssm.ops.triton.layer_norm")
    for name in ("_layer_norm_fwd", "RMSNorm", "layer_norm_fn", "rms_norm_fn"):
        setattr(norms, name, None)
    # None in sys.modules makes an import fail; the modules have plain fallbacks for these.
    absent = {"causal_conv1d": None, "mamba_ssm.ops.triton.selective_state_update": None}
    stand_ins = {
        "mamba_ssm": _package("mamba_ssm", folder / "mamba_ssm"),
        "mamba_ssm.ops.triton": _package("mamba_ssm.ops.triton", folder / "mamba_ssm" / "ops" / "triton"),
        "mamba_ssm.ops.triton.layer_norm": norms,
        "mamba_ssm.ops.triton.ssd_combined": kernels,
        "selective_scan_cuda": ModuleType("selective_scan_cuda"),
        "triton": triton,
        "triton.language": triton.language,
    }
    import torch._dynamo  # noqa: F401 (imported by the modules, and must stay imported)

    others = {name: module for name, module in sys.modules.items() if not name.startswith("mamba_ssm")}
    with mock.patch.dict(sys.modules, {**others, **stand_ins, **absent}):
        interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
        simple = importlib.import_module("mamba_ssm.modules.mamba_simple")
        norms2 = importlib.import_module("mamba_ssm.ops.triton.layernorm_gated")
        minimal = importlib.import_module("mamba_ssm.modules.ssd_minimal")
        simple2 = importlib.import_module("mamba_ssm.modules.mamba2_simple")
    # Replace kernels by the package's own references, in these private copies of the modules only.
    simple.selective_scan_fn = interface.selective_scan_ref
    norms2.rmsnorm_fn = lambda x, weight, bias, z, eps, group_size, norm_before_gate, *_: norms2.rms_norm_ref(
        x, weight, bias, z=z, eps=eps, group_size=group_size, norm_before_gate=norm_before_gate
    )

    def scan(x, dt, A, B, C, chunk_size, D, **_):
        B, C = (y.expand(*x.shape[:3], -1) for y in (B, C))  # one group for all heads
        y, _ = minimal.ssd_minimal_discrete(x * dt[..., None], A * dt, B, C, chunk_size)
        return y + D[:, None] * x

    simple2.mamba_chunk_scan_combined = scan
    return MambaSSM(interface.selective_scan_ref, simple.Mamba, simple2.Mamba2Simple)


def need_mamba_ssm() -> MambaSSM:
    """Return :func:`mamba_ssm`, or skip the test if it is missing."""
    oracle = mamba_ssm()
    if oracle is None:
        pytest.skip("mamba_ssm is not installed and TWINSEP_MAMBA_SSM names no folder that holds it")
    return oracle
