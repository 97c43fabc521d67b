"""Variance components of scores: the noise that seeds make in a comparison, and those of a crossed layout."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ablations.scores import Runs

_DRAWS = 9_999


class Noise(NamedTuple):
    """Mean squares of a paired difference in dB², with degrees of freedom: between seeds, and the residual."""

    seeds: float
    seeds_df: float
    residual: float
    residual_df: float


def pooled_noise(grid: Sequence[Runs]) -> Noise:
    """The noise of seeds in a difference of two rows, from all rows of ``grid``; NaN unless two share two seeds.

    Differences from one control share its noise, so mean squares pooled over them have 4 degrees of freedom however
    many they are. The layout frameworks × rows × seeds × songs has no such overlap: in each framework the effects of
    rows and of seeds are fitted by least squares (not every row has every seed), and the interaction of rows and seeds
    remains. Its mean squares, of means over songs and of the rest, are half those of a difference. Rows are taken to
    have equal variances; :func:`homogeneity` tests it.
    """
    project = _interaction(grid)
    scores = np.concatenate([runs.scores for runs in grid]) if grid else np.zeros((0, 0))
    residual = project @ scores[:, np.isfinite(scores).all(0)]
    songs, df = residual.shape[1], round(float(np.trace(project)))
    if not songs or not df:
        return Noise(np.nan, 0, np.nan, 0)
    between = songs * float(np.sum(residual.mean(1) ** 2))
    rest, rest_df = float(np.sum(residual**2)) - between, df * (songs - 1)
    return Noise(2 * between / df, df, 2 * rest / rest_df if rest_df else np.nan, rest_df)


class Homogeneity(NamedTuple):
    """Cochran's test: the row with the largest variance over seeds, its share of all, and the p-value of that share."""

    framework: str
    row: str
    share: float
    p: float


def homogeneity(grid: Sequence[Runs]) -> Homogeneity | None:
    """Test if one row's variance over seeds exceeds those of the others; None where :func:`pooled_noise` is NaN.

    The statistic is the largest variance over the sum of all (Cochran 1941, Annals of Eugenics 11). Its p-value is the
    share of 9,999 layouts of normal noise that have at least this statistic: unlike Cochran's tables it holds for rows
    with unequal numbers of seeds. (Levene's test has no denominator for groups of two.)
    """
    project = _interaction(grid)
    means = np.array([np.nanmean(line) for runs in grid for line in runs.scores])
    member = np.repeat(np.eye(len(grid)), [len(runs.seeds) for runs in grid], axis=0)
    squares = (project @ means) ** 2 @ member
    if round(float(np.trace(project))) < 1 or not squares.sum():
        return None
    null = (np.random.default_rng(0).standard_normal((_DRAWS, len(means))) @ project) ** 2 @ member
    share = float(squares.max() / squares.sum())
    beyond = np.sum(null.max(1) / null.sum(1) >= share * (1 - 1e-9))  # of two rows each always has half
    worst = grid[int(squares.argmax())]
    return Homogeneity(worst.framework, worst.row, share, float(1 + beyond) / (_DRAWS + 1))


def _interaction(grid: Sequence[Runs]) -> Float[np.ndarray, "runs runs"]:
    """Projection of the runs' scores on what the effects of rows and of seeds in each framework leave."""
    runs = [(r.framework, r.row, seed) for r in grid for seed in r.seeds]
    rows = sorted({(framework, row) for framework, row, _ in runs})
    seeds = sorted({(framework, seed) for framework, _, seed in runs})
    effects = [[(f, r) == row for row in rows] + [(f, s) == seed for seed in seeds] for f, r, s in runs]
    design = np.array(effects, dtype=float).reshape(len(runs), len(rows) + len(seeds))
    return np.eye(len(runs)) - design @ np.linalg.pinv(design)


class Component(NamedTuple):
    """An effect in a crossed layout: estimated variance in dB², which may be negative, mean square and its freedom."""

    variance: float
    mean_square: float
    df: int


def components(scores: Float[np.ndarray, ...], factors: Sequence[str]) -> dict[str, Component]:
    """Variance of each factor and interaction in a crossed random layout without replication, by analysis of variance.

    ``scores`` has an axis for each factor. An effect is named by its factors, "a × b"; that of all factors holds the
    residual too. Mean squares are equated to their expectations (Searle, Casella and McCulloch 1992, Variance
    Components, chapter 4): with MS_B the mean square of the interaction of the factors B, and n_k the levels of k,

        σ_A² = Σ_{B ⊇ A} (−1)^(|B| − |A|) MS_B / Π_{k ∉ A} n_k.

    Raises ValueError for a factor with a single level or an undefined score.
    """
    if min(scores.shape) < 2 or not np.isfinite(scores).all():
        raise ValueError(f"a layout of shape {scores.shape} needs two levels of each factor and finite scores")
    axes = range(scores.ndim)
    effects = [frozenset(e) for size in range(1, scores.ndim + 1) for e in itertools.combinations(axes, size)]
    freedom = {e: int(np.prod([scores.shape[axis] - 1 for axis in e])) for e in effects}
    repeats = {e: int(np.prod([scores.shape[axis] for axis in axes if axis not in e])) for e in effects}
    square = {e: repeats[e] * float(np.sum(_effect(scores, e) ** 2)) / freedom[e] for e in effects}
    return {
        " × ".join(factors[axis] for axis in sorted(e)): Component(
            sum((-1) ** len(other - e) * ms for other, ms in square.items() if e <= other) / repeats[e],
            square[e],
            freedom[e],
        )
        for e in effects
    }


def _effect(scores: np.ndarray, factors: frozenset[int]) -> np.ndarray:
    """The interaction of ``factors``: means over all other axes, centred along those of ``factors``."""
    found = scores.mean(tuple(set(range(scores.ndim)) - factors), keepdims=True)
    for axis in factors:
        found = found - found.mean(axis, keepdims=True)
    return found
