"""Writing files so that nothing is ever half there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from twinsep.errors import InputError


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``; on leaving it is synced and takes the place of ``path``.

    On any failure the temporary file is removed and what stood at ``path`` is untouched. An
    ``OSError`` (a full or read-only device, a file where a folder should be) becomes an
    :class:`InputError` that names ``path``.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the name of a file")
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"cannot write {path}: {_reason(error)}") from error
    finally:
        with contextlib.suppress(OSError):  # where the folder itself could not be made
            temporary.unlink()


def write_atomically(path: str | Path, content: bytes) -> None:
    """``content`` at ``path``, whole or not at all; raises :class:`InputError` where it cannot be."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that :func:`replacing` left in ``folder`` because its process was killed."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.[0-9a-f]{8}(\.\w+)?", path.name) and path.is_file():
            path.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """``value`` as indented JSON with a final newline; NaN is refused, JSON has none."""
    write_atomically(path, (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def _sync_folder(folder: Path) -> None:
    """Make a rename outlast a loss of power; a system that cannot sync folders does so by itself or not at all."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: OSError) -> str:
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return f"{error.filename or 'part of the path'} is a file where a folder is needed; choose another place"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{error.strerror}; free some space or choose another place"
    return f"{error.strerror or error}; choose another place"
