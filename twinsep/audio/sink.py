"""An open sound file that takes blocks, whatever library writes it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
from jaxtyping import Float

from twinsep.errors import InputError
from twinsep.utils.files import display_path

FilePath = str | os.PathLike[str]
# Samples per channel encoded at once: bounds memory, and the Vorbis encoder overflows its stack on minutes at once.
_BLOCK = 1 << 16


class Writer(ABC):
    """An open sound file that takes blocks; made by :func:`twinsep.audio.writer`.

    ``clamped`` counts the samples so far that exceeded full scale and were set to it.
    """

    def __init__(self, path: Path, temporary: Path):
        self.clamped = 0
        self._path, self._temporary = path, temporary

    @property
    def is_float(self) -> bool:
        """True if samples beyond full scale are kept."""
        return False

    def write(self, block: Float[np.ndarray, "c s"]) -> None:
        """Append samples (C, S).

        Raises :class:`InputError` for NaN or infinity, for more than a WAV holds and if the encoder fails, and
        ``OSError`` for a full disk, which :func:`twinsep.audio.writer` turns into an :class:`InputError`.
        """
        if not np.isfinite(block).all():
            raise InputError(
                f"cannot write {display_path(self._path)}: the sound holds NaN or infinite samples; "
                "look for them in its source, and use float32 instead of half precision"
            )
        self._check_size(block)
        for start in range(0, block.shape[1], _BLOCK):
            self._encode(block[:, start : start + _BLOCK])

    def _check_size(self, block: np.ndarray) -> None:  # noqa: B027 - most files have no limit
        """Raise :class:`InputError` if the file has no room for another block."""

    def _clamp(self, block: np.ndarray) -> np.ndarray:
        over = 0 if self.is_float else int(np.count_nonzero(np.abs(block) > 1))
        self.clamped += over
        return np.clip(block, -1, 1) if over else block

    @abstractmethod
    def _encode(self, block: np.ndarray) -> None:
        """Append samples (C, S), S ≤ ``_BLOCK``."""

    @abstractmethod
    def close(self) -> None:
        """Complete the file; errors as in :meth:`write`."""

    @abstractmethod
    def abandon(self) -> None:
        """Close a file that will not be kept; raises nothing."""


def check_space(path: Path) -> None:
    """Append a byte and remove it: this raises the ``OSError`` whose reason libsndfile does not give."""
    with path.open("rb+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        file.write(b"\0")
        file.truncate(size)
