"""Folder of a run: its checkpoints, and the choice of the one to resume from.

A new checkpoint is written completely as ``next.safetensors``; then ``last.safetensors`` becomes
``previous.safetensors`` and the new one becomes ``last.safetensors``. Whenever the process or the machine dies, the run
resumes from the newest of the three that is complete.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path

from twinsep import checkpoints
from twinsep.checkpoints import RECORD, Checkpoint
from twinsep.config import Config
from twinsep.errors import InputError
from twinsep.utils.files import remove_temporary_files

NEXT, LAST, PREVIOUS, BEST, FINAL = (f"{name}.safetensors" for name in ("next", "last", "previous", "best", "final"))
#: Folders that a run makes beside its checkpoints.
FOLDERS = ("live", "samples", "tensorboard", "profile")


def save_checkpoint(folder: Path, state: Checkpoint) -> None:
    """Write ``state`` as the last checkpoint and keep the one before it as the previous one.

    Raises :class:`InputError` if it cannot be written; the older checkpoints are then unchanged.
    """
    last = folder / LAST
    checkpoints.write(folder / NEXT, state)
    if last.exists():
        last.replace(folder / PREVIOUS)
    (folder / NEXT).replace(last)


def newest_checkpoint(folder: Path, print_line: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest complete checkpoint in ``folder``, or None if it has no checkpoint.

    A damaged checkpoint is skipped, and deleted once an older complete one is found; ``print_line`` receives a sentence
    about it. Raises :class:`InputError` if every checkpoint is damaged.
    """
    damaged: dict[Path, InputError] = {}
    for path in (folder / name for name in (NEXT, LAST, PREVIOUS)):
        if not path.exists():
            continue
        try:
            found = checkpoints.read(path)
        except InputError as error:
            damaged[path] = error
            continue
        for broken, reason in damaged.items():
            print_line(f"{reason}; resuming from {path.name}, step {found.step}")
            broken.unlink()
        return found
    if damaged:
        raise next(iter(damaged.values()))
    return None


def find_resumable(
    config: Config,
    folder: Path,
    *,
    overwrite: bool,
    basis: str,
    init: str = "",
    print_line: Callable[[str], None],
) -> Checkpoint | None:
    """Return the checkpoint from which a run of ``config`` resumes, or None if the run starts from the beginning.

    A run resumes if it is unfinished, has the same configuration, started from the same weights (``init``, the digest
    of their file) and, unless ``basis`` is empty, has the same basis. Unless ``overwrite`` is set, :class:`InputError`
    is raised for a finished run, a run of another configuration, basis or start, and a run without a complete
    checkpoint; it is always raised if ``folder`` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: choose a folder as --out")
    try:
        found = newest_checkpoint(folder, print_line)
    except InputError as error:
        if not overwrite:
            raise InputError(f"{error}, or pass --overwrite to start this run again") from error
        print_line(f"{error}; starting again")
        return None
    if found is None:
        return None
    same = found.config.hash == config.hash
    if same and found.step < config.training.steps:
        same_start = found.provenance.get("init", "") == init
        if same_start and (not basis or found.provenance.get("basis") == basis):
            return found
        what = "an unfinished run of other " + ("code or data" if same_start else "initial weights (--init)")
        if overwrite:
            print_line(f"{folder} holds {what}; starting again")
            return None
        raise InputError(f"{folder} holds {what}: choose another --out, or pass --overwrite to replace it")
    if not overwrite:
        what = "a finished run" if same else "a run of another configuration"
        raise InputError(f"{folder} holds {what}: choose another --out, or pass --overwrite to replace it")
    return None


def clear_run(folder: Path) -> None:
    """Remove the files of a run; files of other origin stay, and with them the folder."""
    if not folder.is_dir():
        return
    for name in (NEXT, LAST, PREVIOUS, BEST, FINAL, RECORD):
        (folder / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    remove_temporary_files(folder)
    with contextlib.suppress(OSError):  # not empty
        folder.rmdir()
