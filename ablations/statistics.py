"""Verdicts on rows: differences paired by seed and song, their intervals, and the seeds that a verdict needs.

A row is compared with its control on the seeds s and songs j that both have. The model of the difference is that of the
crossed two-way layout with random effects and without replication (Searle, Casella and McCulloch 1992, Variance
Components, chapter 4),

    D_sj = μ + a_s + b_j + e_sj,

whose mean over n seeds and m songs has the variance σ_a²/n + σ_b²/m + σ_e²/(n m), estimated without bias by

    V = (MS_seed + MS_song − MS_res) / (n m).

With two seeds a row alone has one degree of freedom for MS_seed, so MS_seed and MS_res are pooled over the grid
(:func:`ablations.variance.pooled_noise`); MS_song is the row's own. Degrees of freedom are those of Satterthwaite
(1946, An approximate distribution of estimates of variance components, Biometrics Bulletin 2). Scores are in dB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from ablations.scores import Runs, Scores
from ablations.variance import Noise

#: Level of verdicts; intervals cover 1 − ALPHA, those that show equivalence 1 − 2 ALPHA.
ALPHA = 0.05
#: Differences up to this many dB do not matter.
MARGIN_DB = 0.2
POWER = 0.8
#: Most seeds that are tried.
MOST_SEEDS = 1000


class Difference(NamedTuple):
    """Mean difference of a row from its control over ``seeds`` and ``songs``, and the mean squares of its variance."""

    mean: float
    seeds: int
    songs: int
    noise: Noise
    song_square: float

    @property
    def song_variance(self) -> float:
        """Variance in dB² over songs of the difference itself, without the noise of seeds; not below 0."""
        return max(0.0, (self.song_square - self.noise.residual) / self.seeds)

    def spread(self, seeds: Any = None, *, alone: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """(standard error in dB, degrees of freedom), now or with other numbers of ``seeds``; NaN if unknown.

        The variance is at least as large as each of the three terms, which the estimate may undercut. More seeds would
        add degrees of freedom to the noise. ``alone``: as if it were estimated from this row and its control only.
        """
        n = np.asarray(self.seeds if seeds is None else seeds, dtype=float)
        more = n - (1 if alone else self.seeds)
        known = Noise(self.noise.seeds, 0, self.noise.residual, 0) if alone else self.noise
        song_square = self.song_square if seeds is None else n * self.song_variance + known.residual
        terms: list[tuple[np.ndarray, Any]] = [
            (known.seeds / (n * self.songs), known.seeds_df + more),
            (song_square / (n * self.songs), self.songs - 1),
            (known.residual / (n * self.songs), known.residual_df + more * (self.songs - 1)),
        ]
        from_seeds, from_songs, twice = (term for term, _ in terms)
        variance = np.maximum.reduce([from_seeds + from_songs - twice, from_seeds, from_songs, twice])
        weight = sum(term**2 / np.maximum(freedom, 1) for term, freedom in terms)
        df = np.divide(variance**2, weight, out=np.ones_like(variance), where=weight > 0)
        return np.sqrt(variance), df

    def interval(self, confidence: float = 1 - ALPHA) -> tuple[float, float]:
        """t interval in dB."""
        error, df = self.spread()
        half = float(stats.t.ppf((1 + confidence) / 2, df) * error)
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """Two-sided p-value of a difference of zero; NaN if the noise is unknown."""
        return float(_p(self.mean, *self.spread()))


def difference(row: Runs, control: Runs, noise: Noise) -> Difference:
    """Compare ``row`` with ``control``, paired by seed and song, where ``noise`` is that of a paired difference.

    Songs without a score in either are left out. Raises ValueError if they share no seed, or no song has a score.
    """
    shared = [seed for seed in row.seeds if seed in control.seeds]
    if not shared:
        raise ValueError(f"rows {row.row} and {control.row} share no seed")
    own, other = (r.scores[[r.seeds.index(seed) for seed in shared]] for r in (row, control))
    apart = own - other
    apart = apart[:, np.isfinite(apart).all(0)]
    songs = apart.shape[1]
    if not songs:
        raise ValueError(f"no song has a score in both rows {row.row} and {control.row}")
    song_square = len(shared) * float(apart.mean(0).var(ddof=1)) if songs > 1 else float("nan")
    return Difference(float(apart.mean()), len(shared), songs, noise, song_square)


def main_effect(rows_with: Sequence[Runs], rows_without: Sequence[Runs], noise: Noise) -> Difference:
    """Compare the mean of some rows with the mean of as many others, on the seeds that all have.

    ``noise`` is that of a difference of two rows; the means of k rows have a k-th of it. Raises ValueError as
    :func:`difference` does.
    """
    seeds = [seed for seed in rows_with[0].seeds if all(seed in r.seeds for r in (*rows_with, *rows_without))]
    k = len(rows_with)
    shared = Noise(noise.seeds / k, noise.seeds_df, noise.residual / k, noise.residual_df)
    return difference(_mean(rows_with, seeds), _mean(rows_without, seeds), shared)


def _mean(rows: Sequence[Runs], seeds: Sequence[int]) -> Runs:
    """The mean of ``rows`` on ``seeds``."""
    scores = np.mean([r.scores[[r.seeds.index(seed) for seed in seeds]] for r in rows], axis=0)
    return Runs(rows[0].framework, " + ".join(r.row for r in rows), tuple(seeds), scores)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm (1979), Scandinavian Journal of Statistics 6; NaN stay and do not count."""
    values = np.asarray(p, dtype=float)
    order = np.argsort(values)[: np.isfinite(values).sum()]
    adjusted = np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1))
    values[order] = np.minimum(adjusted, 1)
    return values.tolist()


def verdict(found: Difference, adjusted: float) -> str:
    """ "better" or "worse" if the ``adjusted`` p-value is below 0.05, else "equivalent" or "undecided".

    Equivalent: the 90 % interval lies within ±0.2 dB (two one-sided tests; Schuirmann 1987, Journal of Pharmacokinetics
    and Biopharmaceutics 15). With one shared seed the verdict is "one seed", with one song "one song".
    """
    if found.seeds < 2:
        return "one seed"
    if found.songs < 2:
        return "one song"
    if adjusted < ALPHA:
        return "better" if found.mean > 0 else "worse"
    low, high = found.interval(1 - 2 * ALPHA)
    return "equivalent" if low > -MARGIN_DB and high < MARGIN_DB else "undecided"


def seeds_to_decide(found: Difference, level: float = ALPHA) -> float:
    """The smallest larger number of seeds that gives a verdict if the mean and the variances stay as measured.

    ``level`` is that of "better" and "worse", corrected for the other rows. Infinite if 1,000 seeds would not do,
    because the songs differ; NaN if the noise is unknown.
    """
    seeds = np.arange(found.seeds + 1, MOST_SEEDS + 1)
    error, df = found.spread(seeds)
    if not np.isfinite(error).all():
        return float("nan")
    outer = abs(found.mean) + stats.t.ppf(1 - ALPHA, df) * error
    return _first(seeds, (_p(found.mean, error, df) < level) | (outer < MARGIN_DB))


def seeds_to_find(effect: float, songs: int, song_variance: float, noise: Noise, *, alone: bool) -> float:
    """The smallest number of seeds, 2 or more, with which a true difference is found with power 0.8 at level 0.05.

    ``effect`` is the true difference in dB, ``song_variance`` its variance over songs; ``alone`` as in
    :meth:`Difference.spread`. The power is that of the t test, from the non-central t distribution. Infinite if 1,000
    seeds would not do.
    """
    seeds = np.arange(2, MOST_SEEDS + 1)
    planned = Difference(effect, 1, songs, noise, song_variance + noise.residual)
    error, df = planned.spread(seeds, alone=alone)
    power = stats.nct.sf(stats.t.ppf(1 - ALPHA / 2, df), df, abs(effect) / error)
    return _first(seeds, power >= POWER)


def between_seeds(scores: Scores) -> float:
    """Standard deviation (n − 1) over seeds of the mean over songs; NaN for a single seed."""
    return float(np.nanmean(scores, 1).std(ddof=1)) if len(scores) > 1 else float("nan")


def between_songs(scores: Scores) -> float:
    """Standard deviation (n − 1) over songs of the mean over seeds; NaN for a single song."""
    songs = scores.mean(0)
    songs = songs[np.isfinite(songs)]
    return float(songs.std(ddof=1)) if len(songs) > 1 else float("nan")


def _p(mean: float, error: np.ndarray, df: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where((error == 0) & (mean == 0), 0.0, abs(mean) / error)
    return 2 * stats.t.sf(t, df)


def _first(seeds: np.ndarray, is_enough: np.ndarray) -> float:
    return float(seeds[is_enough.argmax()]) if is_enough.any() else float("inf")
