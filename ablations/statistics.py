"""Significance of a row's difference from the default row: paired bootstrap over songs, deviation between seeds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import bootstrap

#: A row's scores in dB; NaN where undefined.
Scores = Float[np.ndarray, "seeds songs"]
RESAMPLES = 9_999
CONFIDENCE = 0.95


class Difference(NamedTuple):
    """Mean over songs of a row's score minus the default row's, its confidence interval in dB, and the verdict."""

    mean: float
    low: float
    high: float
    verdict: str


def difference(row: Scores, default: Scores, deviation: float) -> Difference:
    """Compare ``row`` with ``default``, whose seeds have the standard ``deviation`` in dB.

    Pairs of songs are drawn with replacement, the same draws for every row (Efron and Tibshirani 1993, An Introduction
    to the Bootstrap, percentile interval). The verdict is "better" or "worse" if the interval excludes zero *and* the
    difference exceeds twice ``deviation``, else "within noise". With a single seed of the default row ``deviation`` is
    NaN and the verdict "one seed". Raises ValueError if no song has a score in both rows.
    """
    apart = row.mean(0) - default.mean(0)
    apart = apart[np.isfinite(apart)]
    if not len(apart):
        raise ValueError("no song has a score in both rows")
    low = high = float(apart[0])
    if np.ptp(apart) > 0:
        found = bootstrap(
            (apart,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=0
        )
        low, high = map(float, found.confidence_interval)
    mean = float(apart.mean())
    return Difference(mean, low, high, _verdict(mean, low, high, deviation))


def between_seeds(scores: Scores) -> float:
    """Standard deviation (n − 1) over seeds of the mean over songs; NaN for a single seed."""
    return float(np.nanmean(scores, 1).std(ddof=1)) if len(scores) > 1 else float("nan")


def between_songs(scores: Scores) -> float:
    """Standard deviation (n − 1) over songs of the mean over seeds; NaN for a single song."""
    songs = scores.mean(0)
    songs = songs[np.isfinite(songs)]
    return float(songs.std(ddof=1)) if len(songs) > 1 else float("nan")


def _verdict(mean: float, low: float, high: float, deviation: float) -> str:
    if not np.isfinite(deviation):
        return "one seed"
    if low <= 0 <= high or abs(mean) <= 2 * deviation:
        return "within noise"
    return "better" if mean > 0 else "worse"
