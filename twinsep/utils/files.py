"""Atomic writes: a file gets its name once it is complete."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twinsep.errors import InputError

# Stem of the target, process, random digits, extension of the target.
_TEMPORARY = re.compile(r"\.(?P<stem>.*)\.(?P<process>\d+)-[0-9a-f]{8}\.tmp(\.[^.]*)?", re.DOTALL)
_OPEN: set[str] = set()  # names of the temporary files that this process writes


@contextlib.contextmanager
def atomic_path(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Write a file atomically: within a ``with``, the path of a temporary file, which then takes the place of ``path``.

    The temporary file is empty at first, hidden, beside ``path`` and of the same extension. It must be closed at the
    end of the ``with``. It is synced and renamed, or removed on any failure, so that ``path`` is complete or as it was.
    A killed process leaves it behind; the next to write the same ``path`` removes it. Missing folders are made, and
    removed on failure unless something else is in them by then.

    Raises :class:`InputError`, which names ``path``, for a folder or a device at ``path``, for any ``OSError`` (no
    space, no permission), and with ``overwrite`` False for a file at ``path``, before the ``with`` and at its end.
    """
    path = Path(path)
    # Short, however long the name of the target is.
    name = f".{path.stem[:40]}.{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix[:20]}"
    temporary = path.parent / name
    made: list[Path] = []
    _OPEN.add(name)
    try:
        made += [folder for folder in path.parents if not folder.is_dir()]
        for folder in reversed(made):
            folder.mkdir(exist_ok=True)
        _check_target(path, overwrite)
        remove_temporary_files(path.parent, path.stem[:40])
        temporary.touch(exist_ok=False)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        _check_target(path, overwrite)
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        for remove in (temporary.unlink, *(folder.rmdir for folder in made)):
            with contextlib.suppress(OSError):  # not there, or another file is in the folder
                remove()
        if isinstance(error, OSError):
            raise InputError(f"cannot write {display_path(path)}: {os_error_reason(error)}") from error
        raise
    finally:
        _OPEN.discard(name)


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write ``content`` to ``path``; errors as in :func:`atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` as indented JSON with a final newline; raises ``ValueError`` for NaN, which JSON lacks."""
    write_atomically(path, (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def remove_temporary_files(folder: Path, stem: str | None = None) -> None:
    """Remove temporary files of killed processes: all of them below ``folder``, or those of ``stem`` right in it."""
    for path in folder.rglob(".*") if stem is None else folder.glob(".*"):
        found = _TEMPORARY.fullmatch(path.name)
        if found and stem in (None, found["stem"]) and not _is_in_use(path.name, int(found["process"])):
            with contextlib.suppress(OSError):
                path.unlink()


def display_path(path: str | os.PathLike[str]) -> str:
    """``path`` on one line: control characters and anything that is not Unicode as escapes."""
    unfit = {"Cc", "Cs", "Zl", "Zp"}  # control, surrogate, line separator, paragraph separator
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in unfit else c for c in os.fspath(path)
    )


def os_error_reason(error: OSError) -> str:
    """The reason of ``error`` and the remedy, to follow "cannot write <path>: "."""
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        name = display_path(str(error.filename)) if error.filename else "part of the path"
        return f"{name} is a file where a folder is needed; choose another path"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{error.strerror}; free some space or choose another path"
    return f"{error.strerror or display_path(str(error))}; choose another path"


def _check_target(path: Path, overwrite: bool) -> None:
    try:
        path.stat()  # unlike ``Path.exists`` raises for an impossible name
        is_refused = not path.is_file()
    except FileNotFoundError:
        is_refused = False
    if is_refused:
        raise InputError(f"cannot write {display_path(path)}: it is a folder or a device; name a file instead")
    if not overwrite and os.path.lexists(path):
        raise InputError(f"{display_path(path)} exists; pass --overwrite to replace it, or choose another --out")


def _is_in_use(name: str, process: int) -> bool:
    """Return True if the process that made a temporary file still runs."""
    if process == os.getpid():  # or a former one of the same number, as is common in containers
        return name in _OPEN
    if os.name == "nt":  # there signal 0 would reach the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # a process of another user
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Make a rename outlast a loss of power, where the system can sync folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
