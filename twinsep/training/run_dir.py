"""The folder of a run: its checkpoints, which one to go on from, and that none is ever lost.

A new checkpoint is written whole as ``next.safetensors``, then ``last.safetensors`` becomes ``previous.safetensors``
and the new one ``last.safetensors``. Whenever the process or the machine dies, the newest of the three that is whole is
what the run goes on from.
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

NEXT, LAST, PREVIOUS, BEST = (f"{name}.safetensors" for name in ("next", "last", "previous", "best"))
#: What a run makes beside these.
FOLDERS = ("live", "samples", "tensorboard", "profile")


def save_checkpoint(folder: Path, state: Checkpoint) -> None:
    """Make ``state`` the last checkpoint and keep the one that was; raises :class:`InputError` where it cannot be
    written, and both are as they were."""
    last = folder / LAST
    checkpoints.write(folder / NEXT, state)
    if last.exists():
        last.replace(folder / PREVIOUS)
    (folder / NEXT).replace(last)


def newest_checkpoint(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint in ``folder``, or none if there is no checkpoint.

    One that is damaged is passed over, and removed once an older one is found whole; ``say`` is told so. Raises
    :class:`InputError` where there are checkpoints and none is whole.
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
        for broken, why in damaged.items():
            say(f"{why}; going on from {path.name}, step {found.step}")
            broken.unlink()
        return found
    if damaged:
        raise next(iter(damaged.values()))
    return None


def find_resumable(
    config: Config, folder: Path, *, overwrite: bool, basis: str, say: Callable[[str], None]
) -> Checkpoint | None:
    """The checkpoint that a run of ``config`` goes on from, or none where it is to begin.

    That is an unfinished run of the same configuration which, where ``basis`` is not empty, rests on the same one. A
    finished run, one of another configuration or one of which no checkpoint is whole raises :class:`InputError` unless
    ``overwrite``; so does a file in the place of the folder.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give --out the name of a folder")
    try:
        found = newest_checkpoint(folder, say)
    except InputError as error:
        if not overwrite:
            raise InputError(f"{error}, or give --overwrite to begin this run anew") from error
        say(f"{error}; beginning anew")
        return None
    if found is None:
        return None
    same = found.config.hash == config.hash
    if same and found.step < config.training.steps:
        if not basis or found.provenance.get("basis") == basis:
            return found
        if overwrite:
            say(f"{folder} holds an unfinished run of other code or data; beginning anew")
            return None
    if not overwrite:
        what = "a finished run" if same else "a run of another configuration"
        raise InputError(f"{folder} holds {what}; give another --out, or --overwrite to train anew in its place")
    return None


def clear_run(folder: Path) -> None:
    """Remove what a run made; files that are not a run's stay, and with them the folder."""
    if not folder.is_dir():
        return
    for name in (NEXT, LAST, PREVIOUS, BEST, RECORD):
        (folder / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    remove_temporary_files(folder)
    with contextlib.suppress(OSError):  # files of the user's
        folder.rmdir()
