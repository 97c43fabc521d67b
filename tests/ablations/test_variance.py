"""Variance components: the noise of seeds pooled over a grid, Cochran's test, and crossed layouts."""

import itertools

import numpy as np
import pytest

from ablations.scores import Runs
from ablations.variance import components, homogeneity, pooled_noise


def rows(scores, *, framework="torch", seeds=None):
    """Runs from an array (rows, seeds, songs)."""
    return [Runs(framework, f"row {i}", tuple(seeds or range(len(own))), own) for i, own in enumerate(scores)]


# ---------------------------------------------------------------------------- the noise of seeds


def test_two_rows_have_the_mean_squares_of_their_difference():
    apart = np.array([[1.0, 2, 3], [2, 3, 7]])
    both = np.array([[5.0, 9, 2], [1, 0, 3]])
    # Seeds: means 2 and 4; songs: means 1.5, 2.5 and 5; residual: 22 − 6 − 13 over 2 degrees of freedom.
    assert pooled_noise(rows([both + apart, both])) == pytest.approx((6, 1, 1.5, 2))


def test_the_noise_is_recovered_and_common_effects_are_not_noise():
    rng = np.random.default_rng(0)
    seeds, rest = 0.3, 0.5
    draws = [
        rng.standard_normal((12, 1, 1))  # rows
        + rng.standard_normal((1, 2, 1))  # seeds, which all rows share
        + rng.standard_normal((1, 1, 9))  # songs
        + seeds * rng.standard_normal((12, 2, 1))
        + rest * rng.standard_normal((12, 2, 9))
        for _ in range(200)
    ]
    found = np.mean([pooled_noise(rows(d)) for d in draws], axis=0)
    # Of a difference of two rows: twice the variances, with 11 contrasts of seeds, not with 1 for each pair.
    assert found == pytest.approx([2 * (9 * seeds**2 + rest**2), 11, 2 * rest**2, 88], rel=0.05)


def test_frameworks_and_unequal_seeds_are_pooled():
    rng = np.random.default_rng(0)
    torch, jax = rng.standard_normal((3, 2, 7)), rng.standard_normal((2, 2, 7))
    one, other = pooled_noise(rows(torch)), pooled_noise(rows(jax))
    both = pooled_noise(rows(torch) + rows(jax, framework="jax"))
    assert both.seeds_df == one.seeds_df + other.seeds_df == 3
    assert both.seeds == pytest.approx((2 * one.seeds + other.seeds) / 3)
    # Seeds that one row alone has say nothing about the interaction.
    more = [*rows(torch[:2]), Runs("torch", "row 2", (0, 1, 2, 3), np.concatenate([torch[2], jax[0]]))]
    assert pooled_noise(more) == pytest.approx(one)


def test_undefined_songs_are_left_out():
    scores = np.random.default_rng(0).standard_normal((3, 2, 5))
    with_gap = np.concatenate([scores, np.full((3, 2, 1), np.nan)], axis=2)
    assert pooled_noise(rows(with_gap)) == pytest.approx(pooled_noise(rows(scores)))


@pytest.mark.parametrize("grid", [[], rows(np.zeros((1, 2, 3))), rows(np.ones((3, 1, 4)))])
def test_without_two_rows_and_two_seeds_the_noise_is_unknown(grid):
    assert np.isnan(pooled_noise(grid).seeds)
    assert homogeneity(grid) is None


def test_cochran_names_the_row_whose_seeds_differ_most():
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((10, 2, 1)) + np.zeros((10, 2, 6))
    assert homogeneity(rows(scores)).p > 0.05
    scores[4, 0] += 12
    found = homogeneity(rows(scores))
    assert (found.framework, found.row) == ("torch", "row 4")
    assert found.p < 0.01
    assert 0.5 < found.share < 1
    assert homogeneity(rows(scores[3:5])).p == 1  # of two rows each has the same share


def test_cochran_rejects_as_often_as_it_says():
    rng = np.random.default_rng(2)
    p = [homogeneity(rows(rng.standard_normal((5, 2, 1)))).p for _ in range(300)]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09


# ---------------------------------------------------------------------------- crossed layouts

FACTORS = ("framework", "seed", "song")


def names():
    return [" × ".join(c) for size in (1, 2, 3) for c in itertools.combinations(FACTORS, size)]


def simulated(rng, sd, shape=(2, 4, 10)):
    """Scores with an effect of standard deviation ``sd[name]`` for each factor and interaction."""
    scores = np.full(shape, 8.0)
    for name, size in sd.items():
        own = [n if factor in name.split(" × ") else 1 for factor, n in zip(FACTORS, shape, strict=True)]
        scores = scores + size * rng.standard_normal(own)
    return scores


@pytest.mark.parametrize("alone", names())
def test_an_effect_appears_in_its_own_component_only(alone):
    rng = np.random.default_rng(0)
    draws = [components(simulated(rng, {alone: 1.0}), FACTORS) for _ in range(1000)]
    found = {name: np.mean([d[name].variance for d in draws]) for name in names()}
    assert found == pytest.approx({name: float(name == alone) for name in names()}, abs=0.13)


def test_all_components_are_recovered_together():
    rng = np.random.default_rng(0)
    sd = dict(zip(names(), (0.2, 0.3, 1.5, 0.15, 0.1, 0.25, 0.4), strict=True))
    draws = [components(simulated(rng, sd), FACTORS) for _ in range(2000)]
    for name, size in sd.items():
        values = np.array([d[name].variance for d in draws])
        assert abs(values.mean() - size**2) < 4 * values.std() / np.sqrt(len(values)), name


def test_mean_squares_and_their_freedom():
    scores = np.array([[1.0, 2, 3], [2, 3, 7]])
    found = components(scores, ("seed", "song"))
    assert [c.mean_square for c in found.values()] == pytest.approx([6, 6.5, 1.5])
    assert [c.df for c in found.values()] == [1, 2, 2]
    assert [c.variance for c in found.values()] == pytest.approx([(6 - 1.5) / 3, (6.5 - 1.5) / 2, 1.5])


def test_a_negative_estimate_is_not_hidden():
    found = components(np.array([[1.0, 2], [2, 1]]), ("seed", "song"))
    assert found["seed"].variance == pytest.approx(-0.5)


@pytest.mark.parametrize("scores", [np.zeros((1, 3)), np.array([[1.0, np.nan], [2, 3]])])
def test_a_layout_without_levels_or_scores_is_refused(scores):
    with pytest.raises(ValueError, match="needs two levels"):
        components(scores, ("seed", "song"))
