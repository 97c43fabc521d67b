"""Analysis of recorded speech for singing: pitch, spectral envelope, aperiodicity, syllables.

By WORLD (Morise et al. 2016, doi 10.1587/transinf.2015EDP7457): Harvest and StoneMask for the pitch, CheapTrick for the
envelope, D4C for the aperiodicity. Syllables are found by their sound alone, since nothing is transcribed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d
from scipy.signal import find_peaks

from twinsep import audio
from twinsep.data.synth.effects import SAMPLE_RATE
from twinsep.errors import InputError

#: Hop between frames in seconds.
FRAME = 0.005
#: Range of the pitch in Hz, from a low man's to a child's.
_PITCH = (65.0, 700.0)
_PITCH_RATE = 16_000  # Hz, at which the pitch is tracked
_QUIET_DB = -30.0  # frames that much below the loud ones are unvoiced: Harvest hears a pitch in noise
# Syllables: the band of their nuclei in Hz, the smoothing of its level in seconds, what a nucleus must have in dB, and
# how close two may be in seconds.
_NUCLEUS_HZ = (250.0, 3500.0)
_SMOOTHING, _CLOSEST = 0.03, 0.09
_HEIGHT_DB, _PROMINENCE_DB, _UNVOICED_DB = -25.0, 1.5, -10.0


@dataclass(frozen=True)
class Speech:
    """A spoken phrase, one frame every :data:`FRAME` seconds.

    ``f0`` (frames,) is the pitch in Hz, 0 if unvoiced; ``log_power`` (frames, bins) the natural logarithm of the
    envelope's power; ``aperiodicity`` (frames, bins) the share of noise, 0…1. ``syllables`` are runs [start, end) of
    frames that cover the phrase, one nucleus in each.
    """

    f0: Float[np.ndarray, " t"]
    log_power: Float[np.ndarray, "t f"]
    aperiodicity: Float[np.ndarray, "t f"]
    syllables: tuple[tuple[int, int], ...]

    @property
    def voiced(self) -> np.ndarray:
        """True for each voiced frame, (frames,)."""
        return self.f0 > 0

    @property
    def median_key(self) -> float:
        """Median pitch as a MIDI key, not rounded."""
        return float(69 + 12 * np.log2(np.median(self.f0[self.voiced]) / 440))


def analyse(x: Float[np.ndarray, " s"]) -> Speech | None:
    """Analyse mono speech at 44.1 kHz; None if it has no syllable.

    Raises :class:`InputError` if the package pyworld-prebuilt is missing.
    """
    vocoder = world()
    x = np.ascontiguousarray(x, np.float64)
    low = audio.resample(x[None].astype(np.float32), SAMPLE_RATE, _PITCH_RATE)[0].astype(np.float64)
    options = {"f0_floor": _PITCH[0], "f0_ceil": _PITCH[1], "frame_period": 1000 * FRAME}
    f0, times = vocoder.harvest(low, _PITCH_RATE, **options)
    f0 = vocoder.stonemask(low, f0, times, _PITCH_RATE)
    frames = min(len(f0), int(len(x) / SAMPLE_RATE / FRAME) + 1)
    f0, times = f0[:frames].copy(), times[:frames]
    level = _level(x, frames)
    f0[level < np.percentile(level, 95) + _QUIET_DB] = 0
    if not f0.any():
        return None
    log_power = np.log(vocoder.cheaptrick(x, f0, times, SAMPLE_RATE) + 1e-16).astype(np.float32)
    syllables = find_syllables(log_power, f0 > 0)
    if not syllables:
        return None
    return Speech(f0, log_power, vocoder.d4c(x, f0, times, SAMPLE_RATE).astype(np.float32), syllables)


def find_syllables(log_power: Float[np.ndarray, "t f"], voiced: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Syllables of frames (t,): maxima of the level between 250 and 3500 Hz, divided at the minima between them."""
    hertz = np.linspace(0, SAMPLE_RATE / 2, log_power.shape[1])
    band = (hertz > _NUCLEUS_HZ[0]) & (hertz < _NUCLEUS_HZ[1])
    level = 10 * np.log10(np.exp(log_power[:, band].astype(np.float64)).mean(1) + 1e-16)
    level = np.where(voiced, level, level + _UNVOICED_DB)
    level = gaussian_filter1d(np.maximum(level, level.max() - 45), _SMOOTHING / FRAME)
    nuclei, _ = find_peaks(
        level, height=level.max() + _HEIGHT_DB, prominence=_PROMINENCE_DB, distance=round(_CLOSEST / FRAME)
    )
    nuclei = [int(n) for n in nuclei if voiced[max(0, n - 6) : n + 7].mean() > 0.5]
    if not nuclei:
        return ()
    between = [a + int(np.argmin(level[a:b])) for a, b in pairwise(nuclei)]
    edges = [0, *between, len(level)]
    return tuple(pairwise(edges))


def trim(x: Float[np.ndarray, " s"], *, below_db: float = -32.0, rest: float = 0.02) -> Float[np.ndarray, " r"]:
    """Trim both ends of mono sound below ``below_db`` dB relative to its loudest 20 ms; keep ``rest`` seconds."""
    width = round(0.02 * SAMPLE_RATE)
    power = np.convolve(np.square(x, dtype=np.float64), np.full(width, 1 / width), "same") if len(x) else x
    loud = np.flatnonzero(power > power.max(initial=0.0) * 10 ** (below_db / 10))
    if not len(loud):
        return x[:0]
    edge = round(rest * SAMPLE_RATE)
    return x[max(0, loud[0] - edge) : loud[-1] + edge]


def _level(x: np.ndarray, frames: int) -> np.ndarray:
    """Level of 10 ms from each frame on, in dB, (frames,)."""
    starts = np.minimum(np.round(np.arange(frames) * FRAME * SAMPLE_RATE).astype(int), len(x))
    total = np.concatenate([[0.0], np.cumsum(x**2)])
    ends = np.minimum(starts + SAMPLE_RATE // 100, len(x))
    return 10 * np.log10((total[ends] - total[starts]) / (SAMPLE_RATE // 100) + 1e-12)


def world() -> Any:
    """The vocoder WORLD; raises :class:`InputError` if its package is missing."""
    try:
        import pyworld
    except ImportError as error:
        raise InputError("sung speech needs the package pyworld-prebuilt; pip install 'twinsep[data]'") from error
    return pyworld
