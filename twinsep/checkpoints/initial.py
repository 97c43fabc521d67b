"""Weights to start a training from: a checkpoint of twinsep, or of any trainer whose model has the same weights."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from twinsep import checkpoints
from twinsep.checkpoints.native import Tensors
from twinsep.checkpoints.pickled import read_torch_file
from twinsep.checkpoints.released import full_precision
from twinsep.config import Config
from twinsep.errors import InputError

#: Names that DistributedDataParallel and torch.compile put before, or into, the name of a weight.
WRAPPERS = {"module", "_orig_mod"}
#: Endings of files that PyTorch or Lightning saved.
_PICKLED = {".pt", ".pth", ".ckpt", ".bin"}


def read_initial_weights(path: Path, names: Collection[str]) -> tuple[Tensors, Config | None]:
    """Read the weights ``names`` from a file or a saved folder, averaged ones if there are any.

    The configuration is None unless twinsep wrote the file. Any other file may have its state dict at any depth (as
    Lightning does), and prefixes before the names; see :func:`unwrap`. Raises :class:`InputError` for a file that
    cannot be read, and one without a weight of these names.
    """
    if path.is_dir() or _is_native(path):
        found = checkpoints.read(path, prefixes=("model/", "ema/"))
        return full_precision(found.weights("ema")), found.config
    if not path.is_file():
        raise InputError(f"--init {path} does not exist: name a checkpoint")
    arrays = _read_safetensors(path) if path.suffix == ".safetensors" else None
    if arrays is None:
        if path.suffix not in _PICKLED:
            known = ", ".join([".safetensors", *sorted(_PICKLED)])
            raise InputError(f"--init {path}: unknown kind of file; choose one of {known}")
        arrays = dict(_flatten(read_torch_file(path)))
    anchor = next((name for name in names if any(_plain(key).endswith(name) for key in arrays)), None)
    if anchor is None:
        raise InputError(
            f"--init {path}: holds no weight of this model; run `twinsep convert` first if the public reference code "
            "saved it"
        )
    return unwrap(arrays, anchor), None


def unwrap(weights: Mapping[str, np.ndarray], anchor: str) -> Tensors:
    """Return the weights of one model without what trainers put before their names.

    ``anchor`` is the name of one of them, and what stands before it is the prefix of all. Of several models in one file
    the averaged one (with "ema" or "average" in its prefix) is taken, else the one with the shortest prefix. Counters
    and flags of averages are left out. Without the anchor all weights are returned as they are.
    """
    plain = {_plain(key): array for key, array in weights.items()}
    prefixes = {key.removesuffix(anchor) for key in plain if f".{key}".endswith(f".{anchor}")}
    if not prefixes:
        return dict(weights)
    chosen = min(prefixes, key=lambda prefix: (not _is_average(prefix), len(prefix), prefix))
    deeper = tuple(prefix for prefix in prefixes if prefix != chosen and prefix.startswith(chosen))
    return {
        key.removeprefix(chosen): array
        for key, array in plain.items()
        if key.startswith(chosen) and not key.startswith(deeper) and _is_weight(array)
    }


def describe_initial_weights(path: Path) -> dict[str, str]:
    """Return the file and its digest, for the record of a run."""
    file = path / "model.safetensors" if path.is_dir() else path
    try:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"--init {path}: cannot be read ({error.strerror})") from error
    return {"file": str(path), "sha256": digest}


def _plain(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def _is_weight(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim > 0 and value.dtype.kind == "f"


def _is_average(prefix: str) -> bool:
    return "ema" in prefix.lower() or "average" in prefix.lower()


def _is_native(path: Path) -> bool:
    try:
        with safe_open(path, framework="np") as file:
            return "twinsep" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def _read_safetensors(path: Path) -> Tensors:
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: NumPy has no bfloat16
        raise InputError(f"--init {path}: cannot be read ({error}); save it again in float32") from error
    return {name: a.astype(np.float32) if a.dtype.kind == "f" else a for name, a in arrays.items()}


def _flatten(value: Any, prefix: str = "") -> list[tuple[str, np.ndarray]]:
    """Every array in nested mappings, its keys joined by dots."""
    if isinstance(value, np.ndarray):
        return [(prefix, value)]
    if not isinstance(value, Mapping):
        return []
    return [pair for key, inner in value.items() for pair in _flatten(inner, f"{prefix}.{key}".lstrip("."))]
