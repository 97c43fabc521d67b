"""Speech taken apart and sung: syllables, keys, melodies, pitch."""

from itertools import pairwise

import numpy as np
import pytest
from helpers.recordings import RATE, instrumental, speech

pytest.importorskip("pyworld")

from twinsep.data.recordings.singing import Key, Manner, SungSyllable, draw_manner, find_key, melody, set_to_music, sing
from twinsep.data.recordings.speech import FRAME, analyse, trim
from twinsep.data.synth.composition import MAJOR, MINOR

PLAIN = Manner(formants=1.0, vibrato_depth=0.0, vibrato_rate=5.0, glide=0.02, scoop=0.0)


@pytest.fixture(scope="module")
def phrase():
    return analyse(speech(4, 140.0))


def test_syllables_and_pitch_are_found(phrase):
    assert len(phrase.syllables) == 4
    assert phrase.syllables[0][0] == 0
    assert all(a[1] == b[0] for a, b in pairwise(phrase.syllables))
    assert 69 + 12 * np.log2(140 / 440) == pytest.approx(phrase.median_key, abs=0.5)
    assert phrase.log_power.shape == phrase.aperiodicity.shape == (len(phrase.f0), phrase.log_power.shape[1])


def test_what_is_no_speech_has_no_syllable():
    assert analyse(np.zeros(RATE // 2)) is None
    burst = np.zeros(RATE // 2)
    burst[RATE // 4 : RATE // 4 + 20] = 0.5
    assert analyse(burst) is None


def test_silence_at_the_ends_is_cut():
    said = speech(2)
    padded = np.pad(said, RATE)
    assert len(said) * 0.7 < len(trim(padded)) < len(said) + 0.1 * RATE
    assert len(trim(np.zeros(1000))) == 0
    assert len(trim(np.zeros(0))) == 0


def test_the_key_of_a_chord_is_found():
    song = instrumental(2)
    assert find_key(song) == Key(0, MAJOR)
    assert find_key(song[: RATE // 10]).scale in (MAJOR, MINOR)  # shorter than a window


def test_melodies_stay_in_the_key_and_near_the_voice():
    for seed in range(20):
        keys = melody(np.random.default_rng(seed), 30, Key(2, MINOR), 60.0)
        assert all((k - 2) % 12 in MINOR for k in keys)
        assert all(53 <= k <= 69 for k in keys)


def test_syllables_follow_each_other_in_song(phrase):
    sung = set_to_music(np.random.default_rng(0), phrase, Key(0, MAJOR), 0.5, 60.0)
    assert len(sung) == 4
    for a, b in pairwise(sung):
        assert b.start == pytest.approx(a.start + a.seconds)
    assert all(s.seconds >= 0.16 for s in sung)


def test_the_melody_is_what_is_sung(phrase):
    keys = (60, 64, 62, 67)
    notes = tuple(
        SungSyllable(lo, hi, 0.1 + 0.6 * n, ((key, 0.6),))
        for n, ((lo, hi), key) in enumerate(zip(phrase.syllables, keys, strict=True))
    )
    sound, f0 = sing(np.random.default_rng(0), phrase, notes, PLAIN)
    assert np.isfinite(sound).all()
    assert len(sound) == pytest.approx((0.1 + 4 * 0.6 + 0.4) * RATE, abs=0.02 * RATE)
    for n, key in enumerate(keys):
        middle = f0[round((0.1 + 0.6 * n + 0.15) / FRAME) : round((0.1 + 0.6 * n + 0.45) / FRAME)]
        assert 69 + 12 * np.log2(np.median(middle[middle > 0]) / 440) == pytest.approx(key, abs=0.4)
        start = round((0.1 + 0.6 * n + 0.15) * RATE)
        part = sound[start : start + RATE // 4] * np.hanning(RATE // 4)
        spectrum = np.abs(np.fft.rfft(part, 8 * RATE))
        near = 440 * 2 ** ((key - 69) / 12)
        low = slice(round(8 * near * 0.9), round(8 * near * 1.1))
        assert (low.start + np.argmax(spectrum[low])) / 8 == pytest.approx(near, rel=0.03)
    again, _ = sing(np.random.default_rng(0), phrase, notes, PLAIN)
    assert np.array_equal(sound, again)


def test_a_held_vowel_moves_and_a_double_differs(phrase):
    (lo, hi), *_ = phrase.syllables
    note = (SungSyllable(lo, hi, 0.0, ((60, 0.4), (62, 0.4))),)
    rng = np.random.default_rng(1)
    lead, _ = sing(rng, phrase, note, draw_manner(rng, 1.0))
    double, _ = sing(rng, phrase, note, draw_manner(rng, 1.01, 0.1))
    assert lead.shape == double.shape
    assert np.corrcoef(lead, double)[0, 1] < 0.95
