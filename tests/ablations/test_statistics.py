"""Verdicts on rows: paired differences, intervals, p-values, equivalence, and the seeds that a verdict needs."""

import numpy as np
import pytest
from scipy import stats

from ablations.scores import Runs
from ablations.statistics import (
    between_seeds,
    between_songs,
    difference,
    holm,
    seeds_to_decide,
    seeds_to_find,
    verdict,
)
from ablations.variance import Noise, pooled_noise

#: Noise as of very many rows: intervals are those of the normal distribution.
KNOWN = Noise(seeds=0.08, seeds_df=1e9, residual=0.0, residual_df=1e9)


def runs(scores, *, seeds=None, row="row"):
    scores = np.asarray(scores, dtype=float)
    return Runs("torch", row, tuple(seeds or range(len(scores))), scores)


def constant(apart, *, seeds=2, songs=8, noise=KNOWN):
    """The comparison of two rows whose scores differ by ``apart`` dB everywhere."""
    base = np.random.default_rng(0).standard_normal((seeds, songs))
    return difference(runs(base + apart), runs(base), noise)


# ---------------------------------------------------------------------------- differences


def test_a_worked_example():
    base = np.array([[5.0, 9, 2], [1, 0, 3]])
    row, control = runs(base + np.array([[1, 2, 3], [2, 3, 7]])), runs(base)
    found = difference(row, control, Noise(6.0, 1, 1.5, 2))
    error, df = found.spread()
    # Mean squares 6 of seeds (1), 6.5 of songs (2), 1.5 of the rest (2): variance 11/6.
    assert found.mean == 3
    assert error**2 == pytest.approx(11 / 6)
    assert df == pytest.approx(11**2 / (6**2 / 1 + 6.5**2 / 2 + 1.5**2 / 2))
    half = stats.t.ppf(0.975, df) * error
    assert found.interval() == pytest.approx((3 - half, 3 + half))
    assert found.p == pytest.approx(2 * stats.t.sf(3 / error, df))
    assert found.song_variance == pytest.approx((6.5 - 1.5) / 2)


def test_differences_are_paired_by_seed_and_song():
    rng = np.random.default_rng(0)
    apart = rng.standard_normal((2, 6))
    common = 10 * rng.standard_normal((2, 1)) + 10 * rng.standard_normal((1, 6))
    one = difference(runs(apart), runs(0 * apart), KNOWN)
    other = difference(runs(apart + common), runs(common), KNOWN)
    assert other.mean == pytest.approx(one.mean)
    assert other.interval() == pytest.approx(one.interval())


def test_only_shared_seeds_count():
    base = np.random.default_rng(0).standard_normal((4, 5))
    found = difference(runs(base[1:3] + 0.5, seeds=(1, 7)), runs(base), KNOWN)
    assert (found.mean, found.seeds) == (pytest.approx(0.5), 1)
    with pytest.raises(ValueError, match="share no seed"):
        difference(runs(base[:1], seeds=(9,)), runs(base), KNOWN)


def test_undefined_songs_are_left_out_of_both_rows():
    base = np.array([[1.0, 2, np.nan, 4], [1, 2, 3, 4]])
    found = difference(runs(base + np.array([1, 1, 1, np.nan])), runs(base), KNOWN)
    assert (found.mean, found.songs) == (1, 2)
    with pytest.raises(ValueError, match="no song"):
        difference(runs(base * np.nan), runs(base), KNOWN)


def test_the_variance_is_at_least_each_of_its_parts():
    base = np.zeros((2, 2))
    crossed = difference(runs(base + np.array([[1, 2], [2, 1]])), runs(base), Noise(0.0, 1, 0.8, 1))
    assert crossed.spread()[0] ** 2 == pytest.approx(0.8 / 4)
    seeds = difference(runs(base + 1), runs(base), Noise(0.4, 1, 0.2, 1))
    assert seeds.spread()[0] ** 2 == pytest.approx(0.4 / 4)


def test_false_alarms_are_as_rare_as_promised():
    """Rows share the noise of their control, which must not count as often as there are rows."""
    rng = np.random.default_rng(0)
    alarms, family = [], []
    for _ in range(300):
        scores = (
            rng.standard_normal((1, 2, 1))
            + rng.standard_normal((1, 1, 8))
            + 0.3 * rng.standard_normal((13, 2, 1))
            + 0.1 * rng.standard_normal((13, 1, 8))
            + 0.2 * rng.standard_normal((13, 2, 8))
        )
        grid = [runs(own, row=f"row {i}") for i, own in enumerate(scores)]
        noise = pooled_noise(grid)
        p = [difference(row, grid[0], noise).p for row in grid[1:]]
        alarms.append(np.mean(np.array(p) < 0.05))
        family.append(min(holm(p)) < 0.05)
    assert 0.03 < np.mean(alarms) < 0.065
    assert np.mean(family) < 0.08


# ---------------------------------------------------------------------------- verdicts


def test_holm_multiplies_the_smallest_most():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.6]) == pytest.approx([0.8, 0.8])
    with_gap = holm([0.01, np.nan, 0.02])
    assert with_gap[::2] == pytest.approx([0.02, 0.02])
    assert np.isnan(with_gap[1])


@pytest.mark.parametrize(
    ("apart", "p", "said"),
    [(0.5, 0.01, "better"), (-0.5, 0.01, "worse"), (0.05, 0.6, "equivalent"), (0.15, 0.06, "undecided")],
)
def test_verdicts(apart, p, said):
    # Standard error √(0.08 / 16) = 0.071 dB: the 90 % interval is ±0.12 dB.
    assert verdict(constant(apart), p) == said


def test_the_equivalence_interval_is_that_of_90_percent():
    assert constant(0.08).interval(0.9)[1] < 0.2 < constant(0.08).interval(0.95)[1]
    assert verdict(constant(0.08), 0.5) == verdict(constant(-0.08), 0.5) == "equivalent"


def test_one_seed_or_one_song_is_no_ground_for_a_verdict():
    assert verdict(constant(3, seeds=1), 0.001) == "one seed"
    assert verdict(constant(3, songs=1), 0.001) == "one song"


def test_without_noise_there_is_no_verdict():
    unknown = constant(3, noise=Noise(np.nan, 0, np.nan, 0))
    assert np.isnan(unknown.p)
    assert verdict(unknown, unknown.p) == "undecided"
    assert np.isnan(seeds_to_decide(unknown))


def test_two_songs_and_two_seeds_suffice():
    base = np.array([[1.0, 2], [3, 4]])
    grid = [runs(base, row="default"), runs(base + np.array([[3, 2.9], [3.1, 3]]), row="row")]
    found = difference(grid[1], grid[0], pooled_noise(grid))
    assert (found.seeds, found.songs) == (2, 2)
    assert 0 < found.p < 0.05


# ---------------------------------------------------------------------------- seeds


def test_seeds_to_decide():
    noise = KNOWN._replace(seeds=0.32)  # with n seeds the standard error is √(0.32 / 8 n) = 0.2 / √n
    assert seeds_to_decide(constant(0.2, noise=noise)) == 4  # 0.2 > 1.96 · 0.2 / √n
    assert seeds_to_decide(constant(-0.2, noise=noise)) == 4
    assert seeds_to_decide(constant(0.2, noise=noise), level=0.001) == 11  # 0.2 > 3.29 · 0.2 / √n
    assert seeds_to_decide(constant(-0.05, noise=noise)) == 5  # 0.05 + 1.64 · 0.2 / √n < 0.2


def test_no_number_of_seeds_outweighs_too_few_songs():
    base = np.zeros((2, 4))
    songs = np.array([[-2.0, 2, -1, 1.5]])
    assert seeds_to_decide(difference(runs(base + songs), runs(base), KNOWN)) == np.inf
    assert seeds_to_find(0.1, 10, 1.0, KNOWN, alone=False) == np.inf


def test_planned_seeds_give_the_power():
    # Normal approximation: n = (1.96 + 0.84)² σ² / δ² with σ² = 0.08 / 8 = 0.01.
    assert seeds_to_find(0.05, 8, 0.0, KNOWN, alone=False) == np.ceil(2.8015**2 * 0.01 / 0.05**2)
    assert seeds_to_find(-0.05, 8, 0.0, KNOWN, alone=False) == seeds_to_find(0.05, 8, 0.0, KNOWN, alone=False)
    assert seeds_to_find(10.0, 8, 0.0, KNOWN, alone=False) == 2


def test_planned_seeds_of_two_rows_alone_give_the_power():
    rng = np.random.default_rng(0)
    songs, seed_sd, song_sd, rest_sd, effect = 20, 0.2, 0.3, 0.2, 0.4
    noise = Noise(2 * (songs * seed_sd**2 + rest_sd**2), 1e9, 2 * rest_sd**2, 1e9)
    found = seeds_to_find(effect, songs, song_sd**2, noise, alone=True)

    def power(n):
        hits = 0
        for _ in range(600):
            scores = seed_sd * rng.standard_normal((2, n, 1)) + rest_sd * rng.standard_normal((2, n, songs))
            scores[0] += effect + song_sd * rng.standard_normal(songs)
            pair = [runs(own, row=name) for own, name in zip(scores, ("row", "control"), strict=True)]
            hits += difference(*pair, pooled_noise(pair)).p < 0.05
        return hits / 600

    assert power(int(found) - 1) < 0.8 < power(int(found)) + 0.03
    assert found > seeds_to_find(effect, songs, song_sd**2, noise, alone=False)


# ---------------------------------------------------------------------------- spreads


def test_standard_deviations_over_seeds_and_songs():
    scores = np.array([[1.0, 3.0, np.nan], [2.0, 4.0, np.nan]])
    assert between_seeds(scores) == pytest.approx(np.sqrt(0.5))
    assert between_songs(scores) == pytest.approx(np.sqrt(2))
    assert np.isnan(between_seeds(scores[:1]))
    assert np.isnan(between_songs(scores[:, :1]))
