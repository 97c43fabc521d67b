"""Metrics against their definitions and museval, and their values for silence."""

import math
from functools import partial

import numpy as np
import pytest

from twinsep import metrics
from twinsep.errors import InputError
from twinsep.evaluation import bss_eval

RATE = 8000


def pair(seconds=3.0, error=0.2, sources=1, seed=0):
    """Coloured stereo noise (estimate, reference), each (sources, 2, S); the estimate is filtered and has an error."""
    rng = np.random.default_rng(seed)
    white = rng.standard_normal((sources, 2, round(seconds * RATE)))
    reference = 0.1 * (white + 0.7 * np.roll(white, 1, axis=-1) + 0.3 * white[:, ::-1])
    other = np.roll(reference, 1, axis=0) if sources > 1 else 0.1 * rng.standard_normal(white.shape)
    return 0.8 * np.roll(reference, 2, axis=-1) + 0.2 * reference + error * other, reference


def single(xp, *signals, dtype=np.float64):
    return tuple(xp[1](np.asarray(x, dtype)) for x in signals)


def test_mel_filters_are_triangles_of_area_one_between_slaneys_edges():
    filters = metrics.mel_filters(40, 4096, 44_100)
    hz = np.arange(2049) * 44_100 / 4096
    # 1 kHz is mel 15, and 6.4 kHz is mel 42; with 40 bands neighbouring centres are equally far apart in mel.
    top = 15 + 27 * math.log(22.05) / math.log(6.4)
    centre = 20 * top / 41
    expected = 1000 * 6.4 ** ((centre - 15) / 27)
    assert hz[filters[19].argmax()] == pytest.approx(expected, abs=44_100 / 4096)
    np.testing.assert_allclose(filters.sum(1) * 44_100 / 4096, 1, atol=0.02)
    assert (np.diff((filters[19] > 0).nonzero()[0]) == 1).all()


def test_bleedless_and_fullness_of_a_known_gain(xp):
    x = 0.1 * np.random.default_rng(0).standard_normal((2, 2, 20_000))
    (reference,) = single(xp, x)
    for gain, bleedless, fullness in ((2.0, 100 / (1 + 20 * math.log10(2)), 100), (0.5, 100, 100 / (1 + 6.0206))):
        found = metrics.bleedless_fullness(gain * reference, reference, sample_rate=44_100)
        np.testing.assert_allclose(np.asarray(found[0]), bleedless, rtol=1e-3)
        np.testing.assert_allclose(np.asarray(found[1]), fullness, rtol=1e-3)


def test_bleedless_falls_with_what_is_added_and_fullness_with_what_is_removed():
    rng = np.random.default_rng(0)
    x = 0.1 * rng.standard_normal((2, 1_200_000 // 2))  # several parts
    bleeding = metrics.bleedless_fullness(x + 0.1 * rng.standard_normal(x.shape), x, sample_rate=44_100)
    quieter = metrics.bleedless_fullness(x / 4, x, sample_rate=44_100)
    assert bleeding[0] < 50 < quieter[0]
    assert quieter[1] < 10 < bleeding[1]
    assert all(np.isnan(metrics.bleedless_fullness(x, 0 * x, sample_rate=44_100)))


def test_bleedless_and_fullness_agree_with_librosas_log_mel_spectra():
    librosa = pytest.importorskip("librosa")
    rng = np.random.default_rng(0)
    reference = 0.1 * rng.standard_normal((2, 50_000))
    estimate = 0.7 * np.roll(reference, 3, -1) + 0.03 * rng.standard_normal(reference.shape)
    options = {"sr": 44_100, "n_fft": 4096, "hop_length": 1024, "n_mels": 512, "power": 1.0, "pad_mode": "constant"}
    levels = [
        librosa.power_to_db(librosa.feature.melspectrogram(y=y, **options) ** 2, ref=1.0, amin=1e-20, top_db=80)
        for y in (estimate, reference)
    ]
    difference = levels[0] - levels[1]
    wanted = 100 / (1 + difference[difference > 0].mean()), 100 / (1 - difference[difference < 0].mean())
    found = metrics.bleedless_fullness(estimate, reference, sample_rate=44_100)
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


# ---------------------------------------------------------------- definitions


def test_si_sdr_agrees_with_its_definition_and_ignores_gain_and_offset(xp):
    e, x = pair(sources=2)
    wanted = []
    for one, other in zip(e.reshape(2, -1), x.reshape(2, -1), strict=True):
        a, b = one - one.mean(), other - other.mean()
        s = (a @ b) / (b @ b) * b
        wanted.append(10 * np.log10((s @ s) / ((a - s) @ (a - s))))
    for variant in (e, 3 * e, e + 0.5):
        found = metrics.si_sdr(*single(xp, variant, x))
        assert tuple(found.shape) == (2,)
        np.testing.assert_allclose(np.asarray(found), wanted, atol=1e-9)


def test_usdr_agrees_with_the_challenges_definition(xp):
    e, x = pair(sources=2)
    power, error = (np.sum(z**2, axis=(1, 2)) for z in (x, x - e))
    wanted = 10 * np.log10((power + 1e-7) / (error + 1e-7))
    np.testing.assert_allclose(np.asarray(metrics.usdr(*single(xp, e, x))), wanted, atol=1e-9)
    quiet = 1e-6 * e, 1e-6 * x  # so quiet that ε = 1e-7 dominates
    assert float(metrics.usdr(*quiet)[0]) == pytest.approx(
        10 * math.log10((1e-12 * power[0] + 1e-7) / (1e-12 * error[0] + 1e-7)), abs=1e-6
    )


def test_framewise_sdr_of_a_known_error(xp):
    _, x = pair(3.5)
    gains = np.repeat([0.1, 0.01, 0.5], RATE)
    e = x.copy()
    e[..., : 3 * RATE] *= 1 + gains
    found = metrics.framewise_sdr(*single(xp, e, x), sample_rate=RATE)
    np.testing.assert_allclose(np.asarray(found), [[20, 40, 20 * math.log10(2)]], atol=1e-9)  # no partial frame
    np.testing.assert_allclose(np.asarray(metrics.csdr(*single(xp, e, x), sample_rate=RATE)), [20], atol=1e-9)


def test_csdr_is_the_median_of_the_defined_frames(xp):
    _, x = pair(5)
    e = x * (1 + np.repeat([0.1, 0.01, 0.5, 0.3, 0.2], RATE))
    x[..., RATE : 2 * RATE] = 0  # the 40 dB frame
    wanted = np.median([20, *(-20 * np.log10([0.5, 0.3, 0.2]))])
    np.testing.assert_allclose(np.asarray(metrics.csdr(*single(xp, e, x), sample_rate=RATE)), [wanted], atol=1e-9)


def test_float32_results_are_float32_and_close(xp):
    e, x = pair()
    e32, x32 = single(xp, e, x, dtype=np.float32)
    for function in (metrics.si_sdr, metrics.usdr, lambda a, b: metrics.csdr(a, b, sample_rate=RATE)):
        found = function(e32, x32)
        assert found.dtype == x32.dtype
        np.testing.assert_allclose(np.asarray(found), function(e, x), atol=1e-4)


# ---------------------------------------------------------------- museval


@pytest.mark.parametrize("seconds", [0.7, 3.0, 3.4])
def test_framewise_sdr_agrees_with_museval(seconds):
    pytest.importorskip("scipy")
    e, x = pair(seconds, sources=2)
    theirs = bss_eval.bss_eval(x, e, sample_rate=RATE)
    assert set(theirs) == {"SDR", "ISR", "SIR", "SAR"}
    ours = metrics.framewise_sdr(e, x, sample_rate=RATE)
    assert ours.shape == theirs["SDR"].shape == (2, max(1, int(seconds)))
    np.testing.assert_allclose(ours, theirs["SDR"], atol=1e-3)
    # museval's other metrics depend on the projections: here a delay of two samples is two thirds of the error.
    assert (theirs["SIR"] > ours + 1).all()


def test_framewise_sdr_with_overlap_agrees_with_museval():
    e, x = pair(2.6)
    grid = {"sample_rate": RATE, "window_seconds": 0.5, "hop_seconds": 0.3}
    np.testing.assert_allclose(metrics.framewise_sdr(e, x, **grid), bss_eval.bss_eval(x, e, **grid)["SDR"], atol=1e-3)


@pytest.mark.parametrize("what", ["reference", "estimate", "opposite channels"])
def test_frames_ignored_by_museval_are_nan(what):
    e, x = pair()
    frame = slice(RATE, 2 * RATE)
    if what == "opposite channels":  # museval detects silence from the sum of the channels
        x[:, 1, frame] = -x[:, 0, frame]
    else:
        (x if what == "reference" else e)[..., frame] = 0
    theirs, ours = bss_eval.bss_eval(x, e, sample_rate=RATE)["SDR"], metrics.framewise_sdr(e, x, sample_rate=RATE)
    assert np.isnan(theirs).tolist() == np.isnan(ours).tolist() == [[False, True, False]]
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_bss_eval_clips_a_perfect_estimate_to_the_cap():
    _, x = pair(2, sources=2)
    found = bss_eval.bss_eval(x, x, sample_rate=RATE)
    assert all(np.isfinite(values).all() for values in found.values())
    assert (metrics.framewise_sdr(x, x, sample_rate=RATE) == 100).all()


def test_bss_eval_solves_singular_equations_by_least_squares(monkeypatch):
    museval = bss_eval._metrics()
    monkeypatch.setattr(museval, "bss_eval", partial(museval.bss_eval, filters_len=16))
    e, x = pair(2, sources=2)
    wanted = bss_eval.bss_eval(x, e, sample_rate=RATE)

    def singular(*_):  # it depends on the processor for which frames LAPACK says so
        raise np.linalg.LinAlgError("Singular matrix")

    monkeypatch.setattr(museval.np.linalg, "solve", singular)
    found = bss_eval.bss_eval(x, e, sample_rate=RATE)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, atol=1e-6)


def test_bss_eval_rejects_invalid_inputs_that_museval_scores():
    e, x = pair(1)
    broken = e.copy()
    broken[0, 0, 7] = np.nan
    for references, estimates, words in (
        (x, e[..., :-1], r"not \(1, 2, 8000\) and \(1, 2, 7999\)"),
        (x[0], e[0], "one shape"),
        (x, broken, "the estimates hold NaN"),
        (broken, e, "the references hold NaN"),
        (0 * x, e, "reference 0 is silent throughout"),
        (x, 0 * e, "estimate 0 is silent throughout"),
    ):
        with pytest.raises(InputError, match=words):
            # Without jaxtyping's check, which would reject two of these first.
            getattr(bss_eval.bss_eval, "__wrapped__", bss_eval.bss_eval)(references, estimates, sample_rate=RATE)
    with pytest.raises(InputError, match="at least a sample"):
        bss_eval.bss_eval(x, e, sample_rate=RATE, hop_seconds=0.0)


def test_museval_is_loaded_without_its_package(monkeypatch):
    import importlib.util
    import sys

    assert bss_eval._metrics() is bss_eval._metrics()
    assert not any(name.split(".")[0] in ("museval", "musdb", "stempeg") for name in sys.modules)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    bss_eval._metrics.cache_clear()
    with pytest.raises(InputError, match="museval is not installed"):
        bss_eval._metrics()


# ---------------------------------------------------------------- leakage


def test_leakage_is_the_remaining_energy_in_silence(xp):
    rng = np.random.default_rng(0)
    m = 0.1 * rng.standard_normal((2, 2 * RATE))
    x, e = m.copy(), m.copy()
    x[:, RATE:] = 0
    e[:, RATE:] *= 0.1
    found = metrics.leakage(*single(xp, e, x, m), sample_rate=RATE)
    assert float(found) == pytest.approx(-20, abs=1e-9)
    e[:, :RATE] = 0  # outside the silence nothing counts as leakage
    assert float(metrics.leakage(*single(xp, e, x, m), sample_rate=RATE)) == pytest.approx(-20, abs=1e-9)


def test_leakage_weighs_frames_by_energy_and_silence_by_level():
    m = np.ones((2, 400))
    m[:, 200:300] = 2.0
    x = np.zeros_like(m)
    x[:, :100] = 0.5  # not silent
    x[:, 300:] = 0.9e-3  # −61 dB of full scale: silent
    e = np.zeros_like(m)
    e[:, 200:300], e[:, :100] = 1.0, 7.0
    options = {"sample_rate": 1000, "frame_seconds": 0.1}
    assert metrics.leakage(e, x, m, **options) == pytest.approx(10 * math.log10(1 / (1 + 4 + 1)))
    assert metrics.leakage(e, x, m, **options, silence_dbfs=-70.0) == pytest.approx(10 * math.log10(1 / (1 + 4)))


# ---------------------------------------------------------------- silence


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_perfect_and_hopeless_estimates_and_silent_references(xp, dtype):
    e, x = pair()
    e, x, zero = single(xp, e, x, 0 * x, dtype=dtype)

    def framewise(a, b):
        return metrics.csdr(a, b, sample_rate=RATE)

    for function in (metrics.si_sdr, metrics.usdr, framewise):
        assert float(function(10 * x, 10 * x)[0]) == 100
        assert math.isnan(float(function(e, zero)[0]))
        assert math.isnan(float(function(zero, zero)[0]))
    assert float(metrics.si_sdr(zero, x)[0]) == -100
    assert float(metrics.usdr(zero, x)[0]) == pytest.approx(0, abs=1e-6)
    assert float(metrics.usdr(1e9 * x, x)[0]) == -100
    assert math.isnan(float(framewise(zero, x)[0]))


def test_leakage_without_silence_or_energy(xp):
    _, x = pair()
    x, zero = single(xp, x, 0 * x)
    assert math.isnan(float(metrics.leakage(x, x, x, sample_rate=RATE)[0]))  # no silent frame
    assert math.isnan(float(metrics.leakage(x, zero, zero, sample_rate=RATE)[0]))  # nothing to leak
    assert float(metrics.leakage(zero, zero, x, sample_rate=RATE)[0]) == -100
    assert float(metrics.leakage(1e9 * x, zero, x, sample_rate=RATE)[0]) == 100


def test_nan_in_an_estimate_gives_nan():
    e, x = pair()
    e[0, 0, 5] = np.nan
    assert np.isnan(metrics.usdr(e, x)).all()
    assert np.isnan(metrics.si_sdr(e, x)).all()


def test_aggregate_skips_nan_and_counts_the_rest():
    assert metrics.aggregate([1.0, math.nan, 2.0, 6.0]) == {"median": 2.0, "mean": 3.0, "n": 3}
    empty = metrics.aggregate([math.nan])
    assert empty["n"] == 0
    assert math.isnan(empty["median"])
    assert math.isnan(empty["mean"])
    with pytest.raises(ValueError, match="infinite"):
        metrics.aggregate([1.0, -math.inf])


def test_shapes_that_differ_are_rejected():
    e, x = pair()
    for function in (metrics.si_sdr, metrics.usdr):
        with pytest.raises(InputError, match="one shape"):
            function(e[..., :-1], x)
    with pytest.raises(InputError, match="one shape"):
        metrics.leakage(e, x, x[0], sample_rate=RATE)
    with pytest.raises(InputError, match="at least one sample"):
        metrics.framewise_sdr(e, x, sample_rate=RATE, window_seconds=1e-9)
    with pytest.raises(InputError, match="holds no sample"):
        metrics.leakage(e, x, x, sample_rate=RATE, frame_seconds=1e-9)
