"""An open sound file, and what may be wrong with it, in one sentence each; used by :mod:`twinsep.audio`."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from twinsep.errors import InputError
from twinsep.utils.files import display_path

#: Samples per channel in a block, at most.
BLOCK = 1 << 16
_OGG_PAGE = 65_307  # bytes, at most


@dataclass(frozen=True)
class AudioSource:
    """A sound file open for reading, of ``channels`` at ``sample_rate`` Hz.

    ``is_float``: the file holds floating-point samples, so it may go beyond full scale. ``frames`` is samples
    per channel as the header promises, or None where only decoding tells; ``expected`` is ``frames`` or else a
    guess at them, good for a progress bar. ``_pieces`` are (C, S) of at most ``BLOCK`` samples.
    """

    path: Path
    sample_rate: int
    channels: int
    is_float: bool
    frames: int | None
    expected: int
    _pieces: Iterator[np.ndarray]

    def blocks(self) -> Iterator[Float32[np.ndarray, "c s"]]:
        """The sound piece by piece, to be taken once: (C, S) of at most ``BLOCK`` samples, decoded as they are taken.

        Raises :class:`InputError` where it gets to damage, to the end before ``frames``, to NaN or infinity.
        """
        done = 0
        for piece in self._pieces:
            block = piece if self.frames is None else piece[:, : self.frames - done]
            done += block.shape[1]
            if block.shape[1]:
                yield self._finite(np.ascontiguousarray(block))
        if self.frames is not None and done < self.frames:
            raise damaged(self.path, f"{done} of {self.frames} samples are there")
        if self.frames is None and not done:
            raise no_sound(self.path)

    def read(self) -> Float32[np.ndarray, "c s"]:
        """All of :meth:`blocks` in one array."""
        return np.concatenate([np.empty((self.channels, 0), np.float32), *self.blocks()], axis=1)

    def _finite(self, block: np.ndarray) -> np.ndarray:
        if not np.isfinite(block).all():
            raise InputError(
                f"{display_path(self.path)} holds NaN or infinite samples: export it again, "
                "if possible as 24-bit integers"
            )
        return block


def command(path: Path, rest: str) -> str:
    """The ffmpeg command that reads ``path`` and goes on with ``rest``."""
    return f"`ffmpeg -i {display_path(shlex.quote(path.name))} {rest}`"


def regular_file(path: str | os.PathLike[str]) -> Path:
    """``path``. Raises :class:`InputError` where it is no regular file with something in it that may be read."""
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
        raise InputError(f"{display_path(path)} may not be read: check its permissions")
    return path


def ends_as_ogg(path: Path) -> bool:
    """Whether the last page of an Ogg file is whole and says that it is the last."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _OGG_PAGE))
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or not page.startswith(b"OggS"):
        return False
    segments = page[26]
    return bool(page[5] & 4) and len(page) >= 27 + segments + sum(page[27 : 27 + segments])


def damaged(path: Path, detail: str) -> InputError:
    """The sentence for a file that ends too early or cannot be decoded to its end."""
    return InputError(
        f"{display_path(path)} is damaged or cut short ({detail}): get a whole copy, or save what is left of it "
        f"with {command(path, 'rest.wav')}"
    )


def no_sound(path: Path) -> InputError:
    """The sentence for a sound file of no length."""
    return InputError(f"{display_path(path)} holds no sound (0 samples): export it again")


def unknown(path: Path) -> InputError:
    """The sentence for what no library takes for sound."""
    return InputError(
        f"{display_path(path)} cannot be read as sound, being damaged or of no known format: get another copy, "
        f"or convert it with {command(path, 'converted.wav')}"
    )
