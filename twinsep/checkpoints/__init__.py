"""Checkpoints: this project's own files, folders in the form of the Hugging Face hub, and those of the public model."""

from __future__ import annotations

from pathlib import Path

from twinsep.checkpoints import hub
from twinsep.checkpoints.native import RECORD, Checkpoint, Tensors, check_names, read_file, strip, write

__all__ = ["RECORD", "Checkpoint", "Tensors", "check_names", "read", "strip", "write"]


def read(path: str | Path, *, prefixes: tuple[str, ...] | None = None) -> Checkpoint:
    """Read a checkpoint file, or a folder that ``save_pretrained`` wrote; only the tensors under ``prefixes`` if given.

    Raises :class:`twinsep.errors.InputError` as :func:`twinsep.checkpoints.native.read_file` and
    :func:`twinsep.checkpoints.hub.read` do.
    """
    path = Path(path)
    if path.is_dir():
        return hub.read(path, weights=prefixes is None or "model/" in prefixes)
    return read_file(path, prefixes=prefixes)
