"""Writing files so that nothing is ever half there."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import secrets
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from twinsep.errors import InputError

# ---------------------------------------------------------------------------- writing


@contextlib.contextmanager
def atomic_file(path: str | Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """An open file, for reading and writing, that has no name before it is whole: then it is synced and gets ``path``.

    It is unbuffered, and a write takes all its bytes or raises. A process that is killed leaves nothing behind, or
    what stood at ``path``; only where the system or the file system has no files without a name (they need Linux) is
    there a temporary one, which :func:`remove_unfinished` knows. Missing folders are made. On any failure what stood
    at ``path`` is untouched and the folders made for it go, unless something else is in them by then.

    Raises :class:`InputError`, with the path in it, for a folder or a device at ``path``, for any ``OSError`` (a full
    or read-only device, a file where a folder should be), and if ``overwrite`` is off for a file at ``path``, even
    one that came while this one was written.
    """
    path = Path(path)
    with _place(path, overwrite=overwrite) as temporary:
        nameless = _nameless(path.parent)
        with nameless or File(temporary, "x+") as file:
            yield file
            os.fsync(file.fileno())
            if nameless:
                _link(nameless, path, temporary, overwrite)
        if not nameless:  # closed by now: Windows renames no open file
            _rename(temporary, path, overwrite)


@contextlib.contextmanager
def atomic_path(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A temporary path beside ``path``, for what writes to a path alone; on leaving it takes the place of ``path``.

    A process that is killed leaves the temporary file behind; otherwise as :func:`unnamed`, which is to be preferred.
    """
    path = Path(path)
    with _place(path, overwrite=overwrite) as temporary:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        _rename(temporary, path, overwrite)


def write_atomically(path: str | Path, content: bytes) -> None:
    """``content`` at ``path``, whole or not at all; raises :class:`InputError` where it cannot be."""
    with atomic_file(path) as file:
        file.write(content)


def write_json(path: str | Path, value: Any) -> None:
    """``value`` as indented JSON with a final newline; NaN is refused, JSON has none."""
    write_atomically(path, (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files left in ``folder`` by a process that was killed."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\..+\.[0-9a-f]{8}(\.[^.]*)?", path.name) and path.is_file():
            path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------- sentences


def display_path(path: str | os.PathLike[str]) -> str:
    """``path`` for a sentence: on one line, with control characters and what is not Unicode as escapes."""
    unfit = {"Cc", "Cs", "Zl", "Zp"}  # control, surrogate, and the separators of lines and paragraphs
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in unfit else c for c in os.fspath(path)
    )


def os_error_reason(error: OSError) -> str:
    """What ``error`` says and what to do about it, to follow "cannot write <path>: "."""
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        what = display_path(str(error.filename)) if error.filename else "part of the path"
        return f"{what} is a file where a folder is needed; choose another place"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"{error.strerror}; free some space or choose another place"
    return f"{error.strerror or display_path(str(error))}; choose another place"


# ---------------------------------------------------------------------------- how


class File(io.FileIO):
    """Unbuffered, so that closing it after a failure has nothing left to fail at, but never content with a part."""

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        while left:  # a nearly full disk takes a part first, and Linux no more than 2 GiB at once
            left = left[super().write(left) or 0 :]
        return size


@contextlib.contextmanager
def _place(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Around any writing of ``path``: its folders, its refusals, and a name for a temporary file that goes in any case.

    The name keeps the end of the path's, by which some writers choose a format, and is short however long that is.
    """
    temporary = path.parent / f".{path.stem[:40]}.{secrets.token_hex(4)}{path.suffix[:20]}"
    made: list[Path] = []
    try:
        _make(path.parent, made)
        if _exists(path) and not path.is_file():
            raise InputError(f"cannot write {display_path(path)}: it is a folder or a device; give the name of a file")
        if not overwrite and os.path.lexists(path):
            raise _taken(path)
        yield temporary
        _sync_folder(path.parent)
    except BaseException as error:
        _discard(temporary, made)
        if isinstance(error, OSError):
            raise InputError(f"cannot write {display_path(path)}: {os_error_reason(error)}") from error
        raise
    _discard(temporary, [])


def _discard(temporary: Path, folders: list[Path]) -> None:
    with contextlib.suppress(OSError):  # most often it is not there
        temporary.unlink()
    with contextlib.suppress(OSError):  # another file is in it: so are the folders above it in use
        for folder in reversed(folders):
            folder.rmdir()


def _make(folder: Path, made: list[Path]) -> None:
    """Make ``folder`` with those above it; each that was not there is appended to ``made``."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        _make(folder.parent, made)
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():  # as good if another process made it meanwhile
            raise
    else:
        made.append(folder)


def _exists(path: Path) -> bool:
    """Unlike ``Path.exists`` with an ``OSError`` for an impossible name, which else showed only after all the work."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def _nameless(folder: Path) -> File | None:
    """A new file in ``folder`` without a name; none where there is no such thing or no way to name it later."""
    if not hasattr(os, "O_TMPFILE") or not Path("/proc/self/fd").exists():
        return None
    try:
        return File(os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o666), "r+")
    except OSError:  # if more than that is wrong, making a file with a name says so
        return None


def _link(file: File, path: Path, temporary: Path, overwrite: bool) -> None:
    """Give a nameless file the name ``path``; with ``overwrite`` that of the file there."""

    def name(place: Path) -> None:
        # The descriptor is not used, the source being absolute, but with one Python calls linkat, which can follow.
        os.link(f"/proc/self/fd/{file.fileno()}", place, src_dir_fd=file.fileno(), follow_symlinks=True)

    _make(path.parent, [])  # another process may have taken the folder for empty
    try:
        name(path)
    except FileExistsError as error:
        if not overwrite:
            raise _taken(path) from error
        name(temporary)
        temporary.replace(path)


def _rename(temporary: Path, path: Path, overwrite: bool) -> None:
    """Give a whole temporary file the name ``path``; with ``overwrite`` that of the file there."""
    if overwrite:
        temporary.replace(path)
        return
    try:
        os.link(temporary, path)
        return
    except OSError:  # a file system without links, as on many a USB stick: take the name first
        try:
            path.touch(exist_ok=False)
        except FileExistsError as error:
            raise _taken(path) from error
    try:
        temporary.replace(path)
    except BaseException:
        path.unlink()
        raise


def _taken(path: Path) -> InputError:
    return InputError(f"{display_path(path)} exists; give --overwrite to replace it, or another --out")


def _sync_folder(folder: Path) -> None:
    """Make a rename outlast a loss of power; a system that cannot sync folders does so by itself or not at all."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
