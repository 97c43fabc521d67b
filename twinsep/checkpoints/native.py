"""The native checkpoint format of both frameworks: a safetensors file with JSON in its metadata.

Tensors are named ``model/…``, ``ema/…``, ``adam_m/…`` or ``adam_v/…`` with the parameter's canonical name, in PyTorch's
layouts. The metadata holds the configuration, the step, the position in the data and the provenance, so that a run can
resume from the file alone, and a digest of each tensor and of the metadata, so that damage is noticed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from twinsep.config import Config, from_dict
from twinsep.errors import InputError
from twinsep.utils.files import write_atomically

FORMAT = 1
#: Name of the file beside a run's checkpoints that records their provenance.
RECORD = "run.json"
#: Ends of the names of batch norms' running statistics, which are saved with the weights and are no parameters.
STATISTICS = (".running_mean", ".running_var")
Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """Content of a checkpoint."""

    config: Config
    tensors: Tensors  # by prefixed name
    step: int = 0  # optimiser steps done
    data: Mapping[str, Any] = field(default_factory=dict)  # state of the data iterator
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def weights(self, which: str) -> Tensors:
        """Return the weights ``which`` ("model" or "ema") by canonical name.

        Without an average, as in a converted checkpoint, "ema" falls back on "model".
        """
        return strip(self.tensors, which) or strip(self.tensors, "model")


def strip(tensors: Mapping[str, np.ndarray], prefix: str) -> Tensors:
    """Return the tensors whose names start with ``prefix/``, with that removed."""
    return {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}


def write(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically; raise :class:`InputError`, leaving ``path`` as it was, if it cannot be written."""
    tensors = {name: np.ascontiguousarray(t) for name, t in sorted(checkpoint.tensors.items())}
    values = {
        "format": FORMAT,
        "config": checkpoint.config.to_dict(),
        "step": checkpoint.step,
        "data": checkpoint.data,
        "provenance": checkpoint.provenance,
        "digests": {name: _digest(t) for name, t in tensors.items()},
    }
    text = _canonical(values)
    # A single key: safetensors writes several in random order, and equal checkpoints should be equal bytes.
    metadata = {"twinsep": _canonical({"digest": _digest(text.encode()), "values": text})}
    write_atomically(path, save(tensors, metadata))


def read_file(path: Path, *, prefixes: tuple[str, ...] | None = None) -> Checkpoint:
    """Read a checkpoint file, or only its tensors whose names start with one of ``prefixes``.

    Raises :class:`InputError` for a missing, truncated or damaged file, one that twinsep did not write, and a format or
    configuration that this version does not know.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist; choose a .safetensors file that `twinsep train` wrote")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            wanted = [name for name in file.keys() if prefixes is None or name.startswith(prefixes)]  # noqa: SIM118
            tensors = {name: file.get_tensor(name) for name in wanted}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}); train or fetch it again") from error
    try:
        outer = json.loads(metadata.get("twinsep", "{}"))
        if "values" not in outer:
            raise InputError("a safetensors file, but not a checkpoint that twinsep wrote")
        values = json.loads(outer["values"])
        if values["format"] != FORMAT:
            raise InputError(f"checkpoint format {values['format']} is not supported; this version reads {FORMAT}")
        damaged = [name for name, tensor in tensors.items() if _digest(tensor) != values["digests"].get(name)]
        if outer["digest"] != _digest(outer["values"].encode()) or damaged:
            what = damaged[0] if damaged else "its metadata"
            raise InputError(f"damaged since it was written ({what} has changed); train or fetch it again")
        config = from_dict(values["config"])
        fields = {key: values[key] for key in ("step", "data", "provenance")}
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: its metadata is damaged ({error}); train or fetch it again") from error
    return Checkpoint(config, tensors, **fields)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _digest(data: bytes | np.ndarray) -> str:
    """Return 16 hexadecimal digits of BLAKE2b; for an array they cover its type and shape as well."""
    if isinstance(data, np.ndarray):
        head = f"{data.dtype.str}{data.shape}".encode()
        return hashlib.blake2b(head + np.ascontiguousarray(data).tobytes(), digest_size=8).hexdigest()
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def check_names(weights: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise :class:`InputError` unless ``weights`` has exactly the names and ``shapes`` of the model.

    ``where`` opens the sentence: the file that the weights are from.
    """
    for name, shape in shapes.items():
        if name not in weights:
            raise InputError(f"{where}: no weight {name!r}; it belongs to another model")
        found = weights[name].shape
        if found != tuple(shape):
            raise InputError(f"{where}: weight {name!r} has shape {found}, the model needs {tuple(shape)}")
    extra = sorted(set(weights) - set(shapes))
    if extra:
        raise InputError(f"{where}: weight {extra[0]!r} has no place in the model; it belongs to another one")
