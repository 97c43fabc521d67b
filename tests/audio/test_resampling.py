"""Resampling block by block, compared with resampling at once."""

import tracemalloc

import numpy as np
import pytest

from twinsep import audio
from twinsep.audio.resampling import Resampler, resample_blocks
from twinsep.errors import InputError

RATES = [8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 88_200, 96_000, 176_400, 192_000]
MODEL = 44_100


def noise(frames, channels=2):
    return 0.3 * np.random.default_rng(frames).standard_normal((channels, frames)).astype(np.float32)


def split(waveform, size):
    return (waveform[:, start : start + size] for start in range(0, waveform.shape[1], size))


def resample_joined(blocks, *rates, frames):
    return np.concatenate([*resample_blocks(blocks, *rates, frames)], axis=1)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("back", [False, True])
def test_blocks_of_any_size_equal_resampling_at_once(rate, back):
    from_rate, to_rate = (MODEL, rate) if back else (rate, MODEL)
    waveform = noise(round(1.7 * from_rate) + 13)
    frames = round(waveform.shape[1] * to_rate / from_rate)
    whole = audio.resample(waveform, from_rate, to_rate, frames=frames)
    for size in (997, 1 << 16, waveform.shape[1]):
        sound = resample_joined(split(waveform, size), from_rate, to_rate, frames=frames)
        assert (sound.shape, sound.dtype) == ((2, frames), np.float32)
        assert np.abs(sound - whole).max() <= 1e-6
    if rate == MODEL:
        assert np.array_equal(whole, waveform)


@pytest.mark.parametrize("rate", RATES)
def test_tones_and_impulses_keep_their_time(rate):
    seconds = np.arange(rate) / rate
    impulse = np.zeros(rate, np.float32)
    impulse[rate // 2] = 1
    waveform = np.stack([np.sin(2 * np.pi * 440 * seconds), impulse]).astype(np.float32)
    sound = resample_joined(split(waveform, 1001), rate, MODEL, frames=MODEL)
    inner = slice(MODEL // 4, -MODEL // 4)
    expected = np.sin(2 * np.pi * 440 * np.arange(MODEL) / MODEL)
    assert np.abs(sound[0] - expected)[inner].max() < 1e-4
    # The impulse's centre of mass, in samples at the model's rate.
    centre = (np.arange(MODEL) * sound[1] ** 2).sum() / (sound[1] ** 2).sum()
    assert centre == pytest.approx((rate // 2) / rate * MODEL, abs=0.01)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("frames", [1, 2, 3, 100])
def test_resampling_there_and_back_keeps_the_length(rate, frames):
    inner = max(1, round(frames * MODEL / rate))
    there = [*resample_blocks(iter([noise(frames)]), rate, MODEL, inner)]
    back = resample_joined(there, MODEL, rate, frames=frames)
    assert sum(block.shape[1] for block in there) == inner
    assert back.shape == (2, frames)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_the_output_has_the_requested_length(channels):
    waveform = noise(1_000, channels)
    whole = resample_joined([waveform], 48_000, MODEL, frames=919)
    for frames in (0, 1, 900, 918, 920, 200_000):
        blocks = [*resample_blocks(split(waveform, 300), 48_000, MODEL, frames)]
        sound = np.concatenate([np.empty((channels, 0), np.float32), *blocks], axis=1)
        assert sound.shape == (channels, frames)
        assert np.array_equal(sound[:, :918], whole[:, : min(frames, 918)])
        assert not sound[:, 930:].any()
    assert [*resample_blocks([], 48_000, MODEL, 10)] == []


def test_empty_blocks_change_nothing():
    waveform = noise(5_000)
    blocks = [waveform[:, :0], waveform[:, :2_000], waveform[:, :0], waveform[:, 2_000:]]
    assert np.array_equal(
        resample_joined(blocks, 48_000, MODEL, frames=4594), resample_joined([waveform], 48_000, MODEL, frames=4594)
    )


def test_memory_does_not_grow_with_the_song():
    block = noise(4_000)
    tracemalloc.start()
    total = sum(output.shape[1] for output in resample_blocks((block for _ in range(400)), 48_000, MODEL, 1_470_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 1_470_000
    assert peak < 1_000_000  # the output has 12 MB


def test_a_stream_returns_output_early_and_the_rest_at_the_end():
    waveform = noise(20_000)
    stream = Resampler(48_000, MODEL, 2)
    first, second, rest = stream.push(waveform[:, :10_000]), stream.push(waveform[:, 10_000:]), stream.finish()
    assert min(first.shape[1], second.shape[1], rest.shape[1]) > 0
    whole = audio.resample(waveform, 48_000, MODEL)
    assert np.abs(np.concatenate([first, second, rest], 1) - whole).max() <= 1e-6


def test_rates_must_be_positive():
    for rates in ((0, MODEL), (MODEL, -1)):
        with pytest.raises(InputError, match="rates must be positive"):
            Resampler(*rates, 2)
