"""Masks and noise on the mixture of a training example."""

import numpy as np
import pytest

from twinsep.config import DataConfig
from twinsep.data import augment
from twinsep.data.loader import TrainingBatches

RATE = 44_100


def corrupt(seed=0, seconds=1.0, **options):
    mixture = np.random.default_rng(99).standard_normal((2, round(seconds * RATE))).astype(np.float32)
    return mixture, augment.corrupt(mixture, DataConfig(**options), RATE, np.random.default_rng(seed))


def test_without_masks_and_noise_the_mixture_stays():
    mixture, changed = corrupt()
    assert changed is mixture


@pytest.mark.parametrize("seed", range(4))
def test_a_time_mask_is_one_silent_span(seed):
    mixture, changed = corrupt(seed, time_mask=0.3)
    silent = np.flatnonzero((changed == 0).all(0))
    assert 0 < len(silent) <= 0.3 * RATE
    assert silent[-1] - silent[0] == len(silent) - 1
    kept = np.setdiff1d(np.arange(mixture.shape[1]), silent)
    assert (changed[:, kept] == mixture[:, kept]).all()


@pytest.mark.parametrize("seed", range(4))
def test_a_frequency_mask_is_one_silent_range(seed):
    mixture, changed = corrupt(seed, frequency_mask=4000.0)
    middle = slice(RATE // 4, -RATE // 4)
    window = np.hanning(RATE - 2 * (RATE // 4))
    before, after = (np.abs(np.fft.rfft(x[0, middle] * window)) for x in (mixture, changed))
    hz = np.fft.rfftfreq(len(window), 1 / RATE)
    removed = hz[after < 0.01 * before]
    assert 0 < np.ptp(removed) <= 4000 + 1
    outside = (hz < removed.min() - 1100) | (hz > removed.max() + 1100)
    np.testing.assert_allclose(after[outside], before[outside], rtol=0, atol=0.05 * before.mean())
    assert changed.dtype == np.float32


def test_noise_has_the_given_rms():
    mixture, changed = corrupt(noise=0.01)
    assert np.std(changed - mixture) == pytest.approx(0.01, rel=0.02)
    assert changed.dtype == np.float32


def test_only_the_mixture_of_an_example_changes(micro):
    plain, masked = (
        TrainingBatches(micro.override({"data": data})).example(3)
        for data in ({}, {"time_mask": 0.2, "frequency_mask": 500.0, "noise": 0.01})
    )
    assert (plain["target"] == masked["target"]).all()
    assert (plain["mixture"] != masked["mixture"]).any()
