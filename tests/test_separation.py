"""Chunks, fades and whole songs."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinsep.errors import InputError
from twinsep.separation import chunk_starts, separate, separate_song


def identity(x):
    return x[:, None]


def noise(channels, samples, seed=0):
    return 0.3 * np.random.default_rng(seed).standard_normal((channels, samples)).astype(np.float32)


@given(
    samples=st.integers(1, 400),
    segment=st.integers(1, 120),
    overlap=st.floats(0, 0.95, allow_nan=False),
)
def test_identity_returns_the_input_at_any_length(samples, segment, overlap):
    x = noise(2, samples)
    y = separate(identity, x, segment=segment, overlap=overlap)
    assert y.shape == (1, 2, samples)
    assert np.abs(y[0] - x).max() <= 2e-7


@given(total=st.integers(1, 500), segment=st.integers(1, 100), overlap=st.floats(0, 0.95))
def test_chunks_cover_the_song_and_end_with_it(total, segment, overlap):
    total = max(total, segment)
    starts = chunk_starts(total, segment, overlap)
    assert starts[0] == 0
    assert starts[-1] + segment == total
    assert all(0 < b - a <= segment for a, b in pairwise(starts))


def test_chunks_have_one_shape_and_progress_is_told():
    shapes, told = set(), []

    def model(x):
        shapes.add(x.shape)
        return x[:, None]

    separate(model, noise(2, 1001), segment=100, overlap=0.25, progress=lambda *p: told.append(p))
    assert shapes == {(1, 2, 100)}
    assert told[-1] == (len(told), len(told))


def test_no_seam_between_chunks_that_disagree():
    # A model whose gain changes from chunk to chunk: the fade spreads the step over the overlap.
    gains = iter([1.0, 0.5, 1.0, 0.5, 1.0, 0.5, 1.0, 0.5, 1.0, 0.5])
    y = separate(lambda x: next(gains) * x[:, None], np.ones((2, 4000), np.float32), segment=1000, overlap=0.25)
    assert np.abs(np.diff(y)).max() <= 0.5 / 250 + 1e-6


def test_bad_options_and_models():
    x = noise(2, 100)
    with pytest.raises(InputError, match="overlap 1"):
        separate(identity, x, segment=10, overlap=1.0)
    with pytest.raises(InputError, match="at least one"):
        separate(identity, x, segment=0)
    with pytest.raises(InputError, match="returned 9 samples for 10"):
        separate(lambda x: x[:, None, :, 1:], x, segment=10)


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_song_comes_back_as_it_went_in(rate, channels):
    t = np.arange(rate // 3 + 7) / rate
    x = np.stack([0.4 * np.sin(2 * np.pi * f * t) for f in (440, 550)][:channels]).astype(np.float32)
    y = separate_song(identity, x, rate, model_rate=44_100, segment=10_000)
    assert y.shape == (1, *x.shape)
    edge = rate // 50
    assert np.abs(y[0] - x)[:, edge:-edge].max() < 1e-3


def test_one_sample():
    y = separate_song(identity, np.full((1, 1), 0.5, np.float32), 44_100, model_rate=44_100, segment=10_000)
    assert y.shape == (1, 1, 1)
    assert y[0, 0, 0] == 0.5
