"""The pipeline of the released weights: its definition, and its stages on fabricated recordings, without network."""

import importlib
import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers.recordings import write_recordings

# ruff: noqa: E402 (the imports need the data extra)
for package in ("espeakng_loader", "midirenderer", "pyworld"):
    pytest.importorskip(package)

from ablations import settings as pipeline_settings
from ablations.release import card, export, figure, proof, realism, recordings, scan, settings, songs, train
from twinsep import Separator, checkpoints
from twinsep.audio import spectrogram
from twinsep.checkpoints.initial import describe_initial_weights
from twinsep.config import preset
from twinsep.data.recordings import packages
from twinsep.data.recordings import scan as detector
from twinsep.data.recordings.catalogue import read_catalogue
from twinsep.errors import InputError, TwinsepError
from twinsep.separation.overlap_add import ChunkGrid
from twinsep.separation.separator import load
from twinsep.training.run_dir import BEST, LAST, RECORD

ROOT = Path(__file__).parents[2]
STAGES = yaml.safe_load(settings.PIPELINE.read_text())["stages"]
RECIPE = {
    "scan": {
        "thresholds": {"free_db": -22, "sung_db": -11, "shortest_free": 6, "shortest_sung": 3, "margin": 1},
        "sung_seconds": 4,
    },
    "songs": {
        "seed": 0,
        "counts": {
            "train": {"spoken": 2},
            "valid": {"spoken": 1},
            "test": {"singer": 1, "spoken": 2, "instrumental": 1, "voice": 1},
        },
        "recipe": {
            "seconds": 3,
            "voice_db": [-8, 3],
            "side_db": [-8, 8],
            "spread": 0,
            "spread_db": [-15, -3],
            "low_pass": 0,
            "low_pass_hz": [8000, 20000],
            "codec": 0,
            "master": 0,
            "pause": 0,
            "a_cappella": 0,
            "passage_seconds": [1, 2],
        },
    },
    "training": {
        "framework": "torch",
        "device": "cpu",
        "preset": "tiny",
        "override": {
            "model": {"d_model": 8, "n_heads": 2, "bands": "vocal18", "mixer": {"kind": "conv"}},
            "training": {"segment_seconds": 1.0, "validation_tracks": 1, "validation_seconds": 1, "warmup_steps": 1},
        },
        "phases": [{"steps": 2, "validate_every": 1}, {"steps": 3, "validate_every": 1, "seed": 1}],
    },
    "export": {"bytes": 6_000_000},
    "proof": {"loudness_db": [-3, 0], "passages": 4, "passage_seconds": 2},
}


def half(_=None):
    """A peer that halves every song."""
    return Separator(lambda x: 0.5 * x[:, None], preset("tiny"), ChunkGrid(44_100))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which all stages but the download have run."""
    folder = tmp_path_factory.mktemp("release")
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch, folder)
        write_recordings(settings.RECORDINGS)
        for stage in (scan, songs, train, export, proof, figure, realism, card):
            stage.main()
    return folder


@pytest.fixture
def inside(made, monkeypatch):
    """That folder as the working directory, with its recipe."""
    prepare(monkeypatch, made)
    return made


def prepare(patch, folder):
    patch.chdir(folder)
    patch.setattr(settings, "catalogue", lambda: read_catalogue(settings.RECORDINGS.with_suffix(".yaml")))
    patch.setattr(settings, "recipe", lambda: RECIPE)
    patch.setattr(os, "cpu_count", lambda: 1)  # no processes, which would not see these patches
    patch.setattr(spectrogram, "draw_spectrograms", lambda *_, **__: b"")  # of training
    patch.setattr(detector, "_detector", lambda: None)
    patch.setattr(detector, "voice_levels", lambda path, _: np.full(8, -5.0 if "album" in str(path) else -40.0))
    patch.setattr(proof, "load", lambda path: load(path) if path == settings.WEIGHTS else half())


# ---------------------------------------------------------------------------- definition


def test_every_dependency_on_code_exists_and_every_stage_is_a_module():
    for name, stage in STAGES.items():
        assert stage["wdir"] == "../.."
        assert stage["cmd"] == f"python -m ablations.release.{name}"
        assert callable(importlib.import_module(f"ablations.release.{name}").main)
        for path in stage["deps"]:
            assert path.startswith("results/") or (ROOT / path).exists(), path
        assert f"ablations/release/{name}.py" in stage["deps"]


def test_what_a_stage_depends_on_is_made_before_it():
    made = set()
    for stage in STAGES.values():
        assert {path for path in stage["deps"] if path.startswith("results/")} <= made
        made |= {next(iter(out)) for out in stage["outs"]}


def test_the_pipeline_of_the_tables_depends_on_nothing_that_this_one_makes():
    made = {next(iter(out)) for stage in STAGES.values() for out in stage["outs"]}
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values():
        for path in stage.get("do", stage)["deps"]:
            assert not [out for out in made if Path(out).is_relative_to(path) or Path(path).is_relative_to(out)]


def test_no_recording_and_no_song_enters_git():
    ignored = (ROOT / ".gitignore").read_text().split()
    for path in (settings.RECORDINGS, settings.SONGS, settings.WORK):
        assert f"/{path.parent}/" in ignored


def test_a_stage_knows_its_inputs():
    inputs = pipeline_settings.stage_inputs("ablations/release/dvc.yaml:songs")
    assert "twinsep/data/recordings/song.py" in inputs
    assert "ablations/release/release.yaml:songs" in inputs
    with pytest.raises(KeyError):
        pipeline_settings.stage_inputs("songs")


def test_the_recipe_has_the_shares_that_were_decided():
    counts = settings.recipe()["songs"]["counts"]
    for split in ("train", "valid"):
        total, recorded = sum(counts[split].values()), counts[split]["sung"] + counts[split]["spoken"]
        assert counts[split]["generated"] + counts[split]["espeak"] <= total / 3
        assert counts[split]["sung"] / recorded >= 2 / 3
        assert counts[split]["spoken"] / recorded >= 0.2
        assert counts[split]["instrumental"] > 0
        assert "singer" not in counts[split]
    made = songs.recipe()
    assert made.voice_db == (-8, 3)
    assert made.a_cappella > 0
    assert made.pause > 0


def test_the_released_model_fits_into_the_file():
    import torch

    from torch_impl.networks import build

    config = settings.phases()[-1]
    with torch.device("meta"):
        count = build(config).parameter_count
    assert 2 * count < 0.95 * settings.recipe()["export"]["bytes"] <= 5_700_000
    assert config.model.features == "complex+level"
    assert config.model.init == "identity"
    assert config.data.root == str(settings.SONGS)


def test_a_faulty_recipe_is_one_sentence(monkeypatch):
    broken = {**RECIPE["songs"]["recipe"], "codec": 2}
    monkeypatch.setattr(settings, "recipe", lambda: {"songs": {"recipe": broken}})
    with pytest.raises(InputError, match=r"release\.yaml: songs\.recipe\.codec"):
        songs.recipe()


# ---------------------------------------------------------------------------- stages


def test_the_scan_tabulates_minutes_and_keeps_sung_songs_for_tests(made):
    table = pd.read_csv(made / "results/released/recordings.csv").set_index("package")
    assert table.loc["band", ["files", "minutes", "minutes free", "minutes of sung songs"]].tolist() == [4, 0.5, 0.5, 0]
    assert table.loc["album", ["files", "minutes free", "minutes of sung songs"]].tolist() == [1, 0, 0.1]
    material = json.loads((made / settings.MATERIAL).read_text())
    assert [each["path"] for each in material["test"]["sung"]] == ["album/music/song.ogg"]
    assert [each["path"] for each in material["valid"]["instrumentals"]] == ["band/music/valid.ogg"]


@pytest.mark.usefixtures("inside")
def test_a_second_scan_reads_the_levels_that_are_there(monkeypatch):
    monkeypatch.setattr(detector, "voice_levels", None)
    scan.main()


@pytest.mark.usefixtures("inside")
def test_a_finished_phase_is_kept_and_another_recipe_starts_again():
    first, second = (settings.phase_folder(number) for number in (1, 2))
    before = (second / BEST).stat().st_mtime_ns
    (sitting,) = json.loads((second / train.SITTINGS).read_text())["sittings"]
    assert set(sitting) == {"commit", "device", "time"}
    train.main()
    assert (second / BEST).stat().st_mtime_ns == before
    config, songs_ = settings.phases()[1], train.songs_digest()
    assert train.is_finished(second, config.hash, songs_, first / BEST)
    assert not train.is_finished(second, "another", songs_, first / BEST)
    assert not train.is_finished(second, config.hash, "other songs", first / BEST)
    assert not train.is_finished(second, config.hash, songs_, second / BEST)
    assert not train.is_finished(second, config.hash, songs_, None)


def test_a_phase_starts_from_the_averaged_weights_of_the_one_before(made):
    first, second = (made / settings.phase_folder(number) for number in (1, 2))
    record = json.loads((second / RECORD).read_text())
    assert record["init"]["sha256"] == describe_initial_weights(first / BEST)["sha256"]
    assert "init" not in json.loads((first / RECORD).read_text())
    phases = json.loads((made / export.OUT).read_text())["phases"]
    assert [phase["configuration"]["training"]["steps"] for phase in phases] == [2, 3]


def test_sittings_of_a_phase_add_up_and_those_of_another_are_forgotten(tmp_path):
    for hash_, count in (("a", 1), ("a", 2), ("b", 1)):
        train.note_sitting(tmp_path, hash_, "songs", "cpu")
        (tmp_path / LAST).touch()
        assert len(json.loads((tmp_path / train.SITTINGS).read_text())["sittings"]) == count


def test_the_released_file_is_small_and_gives_the_weights_of_the_best_step(made):
    found = checkpoints.read(made / settings.WEIGHTS)
    best = checkpoints.read(made / settings.phase_folder(2) / BEST)
    assert (made / settings.SHIPPED).read_bytes() == (made / settings.WEIGHTS).read_bytes()
    assert found.step == best.step
    for name, w in best.weights("ema").items():
        assert found.tensors[f"model/{name}"].dtype == np.float16
        assert np.allclose(found.tensors[f"model/{name}"].astype(np.float32), w, rtol=1e-3, atol=1e-6)
    assert (made / settings.WEIGHTS).stat().st_size < 0.6 * (made / settings.phase_folder(2) / BEST).stat().st_size
    assert "CC BY-SA" in found.provenance["licence"]


def test_a_file_beyond_the_limit_is_refused_and_removed(made, tmp_path):
    found = checkpoints.read(made / settings.WEIGHTS)
    with pytest.raises(TwinsepError, match="more than 1,000: choose a smaller model"):
        export.write(found, tmp_path / "big.safetensors", 1000)
    assert list(tmp_path.iterdir()) == []


def test_the_proof_has_every_kind_of_song_and_every_system(made):
    table = pd.read_csv(made / "results/released/proof.csv")
    kinds = ("real", "singer", "spoken", "instrumental", "voice")
    assert table.songs.tolist() == [heading for kind in kinds for heading in [proof.KINDS[kind][0]] * 2]
    systems = ["mixture", "fixed gain", "L−R", "spleeter", "twinsep", "ideal mask"]
    assert [*table.columns] == ["songs", "n", "score", *systems]
    means = table[table.score.str.endswith("mean")].set_index("songs")
    alone = means.loc[proof.KINDS["voice"][0]]
    assert alone["mixture"] == 0  # dB: all of the voice is left
    assert alone["spleeter"] == pytest.approx(-6.02, abs=0.01)
    assert alone["ideal mask"] < -60
    harm = means.loc[proof.KINDS["instrumental"][0]]
    assert harm["mixture"] > 60
    assert harm["spleeter"] == pytest.approx(6.02, abs=0.01)
    assert harm["L−R"] < harm["ideal mask"]
    for kind in ("real", "singer", "spoken"):
        assert means.loc[proof.KINDS[kind][0], "ideal mask"] > means.loc[proof.KINDS[kind][0], "mixture"]
    loudness = pd.read_csv(made / "results/released/proof_by_loudness.csv")
    assert loudness.n.sum() == 3
    assert pd.read_csv(made / "results/released/proof_by_genre.csv").genre.tolist() == ["rock", "rock, no voice"]
    residual = json.loads((made / "results/released/residual_voice.json").read_text())
    assert [*residual["songs"]] == ["album/music/song.ogg"]
    summary = json.loads((made / "results/released/summary.json").read_text())
    assert summary["test"]["instrumental"]["usdr"]["n"] == 4  # of the voice alone it is undefined


@pytest.mark.usefixtures("inside")
def test_the_figure_shows_the_stems_of_the_real_excerpt(monkeypatch):
    assert figure.OUT.read_bytes().startswith(b"\x89PNG")
    drawn = {}
    monkeypatch.setattr(figure, "draw", lambda shown, note, rate, _: drawn.update(shown, note=note, rate=rate))
    figure.main()
    estimated = drawn["instrumental, estimated"] + drawn["vocals, estimated"]
    np.testing.assert_allclose(estimated, drawn["mixture"], atol=1e-6)
    np.testing.assert_allclose(drawn["instrumental, true"] + drawn["vocals, true"], drawn["mixture"], atol=1e-6)
    assert drawn["rate"] == 44_100
    assert "parameters" in drawn["note"]


def test_the_difference_of_the_channels_loses_what_is_central():
    rng = np.random.default_rng(0)
    centre, wide = rng.standard_normal((1, 100)), rng.standard_normal((1, 100))
    found = proof.side_system(None, np.concatenate([centre + wide, centre - wide]))["instrumental"]
    assert np.allclose(found, np.concatenate([wide, -wide]))


@pytest.mark.usefixtures("inside")
def test_songs_without_stems_are_scored_by_the_voice_that_the_peer_still_finds():
    found = proof.residual_voice(half(), half(), 4, 2)
    assert found["median_db"] == pytest.approx(20 * math.log10(0.5), abs=0.05)
    assert proof.residual_voice(half(), half(), 0, 2) == {"songs": {}, "median_db": None}


def test_made_songs_are_compared_with_the_real_one(made):
    table = pd.read_csv(made / "results/released/realism.csv").set_index("songs")
    real = table.loc["the real excerpt"]
    # The excerpt as it was measured by hand: voice 7 dB below the band and wider, nothing above 16 kHz.
    assert real["voice over instrumental, dB"] == pytest.approx(-7, abs=1)
    assert real["voice: mid over side, dB"] == pytest.approx(10, abs=1)
    assert real["instrumental: mid over side, dB"] == pytest.approx(12, abs=1)
    assert real["instrumental: 16–20 kHz, dB"] < -50
    alone = table.loc[proof.KINDS["voice"][0]]
    assert alone.filter(like="instrumental").isna().all()
    assert not table["peer above mixture, dB"].loc[["the real excerpt"]].isna().any()


def test_widths_and_bands_are_those_of_known_sounds():
    t = np.arange(44_100) / 44_100
    tone, other = np.sin(2 * np.pi * 500 * t), np.sin(2 * np.pi * 2000 * t)
    x = np.stack([tone + 0.1 * other, tone - 0.1 * other])
    assert realism.mid_over_side(x) == pytest.approx(20, abs=0.1)
    levels = dict(zip(realism.band_labels(), realism.bands(x, 44_100), strict=True))
    assert levels["0.25–1 kHz"] == pytest.approx(0, abs=0.1)
    assert levels["1–4 kHz"] == pytest.approx(-20, abs=0.1)
    assert levels["10–16 kHz"] < -80
    assert np.isnan(realism.mid_over_side(np.zeros((2, 9))))


def test_the_card_says_what_the_weights_are_made_of_and_what_they_reach(made):
    text = (made / settings.CARD).read_text()
    for package in read_catalogue(made / settings.RECORDINGS.with_suffix(".yaml")).values():
        assert package.sha256 in text
        assert package.licence in text
    table = pd.read_csv(made / "results/released/proof.csv")
    real = table[(table.songs == "the real excerpt") & table.score.str.endswith("mean")]["twinsep"].iloc[0]
    assert f"- the real excerpt: {real:.2f} dB; wanted at least 9.5: not reached" in text
    assert card.COMMAND in text
    assert f"{(made / settings.WEIGHTS).stat().st_size:,} bytes" in text
    assert "{" not in text
    assert "unsettled" in text


def test_goals_are_compared_with_what_they_name():
    rows = [
        {"songs": "the real excerpt", "score": "uSDR, mean", "mixture": 7.0, "twinsep": 9.6},
        {"songs": "real singers over real instrumentals", "score": "uSDR, mean", "mixture": 2.0, "twinsep": 5.9},
        {"songs": "instrumentals without voice", "score": "uSDR, median", "mixture": 90.0, "twinsep": 15.0},
    ]
    lines = card.goals(pd.DataFrame(rows)).splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["reached", "not reached", "reached"]


def test_the_first_stage_removes_packages_that_the_catalogue_no_longer_names(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "RECORDINGS", tmp_path)
    monkeypatch.setattr(settings, "catalogue", lambda: dict.fromkeys(["band"]))
    monkeypatch.setattr(recordings, "fetch_package", lambda *_: False)
    for name in ("band", "former", "own"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ("notes.txt" if name == "own" else packages.STAMP)).touch()
    recordings.main()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["band", "own"]


def test_without_recordings_the_next_stages_say_which_one_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="run the stage `recordings` first"):
        scan.main()
    with pytest.raises(InputError, match="scan the recordings first"):
        songs.main()
    with pytest.raises(InputError, match="run the stage `songs` first"):
        train.main()
    with pytest.raises(InputError, match="run the stage `train` first"):
        export.main()
    assert not list(tmp_path.rglob("*.*"))
