"""Systems, score records and summaries."""

import json

import numpy as np
import pytest

from ablations.fault_injection import write_song
from torch_impl.train import Trainer
from twinsep import checkpoints
from twinsep.checkpoints import Checkpoint
from twinsep.data.dataset import tracks
from twinsep.errors import InputError
from twinsep.evaluation import evaluate, systems


def values(records, metric, target="instrumental", split="test"):
    return [r["value"] for r in records if (r["metric"], r["target"], r["split"]) == (metric, target, split)]


def test_floors_lie_below_the_ceiling(micro, songs):
    scores = {}
    for name in systems.BASELINES:
        system = systems.baseline_system(name, micro.model, str(songs))
        records = evaluate.score_songs(system, micro.model, str(songs), ["test", "real"])
        scores[name] = values(records, "usdr")[0]
        assert len(records) == 2 * 2 * 4  # splits, stems, metrics
    assert scores["mixture"] < scores["band_gain"] < scores["ideal_mask"]


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


def test_a_checkpoint_is_scored_with_museval(micro, tmp_path):
    state = Trainer(micro).state()
    checkpoints.write(tmp_path / "c.safetensors", Checkpoint(micro, state))
    evaluate.evaluate_checkpoint(tmp_path / "c.safetensors", out=tmp_path / "out", splits=["test"], museval=True)
    records = json.loads((tmp_path / "out" / "metrics.json").read_text())
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {r["metric"] for r in records} == {
        "csdr", "usdr", "si_sdr", "leakage", "museval_sdr", "museval_sir", "museval_sar", "museval_isr",
    }  # fmt: skip
    assert values(records, "museval_sdr") == pytest.approx(values(records, "csdr"), abs=1e-3)
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
    assert evaluate.summarise(records)["test"]["vocals"]["usdr"]["n"] == 1


def test_an_estimate_of_another_length_is_refused(micro, songs):
    with pytest.raises(InputError, match=r"t: instrumental has shape \(2, 5\)"):
        evaluate.score_songs(
            lambda *_: {"instrumental": np.zeros((2, 5), np.float32)}, micro.model, str(songs), ["test"]
        )


def test_an_unknown_baseline_is_refused(micro, songs):
    with pytest.raises(InputError, match="unknown baseline 'magic'"):
        systems.baseline_system("magic", micro.model, str(songs))
