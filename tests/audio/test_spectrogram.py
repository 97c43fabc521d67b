"""Spectrograms: cells at the right time and frequency for blocks of any length, in bounded memory."""

import io
import sys
import tracemalloc

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from twinsep.audio import spectrogram
from twinsep.audio.spectrogram import SeparationFigure, Spectrogram
from twinsep.errors import InputError

RATE = 44_100


def noise(frames, channels=2, seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal((channels, frames))).astype(np.float32)


def pixels(png):
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def draw(song, rate, instrumental, vocals, title="a song"):
    figure = SeparationFigure(song.shape[-1], rate)
    figure.push(song, instrumental, vocals)
    return figure.png(title)


@pytest.mark.parametrize("hertz", [100.0, 1000.0, 15_000.0])
def test_a_tone_appears_at_its_frequency(hertz):
    t = np.arange(2 * RATE) / RATE
    tone = np.tile(np.sin(2 * np.pi * hertz * t), (2, 1)).astype(np.float32)
    power = spectrogram.power(tone, RATE, n_fft=2048, hop=512)
    assert power.shape == (spectrogram.ROWS, 1 + (2 * RATE - 2048) // 512)
    row = int(spectrogram._mel(hertz) / spectrogram._mel(RATE / 2) * spectrogram.ROWS)
    assert abs(int(power.mean(1).argmax()) - row) <= 1


def test_steps_are_integrated_between_edges():
    steps = np.array([[1.0, 3.0, 5.0, 7.0]])
    edges = np.array([0, 0.5, 1.5, 2, 4])  # half a step, two halves, half a step, two steps
    assert spectrogram._integrate(steps, edges) == pytest.approx(np.array([[0.5, 2, 1.5, 12]]))


@pytest.mark.parametrize("frames", [700_000, 4001, 2048, 300, 1])
def test_blocks_of_any_length_make_the_same_spectrogram(frames):
    song = noise(frames)
    whole = spectrogram.power(song, RATE, n_fft=2048, hop=512)
    cuts = np.unique(np.random.default_rng(1).integers(0, frames, 30))
    streamed = Spectrogram(frames, RATE, n_fft=2048, hop=512)
    for block in np.split(song, cuts, axis=1):
        streamed.push(block)
    assert whole.shape[1] <= spectrogram.COLUMNS
    np.testing.assert_allclose(streamed.power, whole, rtol=1e-5)
    assert streamed.power.min() > 0


def test_each_window_has_the_power_of_its_samples():
    song, starts = noise(170_000), np.arange(0, 170_000 - 2047, 512)
    window = np.sin(np.pi * np.arange(2048) / 2048) ** 2
    spectra = np.abs(np.fft.rfft(np.stack([song[:, start : start + 2048] for start in starts]) * window))
    found = Spectrogram(170_000, RATE, n_fft=2048, hop=512)
    found.push(song)
    np.testing.assert_allclose(np.diff(found.row_edges) @ found.power, (spectra**2).mean(1).sum(-1), rtol=1e-4)


def test_a_click_appears_at_its_time():
    song = np.zeros((1, 20 * RATE), np.float32)
    song[0, 5 * RATE] = 1
    power = spectrogram.power(song, RATE, n_fft=2048, hop=512).sum(0)
    assert abs(int(power.argmax()) - power.size / 4) <= 1
    assert np.count_nonzero(power) <= 3


def test_memory_does_not_grow_with_the_song():
    block = noise(RATE)  # one second

    def peak(seconds):
        tracemalloc.start()
        figure = SeparationFigure(seconds * RATE, RATE)
        for _ in range(seconds):
            figure.push(block, block, block)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(2)  # caches are filled once
    assert peak(24) < 1.1 * peak(6)


def test_four_panels_show_the_signals_and_the_mask():
    song = noise(2 * RATE)
    picture = pixels(draw(song, RATE, 0.5 * song, 0.25 * song))
    frames = np.flatnonzero(picture[:, 100:600].sum(-1).max(1) < 60)  # black lines around each panel
    edges = frames[np.diff(frames, prepend=0) > 5]
    assert len(edges) == 8
    colours = [picture[a + 10 : b - 10, 100:600].mean((0, 1)) for a, b in edges.reshape(4, 2)]
    assert colours[0].sum() > colours[1].sum() > colours[2].sum()
    half = colormaps["viridis"].resampled(spectrogram.SHADES)(0.5)[:3]
    assert colours[3] == pytest.approx(np.array(half) * 255, abs=3)


def test_the_mask_is_blank_where_the_mixture_is_silent():
    song = noise(2 * RATE)
    song[:, RATE:] = 0
    picture = pixels(draw(song, RATE, song, 0 * song))
    assert (picture[-150:-100, 600] == 255).all()
    assert (picture[-150:-100, 200] != 255).any()


@pytest.mark.parametrize(
    ("song", "rate"),
    [
        (noise(1), RATE),
        (noise(3, channels=4), 500),
        (noise(5000, channels=1), 192_000),
        (np.zeros((1, 5000), np.float32), 8000),
        (np.zeros((2, 1), np.float32), RATE),
    ],
)
def test_any_song_can_be_drawn(song, rate):
    assert pixels(draw(song, rate, song, song)).shape == (820, 820, 3)


@pytest.mark.parametrize("title", ["A$AP feat. _^{ Ke$ha", "日本 — 音", "long " * 50 + "\n"])
def test_any_title_makes_a_small_file(title):
    song = noise(2 * RATE)
    assert len(draw(song, RATE, 0.5 * song, 0.5 * song, title)) < 150_000


@pytest.mark.parametrize(
    ("seconds", "first", "last", "unit"),
    [
        (0.00002, "0", "0", "s"),
        (1e4, "0:00", "160:00", "min:s"),
        (2.5, "0", "2.5", "s"),
        (75.0, "0", "70", "s"),
        (300.0, "0:00", "5:00", "min:s"),
    ],
)
def test_ticks_of_the_time_axis(seconds, first, last, unit):
    grid = Figure().subplots(2, 1)
    spectrogram._label(grid, seconds, RATE)
    labels = [label.get_text() for label in grid[-1].get_xticklabels()]
    assert labels[0] == first
    assert labels[-1] == last
    assert len(labels) <= 11
    assert grid[-1].get_xlabel() == unit


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match="spectrograms need the package matplotlib; install it with: pip install"):
        SeparationFigure(100, RATE)
