"""Statistics of a song's sound, gathered block by block: peaks, clipping, hashes, and the sum of the stems."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from twinsep.data.augment import STEP
from twinsep.data.layout import SongFiles, is_variant

#: Consecutive samples at full scale that count as a clipped peak; fewer may be chance.
CLIPPED_RUN = 3


@dataclass
class CheckedFile:
    """Statistics of one file, updated block by block: length, peak, clipped runs and a hash of the samples."""

    channels: int = 0
    frames: int = 0
    peak: float = 0.0
    clipped: int = 0
    _hash: hashlib.blake2b = field(default_factory=lambda: hashlib.blake2b(digest_size=16))
    _last: np.ndarray | None = None

    def update(self, block: np.ndarray) -> None:
        """Add the next block, (C, S)."""
        self.channels = len(block)
        self.frames += block.shape[1]
        size = np.abs(block)
        self.peak = max(self.peak, float(size.max()))
        last = np.zeros((len(block), CLIPPED_RUN), bool) if self._last is None else self._last
        full = np.concatenate([last, size >= 1 - STEP], axis=1)  # (c, CLIPPED_RUN + s)
        self._last = full[:, -CLIPPED_RUN:]
        # A run counts at its third sample, if the sample before the run is below full scale.
        self.clipped += int((full[:, 3:] & full[:, 2:-1] & full[:, 1:-2] & ~full[:, :-3]).sum())
        self._hash.update(block.T.tobytes())

    @property
    def silent(self) -> bool:
        """True if no sample reaches one step of 16-bit sound."""
        return self.peak < STEP

    @property
    def digest(self) -> bytes:
        """Hash of channels and samples, equal for equal samples in any format."""
        return self._hash.digest() + bytes([self.channels])


@dataclass
class SumMismatch:
    """Energy of the mixture and of its difference from the sum of the stems, updated block by block."""

    layout: SongFiles
    mixture: str = ""
    difference: float = 0.0
    energy: float = 0.0

    def update(self, blocks: dict[str, np.ndarray]) -> None:
        """Add one block (C, S) of every file, by file name. Without a mixture or summands nothing is added."""
        self.mixture = next((name for name in blocks if is_variant(name, self.layout.mixture)), "")
        lengths = {block.shape[1] for block in blocks.values()}
        if not (self.layout.summands and self.mixture) or len(lengths) > 1:
            return
        mixture = blocks[self.mixture].astype(np.float64)
        difference = mixture - sum(block for name, block in blocks.items() if name != self.mixture)
        self.difference += float(np.square(difference).sum())
        self.energy += float(np.square(mixture).sum())

    @property
    def relative(self) -> float:
        """Energy of the difference over that of the mixture; 0 without a mixture."""
        return self.difference / self.energy if self.energy else float("inf") if self.difference else 0.0
