"""Checkpoints: native files, folders in the layout of the Hugging Face hub, and files of the reference code."""

from __future__ import annotations

from pathlib import Path

from twinsep.checkpoints import hub
from twinsep.checkpoints.native import RECORD, Checkpoint, Tensors, check_names, read_file, strip, write

__all__ = ["RECORD", "Checkpoint", "Tensors", "check_names", "read", "strip", "write"]


def read(path: str | Path, *, prefixes: tuple[str, ...] | None = None) -> Checkpoint:
    """Read a checkpoint file or a folder that ``save_pretrained`` wrote.

    ``prefixes`` ("model/", "ema/", …) selects tensors by the start of their names; by default all are read.

    Raises :class:`twinsep.errors.InputError` as :func:`twinsep.checkpoints.native.read_file` and
    :func:`twinsep.checkpoints.hub.read` do.
    """
    path = Path(path)
    if path.is_dir():
        return hub.read(path, weights=prefixes is None or "model/" in prefixes)
    return read_file(path, prefixes=prefixes)
