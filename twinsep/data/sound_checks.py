"""Statistics of a song's sound, gathered block by block: peaks, clipping, hashes, and the sum of the stems."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from twinsep.data.augment import STEP
from twinsep.data.layout import SongFiles, is_variant

#: Consecutive samples at full scale that count as a clipped peak; fewer may be chance.
CLIPPED_RUN = 3
#: Largest energy of (mixture − sum of the stems) relative to that of the mixture, in any half second: −50 dB.
SUM_TOLERANCE = 1e-5
_WINDOW = 0.5  # seconds
_ROUNDING = 4 * STEP  # root mean square that the rounding of five 16-bit files, dithered or not, stays below


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


class Mismatch(NamedTuple):
    """Where a mixture is not the sum of its stems.

    ``channels`` are numbers from 0 on, ``places`` (start, end) in seconds. ``decibels`` is the energy of the difference
    there relative to that of the mixture, infinite if the mixture is silent.
    """

    channels: tuple[int, ...]
    places: tuple[tuple[float, float], ...]
    decibels: float


@dataclass
class SumMismatch:
    """Energy of the mixture and of its difference from the sum of the stems, by channel and by half second.

    ``rate`` is in Hz.
    """

    layout: SongFiles
    rate: int
    mixture: str = ""
    _frames: int = 0
    # Number of the window → energies (2, C): of the difference and of the mixture.
    _energies: dict[int, np.ndarray] = field(default_factory=dict)

    def update(self, blocks: dict[str, np.ndarray]) -> None:
        """Add one block (C, S) of every file, by file name. Without a mixture or summands nothing is added."""
        self.mixture = next((name for name in blocks if is_variant(name, self.layout.mixture)), "")
        lengths = {block.shape[1] for block in blocks.values()}
        if not (self.layout.summands and self.mixture) or len(lengths) > 1:
            return
        mixture = blocks[self.mixture].astype(np.float64)
        total = sum(block for name, block in blocks.items() if name != self.mixture)
        difference = mixture - total
        # A sum beyond full scale cannot be written as integers; that the mixture is clipped is found by itself.
        difference[(np.abs(mixture) >= 1 - STEP) & (np.abs(total) >= 1 - STEP) & (mixture * total > 0)] = 0
        squares = np.square(np.stack([difference, np.broadcast_to(mixture, difference.shape)]))  # (2, c, s)
        first, frames = self._frames // self._window, squares.shape[-1]
        starts = np.arange(first * self._window, self._frames + frames, self._window) - self._frames
        sums = np.add.reduceat(squares, np.maximum(starts, 0), axis=-1)  # (2, c, windows)
        for number in range(sums.shape[-1]):
            self._energies[first + number] = self._energies.get(first + number, 0) + sums[..., number]
        self._frames += frames

    @property
    def _window(self) -> int:
        return max(1, round(_WINDOW * self.rate))

    def find(self) -> list[Mismatch]:
        """The places where the difference exceeds −50 dB of the mixture and the rounding of 16-bit sound.

        Channels that differ in the same places are found together.
        """
        if not self._energies:
            return []
        difference, mixture = np.moveaxis(np.stack([*self._energies.values()]), 1, 0)  # (windows, c) each
        floor = _ROUNDING**2 * np.minimum(self._window, self._frames - self._window * np.arange(len(difference)))
        wrong = difference > np.maximum(SUM_TOLERANCE * mixture, floor[:, None])
        places: dict[tuple[tuple[int, int], ...], list[int]] = {}
        for channel in range(wrong.shape[1]):
            if runs := _runs(np.flatnonzero(wrong[:, channel])):
                places.setdefault(runs, []).append(channel)
        found = []
        for runs, channels in places.items():
            inside = np.concatenate([np.arange(*run) for run in runs])
            energies = [x[inside][:, channels].sum() for x in (difference, mixture)]
            decibels = 10 * np.log10(energies[0] / energies[1]) if energies[1] else np.inf
            seconds = [(a * self._window / self.rate, min(b * self._window, self._frames) / self.rate) for a, b in runs]
            found.append(Mismatch(tuple(channels), tuple(seconds), float(decibels)))
        return found

    @property
    def channels(self) -> int:
        """Number of channels."""
        return next(iter(self._energies.values())).shape[1] if self._energies else 0

    @property
    def seconds(self) -> float:
        """Length."""
        return self._frames / self.rate


def _runs(numbers: np.ndarray) -> tuple[tuple[int, int], ...]:
    """(start, end) of the runs in ascending ``numbers``; a run spans up to two that are missing."""
    if not len(numbers):
        return ()
    cuts = np.flatnonzero(np.diff(numbers) > 3) + 1
    return tuple((int(run[0]), int(run[-1]) + 1) for run in np.split(numbers, cuts))
