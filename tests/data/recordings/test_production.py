"""Production: widths, mastering, codecs; stems still add up where they must."""

import numpy as np
import pytest
from helpers.recordings import RATE, instrumental, speech

from twinsep.data.recordings import production
from twinsep.data.recordings.production import CODECS


def decibels(ratio):
    return 10 * np.log10(np.sum(np.square(ratio)))


@pytest.fixture
def band():
    return instrumental(2).astype(np.float32)


def test_width_changes_the_side_alone(band):
    wide = production.set_width(band, 6)
    assert np.allclose(wide.sum(1), band.sum(1), atol=1e-6)
    assert np.allclose(wide[:, 0] - wide[:, 1], (band[:, 0] - band[:, 1]) * 10 ** (6 / 20), atol=1e-6)


def test_spread_makes_a_mono_voice_wide_and_keeps_its_mid():
    mono = np.repeat(speech(2)[:, None], 2, 1).astype(np.float32)
    wide = production.spread(mono, 0.01, -6)
    assert np.allclose(wide.mean(1), mono.mean(1), atol=1e-6)
    side = (wide[:, 0] - wide[:, 1]) / 2
    assert decibels(side) - decibels(mono.mean(1)) == pytest.approx(-6, abs=0.1)


def test_mastering_is_one_gain_for_all_stems_and_tames_peaks(band):
    voice = 0.5 * band[::-1]
    voice[RATE : RATE + 50] *= 30
    made = production.master(np.random.default_rng(0), {"vocals": voice, "instrumental": band})
    sounding = (np.abs(band) > 1e-3).all(1) & (np.abs(voice) > 1e-3).all(1)
    gains = [made["vocals"][sounding] / voice[sounding], made["instrumental"][sounding] / band[sounding]]
    assert np.allclose(*gains, rtol=1e-3)
    assert np.abs(made["vocals"]).max() < 0.5 * np.abs(voice).max()


@pytest.mark.parametrize("codec", CODECS)
def test_a_codec_keeps_time_length_and_level(band, codec):
    least, most = CODECS[codec][3]
    for compression in (least, most):
        heard = production.lossy(band, codec, compression)
        assert heard.shape == band.shape
        assert decibels(heard) == pytest.approx(decibels(band), abs=1.5)
        assert decibels(band) - decibels(band - heard) > 5
        assert not np.array_equal(heard, band)
    assert np.array_equal(production.lossy(band, codec, least), production.lossy(band, codec, least))
    assert not production.lossy(np.zeros_like(band), codec, least).any()


@pytest.mark.parametrize("lag", [-300, 0, 137])
def test_a_delay_is_undone(band, lag):
    moved = np.roll(band, lag, 0)[: len(band) - 40]
    aligned = production.align(moved, band)
    assert aligned.shape == band.shape
    assert np.array_equal(aligned[1000:-1000], band[1000:-1000])


def test_a_passage_is_silenced_with_fades(band):
    made = production.fade_out(band, 10_000, 20_000)
    assert not made[10_000:20_000].any()
    assert np.array_equal(made[:8_000], band[:8_000])
    assert np.array_equal(made[22_000:], band[22_000:])
    assert (np.abs(made[9_900]) < 0.1 * np.abs(band[9_900])).all()  # 2 ms before it, of 30 ms
    assert made[9_900].all()


def test_the_equaliser_changes_the_treble_as_asked(band):
    rng = np.random.default_rng(0)
    bright = production.equalise(rng, band, bright=12, spread=0)
    assert bright.shape == band.shape
    spectra = [np.abs(np.fft.rfft(x[:, 0])) for x in (bright, band)]
    hertz = np.fft.rfftfreq(len(band), 1 / RATE)
    for low, high, change in ((100, 700, 0), (12_000, 18_000, 12)):
        inside = (hertz > low) & (hertz < high)
        assert decibels(spectra[0][inside]) - decibels(spectra[1][inside]) == pytest.approx(change, abs=0.5)


def test_the_vocal_chain_keeps_the_length_and_names_what_it_did():
    lead = speech(3).astype(np.float32)
    made, used = production.vocal_chain(np.random.default_rng(0), lead, [lead, lead])
    assert made.shape == (len(lead), 2)
    assert made.dtype == np.float32
    assert "doubles" in used
    assert np.isfinite(made).all()


def test_mastering_survives_silence_after_sound(band):
    """A running sum of powers may end a little below zero there."""
    band = band.copy()
    band[len(band) // 2 :] = 0
    for seed in range(20):
        made = production.master(np.random.default_rng(seed), {"vocals": 0 * band, "instrumental": band})
        assert np.isfinite(made["instrumental"]).all()
