"""Systems, score records and summaries."""

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from ablations.fault_injection import write_song
from torch_impl.train import Trainer
from twinsep import checkpoints
from twinsep.checkpoints import Checkpoint
from twinsep.config import SOURCES
from twinsep.data.dataset import tracks
from twinsep.errors import InputError
from twinsep.evaluation import bss_eval, evaluate, systems


def values(records, metric, target="instrumental", split="test"):
    return [r["value"] for r in records if (r["metric"], r["target"], r["split"]) == (metric, target, split)]


def test_floors_lie_below_the_ceiling(micro, songs):
    scores = {}
    for name in systems.BASELINES:
        system = systems.baseline_system(name, micro.model, str(songs))
        records = evaluate.score_songs(system, micro.model, str(songs), ["test", "real"])
        scores[name] = values(records, "usdr")[0]
        assert len(records) == 2 * 2 * 6  # splits, stems, metrics
    assert scores["mixture"] < scores["band_gain"] < scores["level_regression"] < scores["ideal_mask"]
    assert scores["level_regression"] < scores["weighted_regression"] < scores["ideal_mask"]


def test_scores_of_silent_vocals_are_finite_or_null(micro, songs):
    system = systems.baseline_system("mixture", micro.model, str(songs))
    records = evaluate.score_songs(system, micro.model, str(songs), ["test"])
    assert values(records, "usdr", "vocals") == [pytest.approx(0, abs=0.01)]
    assert values(records, "csdr", "vocals") == [None]  # museval drops frames with a silent estimate
    json.dumps(records, allow_nan=False)


def test_band_gains_are_the_least_squares_ones(micro, songs):
    gains = systems.fit_band_gains(micro.model, str(songs))["instrumental"]
    x, y = [], []
    for song in tracks(songs, "train"):
        x.append(systems._stft(song.read("mixture"), micro.model))
        y.append(systems._stft(song.read("instrumental"), micro.model))
    for lo, hi in micro.model.band_table[[0, 7, 17]]:
        a, b = (np.concatenate([s[:, lo:hi].ravel() for s in spectra]).astype(complex) for spectra in (x, y))
        best = (np.vdot(a, b) / np.vdot(a, a)).real
        assert gains[lo:hi] == pytest.approx(best, rel=1e-4)


def spectra(config, songs=3, frames=400):
    """STFTs of songs whose levels vary from frame to frame and from mid to side, and stems that do not follow them."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(songs):
        mid, side, other = rng.standard_normal((2, 3, config.n_bins, frames)).transpose(1, 2, 3, 0) @ (1, 1j)
        levels = np.exp(1.5 * rng.standard_normal((2, config.n_bands, frames)))
        mid, side = (z * systems.per_bin(level, config) for z, level in zip((mid, side), levels, strict=True))
        x = np.stack([mid + side, mid - side])
        found.append((x, {"instrumental": 0.4 * x + other}))
    return found


def gains_of(weights, x, config):
    return systems.per_bin(weights @ systems.level_features(x, config), config)


def test_the_features_are_log_levels_and_ratios_of_side_to_mid(micro):
    ((x, _),) = spectra(micro.model, 1, 5)
    features = systems.level_features(x, micro.model)
    lo, hi = micro.model.band_table[7]
    left, right = x[:, lo:hi, 3]
    mid, side = (np.mean(np.abs(z / 2) ** 2) for z in (left + right, left - right))
    k = micro.model.n_bands
    assert features[:, 3][[0, 8, k + 8]] == pytest.approx([1, np.log(mid + side + 1e-6), np.log(side / mid)], abs=1e-4)
    assert mid + side == pytest.approx((np.mean(np.abs(left) ** 2) + np.mean(np.abs(right) ** 2)) / 2)
    assert systems.level_features(0 * x, micro.model)[1:, 0] == pytest.approx([np.log(1e-6)] * k + [0] * k)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_regression_finds_gains_that_are_linear_in_levels(weighted, micro, monkeypatch):
    model = micro.model
    rng = np.random.default_rng(1)
    weights = 0.002 * rng.standard_normal((model.n_bands, 1 + 2 * model.n_bands))  # gains between 0 and 1
    weights[:, 0] += 0.5
    made = [(x, {"instrumental": (gains_of(weights, x, model) + 0.3j) * x}) for x, _ in spectra(model)]
    monkeypatch.setattr(systems, "_training_spectra", lambda *_: made)
    monkeypatch.setattr(systems, "_RIDGE", 1e-9)
    found = systems.fit_level_regression(model, "", weighted=weighted)["instrumental"]
    assert found == pytest.approx(weights, abs=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_regression_has_the_least_squared_error_over_all_songs(weighted, micro, monkeypatch):
    model, made = micro.model, spectra(micro.model)
    monkeypatch.setattr(systems, "_training_spectra", lambda *_: made)
    found = systems.fit_level_regression(model, "", weighted=weighted)["instrumental"]
    for k, (lo, hi) in enumerate(model.band_table):
        rows, wanted = [], []
        for x, stems in made:
            phi, y = systems.level_features(x, model).T, stems["instrumental"]
            power = np.sum(np.abs(x[:, lo:hi]) ** 2, (0, 1))
            product = np.sum((x[:, lo:hi].conj() * y[:, lo:hi]).real, (0, 1))
            factor = np.sqrt(power) if weighted else np.ones_like(power)
            best = product / power if weighted else np.clip(product / power, 0, 1)
            rows.append(factor[:, None] * phi)
            wanted.append(factor * best)
        total = np.square(np.concatenate(rows)[:, 0]).sum()
        ridge = np.sqrt(systems._RIDGE * total) * np.eye(phi.shape[1])[1:]
        design, target = np.concatenate([*rows, ridge]), np.concatenate([*wanted, np.zeros(len(ridge))])
        assert found[k] == pytest.approx(np.linalg.lstsq(design, target)[0], abs=1e-6)


def test_the_weighted_regression_without_variation_is_the_fixed_gain(micro, monkeypatch):
    model = micro.model
    x = np.ones((2, model.n_bins, 50), complex)
    x[:, slice(*model.band_table[5])] = 0  # a band that is silent in every song
    made = [(x, {"instrumental": np.where(np.arange(50) < 20, 0.5, 0.25) * x})]
    monkeypatch.setattr(systems, "_training_spectra", lambda *_: made)
    weights = systems.fit_level_regression(model, "", weighted=True)["instrumental"]
    gains = weights @ systems.level_features(x, model)
    best = systems.least_squares_gains(made, model)["instrumental"]
    assert gains == pytest.approx(np.repeat(best[:, None], 50, 1), abs=1e-6)
    assert best[5] == 0


def test_the_gains_of_a_regression_are_clipped(micro, songs):
    mixture = tracks(songs, "test")[0].read("mixture")
    weights = np.zeros((2, micro.model.n_bands, 1 + 2 * micro.model.n_bands))
    weights[:, :, 0] = [[1.5], [-0.5]]
    loud, quiet = (systems.level_mask(mixture, w, micro.model) for w in weights)
    assert (loud.min(), loud.max(), quiet.min(), quiet.max()) == (1, 1, 0, 0)


def test_fitting_reports_its_progress(micro, songs):
    reports = []
    systems.baseline_system("level_regression", micro.model, str(songs), lambda *done: reports.append(done))
    assert reports == [(1, 2), (2, 2)]


def test_a_checkpoint_is_scored_with_museval(micro, tmp_path):
    state = Trainer(micro).state()
    checkpoints.write(tmp_path / "c.safetensors", Checkpoint(micro, state))
    evaluate.evaluate_checkpoint(tmp_path / "c.safetensors", out=tmp_path / "out", splits=["test"], museval=True)
    records = json.loads((tmp_path / "out" / "metrics.json").read_text())
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {r["metric"] for r in records} == {
        *("bleedless", "fullness", "csdr", "usdr", "si_sdr", "leakage"),
        *("museval_sdr", "museval_sir", "museval_sar", "museval_isr"),
    }  # fmt: skip
    assert values(records, "museval_sdr") == pytest.approx(values(records, "csdr"), abs=1e-3)
    evaluate.evaluate_checkpoint(tmp_path / "c.safetensors", out=tmp_path / "few", splits=["test"], bleedless=False)
    few = json.loads((tmp_path / "few" / "metrics.json").read_text())
    assert few == [r for r in records if r["metric"] in ("csdr", "usdr", "si_sdr", "leakage")]
    assert summary["test"]["instrumental"]["usdr"] == {
        "median": values(records, "usdr")[0],
        "mean": values(records, "usdr")[0],
        "n": 1,
    }


def test_a_song_without_voice_has_no_score_for_it(micro, tmp_path):
    write_song(tmp_path / "test" / "hum", silent=("vocals",))
    write_song(tmp_path / "test" / "song")
    (tmp_path / "splits.csv").write_text("track,split\nhum,test\nsong,test\n")
    system = systems.baseline_system("ideal_mask", micro.model, str(tmp_path))
    records = evaluate.score_songs(system, micro.model, str(tmp_path), ["test"], museval=True)
    assert values(records, "usdr", "vocals")[0] is None
    assert values(records, "museval_sdr", "vocals")[0] is None
    assert values(records, "museval_sdr")[0] == pytest.approx(values(records, "csdr")[0], abs=1e-3)
    assert evaluate.summarise(records)["test"]["vocals"]["usdr"]["n"] == 1


def four_stems(seed=0, seconds=1):
    """Four stems (4, 2, S) and estimates that hold some of each other."""
    rng = np.random.default_rng(seed)
    truths = rng.standard_normal((4, 2, 8000 * seconds)).astype(np.float32)
    leak = np.eye(4) + 0.2 * rng.standard_normal((4, 4))
    return truths, np.einsum("ij,jcs->ics", leak, truths).astype(np.float32)


METRICS = ("sdr", "isr", "sir", "sar")


@pytest.fixture
def short_filters(monkeypatch):
    """museval with filters of 16 taps, not 512, in this process: which stems are compared does not depend on them."""
    museval = bss_eval._metrics()
    monkeypatch.setattr(museval, "bss_eval", partial(museval.bss_eval, filters_len=16))
    monkeypatch.setattr(evaluate, "_pool", lambda wanted: ThreadPoolExecutor(1) if wanted else contextlib.nullcontext())


@pytest.mark.usefixtures("short_filters")
def test_only_a_silent_stem_has_no_score_of_museval():
    truths, estimates = four_stems()
    truths[1] = 0
    found = evaluate._museval_medians(truths, estimates, 8000)
    without = evaluate._museval_medians(truths[[0, 2, 3]], estimates[[0, 2, 3]], 8000)
    for name in METRICS:
        row = np.array(found[f"museval_{name}"])
        assert np.isnan(row).tolist() == [False, True, False, False]
        np.testing.assert_array_equal(row[[0, 2, 3]], without[f"museval_{name}"])


@pytest.mark.usefixtures("short_filters")
def test_a_silent_estimate_takes_no_score_from_the_other_stems():
    truths, estimates = (stems[:3] for stems in four_stems())
    whole = evaluate._museval_medians(truths, estimates, 8000)
    estimates[1] = 0
    found = evaluate._museval_medians(truths, estimates, 8000)
    for name in METRICS:
        wanted = np.array(whole[f"museval_{name}"])
        wanted[1] = np.nan
        np.testing.assert_allclose(found[f"museval_{name}"], wanted, rtol=1e-6)


def test_a_single_reference_has_no_interference():
    truths, estimates = four_stems()
    found = evaluate._museval_medians(truths[:1], estimates[:1], 8000)
    assert np.isnan(found["museval_sir"]).all()
    assert np.isfinite([found[f"museval_{name}"] for name in ("sdr", "isr", "sar")]).all()
    assert np.isnan(evaluate._museval_medians(0 * truths, estimates, 8000)["museval_sdr"]).all()


@pytest.mark.usefixtures("short_filters")
def test_the_set_of_references_stands_beside_museval_s_numbers(micro, tmp_path, capsys, monkeypatch):
    for name, silent in (("loud", ()), ("hum", ("drums",))):
        write_song(tmp_path / "test" / name, seconds=1.0, silent=silent)
    (tmp_path / "splits.csv").write_text("track,split\nhum,test\nloud,test\n")
    stems = ("drums", "bass", "other", "vocals")
    found = {}
    for targets in (("instrumental",), stems):
        model = micro.override({"model": {"targets": targets}}).model

        def system(song, mixture, targets=targets):
            return {target: 0.5 * song.read(target) + 0.1 * mixture for target in targets}

        found[targets] = evaluate.score_songs(system, model, str(tmp_path), ["test"], museval=True)
    two, four = ({(r["track"], r["target"], r["metric"]): r for r in found[key]} for key in found)
    assert all(("references" in r) == r["metric"].startswith("museval_") for r in found[stems])
    assert two["loud", "vocals", "museval_sir"]["references"] == "instrumental, vocals"
    assert four["loud", "vocals", "museval_sir"]["references"] == "drums, bass, other, vocals"
    assert four["hum", "vocals", "museval_sir"]["references"] == "bass, other, vocals"
    assert [four["hum", stem, "museval_sdr"]["value"] is None for stem in stems] == [True, False, False, False]
    assert two["loud", "vocals", "museval_sir"]["value"] != four["loud", "vocals", "museval_sir"]["value"]
    summary = evaluate.summarise(found[stems])
    assert summary["test"]["vocals"]["museval_sar"]["references"] == {
        "bass, other, vocals": 1,
        "drums, bass, other, vocals": 1,
    }
    assert summary["test"]["drums"]["museval_sar"]["references"] == {"drums, bass, other, vocals": 1}
    assert summary["test"]["drums"]["museval_sar"]["n"] == 1
    monkeypatch.setenv("COLUMNS", "160")
    evaluate._print_summary(summary)
    assert "bass, other, vocals (1)" in " ".join(capsys.readouterr().out.split())


def test_an_estimate_of_another_length_is_refused(micro, songs):
    with pytest.raises(InputError, match=r"t: instrumental has shape \(2, 5\)"):
        evaluate.score_songs(
            lambda *_: {"instrumental": np.zeros((2, 5), np.float32)}, micro.model, str(songs), ["test"]
        )


def test_an_unknown_baseline_is_refused(micro, songs):
    with pytest.raises(InputError, match="unknown baseline 'magic'"):
        systems.baseline_system("magic", micro.model, str(songs))


def test_a_system_of_all_sources_has_a_score_of_the_instrumental(micro, songs):
    model = micro.override({"model": {"targets": ["drums", "bass", "other", "vocals", "piano"]}}).model

    def system(track, mixture):
        return {stem: track.read(stem) for stem in SOURCES} | {"piano": mixture}

    records = evaluate.score_songs(system, model, str(songs), ["test"])
    usdr = {r["target"]: r["value"] for r in records if r["metric"] == "usdr"}
    assert set(usdr) == {*SOURCES, "instrumental"}  # no data set has a piano
    assert usdr["instrumental"] > 60
