"""An open sound file, and the sentences for what may be wrong with one."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from twinsep.errors import InputError
from twinsep.utils.files import display_path

#: Samples per channel in a block, at most.
BLOCK = 1 << 16
_OGG_PAGE = 65_307  # largest page in bytes


@dataclass(frozen=True)
class AudioSource:
    """A sound file open for reading.

    ``sample_rate`` is in Hz. ``is_float`` is True if the file holds floating-point samples, which may exceed full
    scale. ``frames`` is the length in samples per channel that the header states, or None if only decoding tells;
    ``expected`` is ``frames`` or an estimate of it, for progress bars. ``_pieces`` are arrays (C, S), S ≤ ``BLOCK``.
    ``notes`` are parts of sentences for the user, complete once the sound is decoded.
    """

    path: Path
    sample_rate: int
    channels: int
    is_float: bool
    frames: int | None
    expected: int
    _pieces: Iterator[np.ndarray]
    notes: list[str] = field(default_factory=list)

    def blocks(self) -> Iterator[Float32[np.ndarray, "c s"]]:
        """Decode the sound in blocks (C, S), S ≤ ``BLOCK``; a source can be iterated once.

        Raises :class:`InputError` on reaching damage, an end before ``frames``, NaN or infinity.
        """
        done = 0
        for piece in self._pieces:
            if not np.isfinite(piece).all():
                raise InputError(
                    f"{display_path(self.path)} holds NaN or infinite samples: export it again, "
                    "if possible as 24-bit integers"
                )
            done += piece.shape[1]
            yield np.ascontiguousarray(piece)
        if self.frames is not None and done < self.frames:
            raise damaged_error(self.path, f"{done} of {self.frames} samples are there")
        if self.frames is None and not done:
            raise no_sound_error(self.path)

    def read(self) -> Float32[np.ndarray, "c s"]:
        """Decode the whole file into one array (C, S); errors as in :meth:`blocks`."""
        return np.concatenate([np.empty((self.channels, 0), np.float32), *self.blocks()], axis=1)


def ffmpeg_command(path: Path, arguments: str) -> str:
    """An ffmpeg command that reads ``path``, quoted for a sentence."""
    return f"`ffmpeg -i {display_path(shlex.quote(str(path)))} {arguments}`"


def check_file(path: str | os.PathLike[str]) -> Path:
    """Return ``path``; raise :class:`InputError` unless it is a regular, readable file that is not empty."""
    path = Path(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{display_path(path)} does not exist: check the path") from error
    except OSError as error:
        raise InputError(
            f"{display_path(path)} cannot be opened ({error.strerror}): check the path and its permissions"
        ) from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{display_path(path)} is a folder: name an audio file in it")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{display_path(path)} is not a regular file: save the sound to a file and name that")
    if status.st_size == 0:
        raise InputError(f"{display_path(path)} is empty (0 bytes): copy or export it again")
    if not os.access(path, os.R_OK):
        raise InputError(f"{display_path(path)} cannot be read: check its permissions")
    return path


def check_last_ogg_page(path: Path, notes: list[str]) -> None:
    """Raise :class:`InputError` if an Ogg file ends within a page; add to ``notes`` if its last page is not so marked.

    Recorders and some editors leave the mark out, so that such a file may well be complete.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _OGG_PAGE))
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    segments = page[26] if len(page) > 26 else 255
    if not page.startswith(b"OggS") or len(page) < 27 + segments + sum(page[27 : 27 + segments]):
        raise damaged_error(path, "its last page is incomplete")
    if not page[5] & 4:
        notes.append("its last page is not marked as the last: if the sound breaks off, get a complete copy")


def damaged_error(path: Path, detail: str) -> InputError:
    """The error for a file that ends too early or cannot be decoded to its end."""
    return InputError(
        f"{display_path(path)} is damaged or cut short ({detail}): get a complete copy, or save what is left of it "
        f"with {ffmpeg_command(path, 'rest.wav')}"
    )


def no_sound_error(path: Path) -> InputError:
    """The error for a sound file of length zero."""
    return InputError(f"{display_path(path)} holds no sound (0 samples): export it again")


def unknown_format_error(path: Path) -> InputError:
    """The error for a file that no library recognises as sound."""
    return InputError(
        f"{display_path(path)} cannot be read as sound (damaged or of an unknown format): get another copy, "
        f"or convert it with {ffmpeg_command(path, 'converted.wav')}"
    )
