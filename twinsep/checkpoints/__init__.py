"""Checkpoints: twinsep's own files, folders in the Hugging Face Hub format, and those of the reference model."""

from __future__ import annotations

from pathlib import Path

from twinsep.checkpoints import hub
from twinsep.checkpoints.native import RECORD, STATISTICS, Checkpoint, Tensors, check_names, read_file, strip, write
from twinsep.config import PRESETS, Config, preset
from twinsep.errors import InputError

__all__ = [
    "RECORD",
    "STATISTICS",
    "Checkpoint",
    "Tensors",
    "check_names",
    "config_and_weights",
    "read",
    "strip",
    "write",
]


def read(path: str | Path, *, prefixes: tuple[str, ...] | None = None) -> Checkpoint:
    """Read a checkpoint file or a folder that ``save_pretrained`` wrote.

    ``prefixes`` ("model/", "ema/", …) selects tensors by the start of their names; by default all are read.

    Raises :class:`twinsep.errors.InputError` as :func:`twinsep.checkpoints.native.read_file` and
    :func:`twinsep.checkpoints.hub.read` do, and for a bare name, such as a preset's, that is no file and no folder.
    """
    path = Path(path)
    if path.name == str(path) and not path.suffix and not path.exists():
        if path.name in PRESETS:
            raise InputError(f"{path} is a preset, whose weights are not trained: name a checkpoint")
        raise InputError(f"{path} is neither a checkpoint nor one of the presets {', '.join(PRESETS)}")
    if path.is_dir():
        return hub.read(path, weights=prefixes is None or "model/" in prefixes)
    return read_file(path, prefixes=prefixes)


def config_and_weights(path_or_preset: str | Path, weights: str) -> tuple[Config, Tensors | None]:
    """Return the configuration and the tensors of a checkpoint, or a preset and None.

    ``weights`` ("ema" or "model") names the tensors. Raises :class:`twinsep.errors.InputError` as :func:`read` does.
    """
    if isinstance(path_or_preset, str) and path_or_preset in PRESETS:
        return preset(path_or_preset), None
    checkpoint = read(path_or_preset, prefixes=("model/", "ema/"))
    return checkpoint.config, checkpoint.weights(weights)
