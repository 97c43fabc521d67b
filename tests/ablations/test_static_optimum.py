"""The static optima: losses whose best constant gain is known, and the files of the stage."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter

from ablations import settings
from ablations.stages import static_optimum
from ablations.stages.static_optimum import STARTS, Segment, constant_gains, least_squares, objective
from twinsep.config import preset
from twinsep.data.dataset import tracks
from twinsep.evaluation import evaluate, systems

#: Ratios of target to mixture, one in three segments each: the median is 0.8, the mean 0.6.
RATIOS = (0.8, 1.0, 0.0)


def config(**loss):
    return preset("tiny").override({"model": {"bands": "vocal18"}, "loss": loss})


def scaled(ratios, count=180, samples=4_000):
    """Segments of white noise whose target is the mixture times one of the ratios, in turn."""
    noise = 0.1 * np.random.default_rng(0).standard_normal((count, 2, samples)).astype(np.float32)
    return [Segment(x, np.float32(ratios[i % len(ratios)]) * x) for i, x in enumerate(noise)]


def fit(segments, start=0.5, **weights):
    chosen = config(weights=weights)
    return constant_gains(objective(chosen), segments, chosen.model, start)


@pytest.mark.parametrize("start", STARTS)
def test_the_gain_of_an_absolute_error_is_the_median(start):
    assert fit(scaled(RATIOS), start, magnitude=1.0) == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("start", STARTS)
def test_the_gain_of_a_squared_error_is_the_one_in_closed_form(start):
    rng = np.random.default_rng(1)
    noise, low = 0.1 * rng.standard_normal((2, 180, 2, 4_000))
    low = lfilter([1], [1, -0.8], low)
    segments = [Segment(np.float32(a + b), np.float32(b)) for a, b in zip(low, noise, strict=True)]
    model = config().model
    best = least_squares(segments, model)
    assert best[0] < 0.1 < 0.7 < best[-1]  # the bands differ
    found = constant_gains(lambda estimate, target: ((estimate - target) ** 2).mean(), segments, model, start)
    assert found == pytest.approx(best, abs=0.04)
    assert least_squares(scaled(RATIOS), model) == pytest.approx(0.6, abs=0.03)


def test_the_closed_form_is_the_baseline_with_a_fixed_gain_per_band(songs):
    model = config().model
    read = [Segment(song.read("mixture"), song.read("instrumental")) for song in tracks(songs, "train")]
    gains = systems.per_bin(least_squares(read, model), model)
    assert gains == pytest.approx(systems.fit_band_gains(model, str(songs))["instrumental"].clip(0, 1))


def test_gains_stay_between_0_and_1():
    louder, inverted = scaled([2.0], 20), scaled([-1.0], 20)
    assert fit(louder, magnitude=1.0) == pytest.approx(1)
    assert least_squares(louder, config().model) == pytest.approx(1)
    assert fit(inverted, waveform_l1=1.0) == pytest.approx(0, abs=1e-3)
    assert least_squares(inverted, config().model) == pytest.approx(0)


@pytest.mark.parametrize("start", STARTS)
def test_si_sdr_leaves_the_scale_where_it_started(start):
    assert fit(scaled([0.3], 20), start, si_sdr=1.0) == pytest.approx(start, abs=1e-3)


def test_bins_without_a_band_get_one_half():
    model = preset("tiny").override({"model": {"bands": "reference68"}}).model
    (segment,) = scaled([1.0], 1)
    ones = static_optimum.torch.ones(model.n_bands)
    found = static_optimum.apply_gains(ones, segment.mixture, model).numpy()
    mask = systems.per_bin(np.ones(model.n_bands), model)[:, None]
    assert 0.5 in mask
    assert found == pytest.approx(systems.masked(segment.mixture, mask, model), abs=1e-5)


def test_gains_are_scored_as_the_baselines_are(micro, songs):
    gains = systems.least_squares_gains(systems._training_spectra(micro.model, str(songs), None), micro.model)
    scores = static_optimum.score({"a": [gains["instrumental"]]}, micro, lambda *_: None)
    for split in ("valid", "test"):
        system = systems.baseline_system("band_gain", micro.model, str(songs))
        records = evaluate.score_songs(system, micro.model, str(songs), [split])
        mean = evaluate.summarise(records)[split]["instrumental"]["usdr"]["mean"]
        assert scores["a"][0][split] == pytest.approx(mean, abs=1e-3)


def test_the_stage_writes_a_line_for_each_loss(songs, tmp_path, monkeypatch):
    params = {**settings.params(), "profile": "smoke", "data": {"root": str(songs), "seed": 0}}
    monkeypatch.setattr(settings, "params", lambda: params)
    monkeypatch.chdir(tmp_path)
    static_optimum.main()
    record = json.loads(static_optimum.OUT.read_text())
    table = pd.read_csv(static_optimum.TABLES / "static_optimum.csv").set_index("loss")
    assert {"mean gain", "valid uSDR", "test uSDR"} <= set(table)
    rows = [row for row in settings.rows() if "loss" in settings.axes(row)]
    assert {"reference-mix", "reference-v1", "compressed", "log-floor"} <= set(rows)
    losses = ["default", *rows, "band alone", "log_magnitude alone"]
    assert list(table.index) == ["mixture", *losses, "least squares"]
    assert list(record["optima"]) == list(table.index)
    assert record["segments"]["number"] == settings.configuration("torch-default", 0).training.steps
    for row in ("default", "reference-v1", "log-floor"):
        loss = settings.configuration(f"torch-{row}", 0).loss
        assert record["optima"][row]["loss"] == {"terms": loss.weights, "log_floor": loss.log_floor}
    assert {len(optimum["fits"]) for optimum in record["optima"].values() if optimum["loss"]} == {len(STARTS)}
    system = systems.baseline_system("mixture", preset("tiny").model, str(songs))
    records = evaluate.score_songs(system, preset("tiny").model, str(songs), ["test"])
    usdr = next(r["value"] for r in records if (r["target"], r["metric"]) == ("instrumental", "usdr"))
    assert table.loc["mixture", ["mean gain", "test uSDR"]].tolist() == [1, pytest.approx(usdr, abs=1e-3)]
    text = (static_optimum.TABLES / "static_optimum.md").read_text()
    assert "fitted to 4 training segments of 1.5 s" in text
    assert "waveform: 1 waveform_l1 + 1 mr_stft_complex" in text
    assert "log-floor: 0.25 magnitude + 0.5 band + 2.5 si_sdr, floor 1e-07" in text
    assert r"\begin{tabular}" in (static_optimum.TABLES / "static_optimum.tex").read_text()
