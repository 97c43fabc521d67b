"""Tables, scores and curves from runs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from ablations import scores, settings
from ablations.stages import collect, tabulate

ROOT = Path(__file__).parents[2]


def row(axis, *, seeds=(0, 1), **more):
    return {"framework": "torch", "seeds": list(seeds), "axis": axis, "question": "Is it?", "override": {}, **more}


LONG = {"training": {"steps": 500, "segment_seconds": 3.0}}
GROUPS = {
    "torch-base": row("base", seeds=[0]),
    "torch-default": row("all", seeds=[0, 1, 2]),
    "jax-default": {"framework": "jax", "seeds": [0, 1]},
    "torch-lstm": row("mixer"),
    "torch-conv": row("mixer"),
    "jax-conv": {"framework": "jax", "seeds": [0, 1]},
    "torch-gru": row("mixer", seeds=[0]),
    "torch-long": row("loss", override=LONG),
    "torch-long-log": row("loss", control="long", override=LONG),
    "torch-same": row(["loss", "start"]),
    "torch-slight": row("loss"),
    "torch-lost": row("loss"),
}
#: Where it is not 0.1 s.
STEP_SECONDS = {"torch-default": 0.2, "torch-lstm": 0.25, "torch-gru": 0.2, "jax-default": 0.4, "jax-conv": 0.3}
#: Mean difference from the level 8 of the default row, dB.
GAINS = {
    "torch-lstm": 1.0,
    "torch-conv": -1.0,
    "jax-conv": 1.0,
    "torch-gru": 3.0,
    "torch-long": -2.0,
    "torch-long-log": -1.0,
    "torch-same": 0.0,
    "torch-slight": 0.2,
    "torch-lost": -4.5,
}


def simulated():
    """Scores (seeds, songs) with noise of 0.1 dB from seed to seed that all songs share, and the stated gains."""
    rng = np.random.default_rng(1)
    songs = 2 * rng.standard_normal(20)
    songs -= songs.mean()
    found = {}
    for name, group in settings.groups().items():
        own = 0.1 * rng.standard_normal((len(group.seeds), 1)) + 0.1 * rng.standard_normal((len(group.seeds), 20))
        found[name] = 8 + GAINS.get(name, 0.0) + songs + own - own[:2].mean()
    return found


@pytest.fixture
def results(finish, monkeypatch):
    """Folder of the tables of a finished grid."""
    monkeypatch.setattr(settings, "row_table", lambda: {"axes": ["mixer", "loss", "start"], "groups": GROUPS})
    folder = finish(GROUPS, simulated(), seconds=STEP_SECONDS)
    rows = {
        name: {"flop_per_audio_second": 2e9, "step_s": 0.3, "peak_memory_mib": 700.0} for name in ("default", "conv")
    }
    (folder / "results" / "cost.json").write_text(json.dumps({"rows": rows}))
    return folder / "results" / "tables"


def table(axis, results):
    """The table with (row, framework) as its index; a baseline's framework is empty."""
    tabulate.main(axis)
    return pd.read_csv(results / f"{axis}.csv").fillna({"framework": ""}).set_index(["row", "framework"])


def test_rows_stand_between_floors_and_ceiling(results):
    found = table("mixer", results)
    floors = [("mixture", ""), ("fixed gain per band", ""), ("level regression", ""), ("weighted regression", "")]
    rows = [("default", "torch"), ("default", "jax"), ("lstm", "torch"), ("conv", "torch"), ("conv", "jax")]
    assert list(found.index) == [*floors, *rows, ("gru", "torch"), ("ideal ratio mask", "")]
    assert list(found["uSDR mean"][:4]) == [1, 3, 4, 5]
    assert found.loc[("lstm", "torch"), "uSDR mean"] == pytest.approx(9, abs=1e-3)
    assert found.loc[("default", "torch"), ["parameters", "seeds"]].tolist() == [410_444, 3]
    assert not [column for column in found if column.startswith("museval")]


def test_scores_are_means_over_seeds_of_means_or_medians_over_songs(results):
    own = simulated()["torch-default"].round(4)
    found = table("mixer", results).loc[("default", "torch")]
    assert found["uSDR mean"] == pytest.approx(own.mean(), abs=1e-4)
    assert found["uSDR median"] == pytest.approx(np.median(own, 1).mean(), abs=1e-4)
    assert found["sd songs"] == pytest.approx(own.mean(0).std(ddof=1), abs=1e-4)
    assert found["sd seeds"] == pytest.approx(own.mean(1).std(ddof=1), abs=1e-4)


def test_a_row_is_judged_against_the_default_row_of_its_framework(results):
    found = table("mixer", results)
    assert found.loc["default"][["difference", "p", "verdict"]].isna().all(axis=None)
    lstm = found.loc[("lstm", "torch")]
    assert lstm["difference"] == pytest.approx(1, abs=1e-3)
    assert lstm["low"] < lstm["difference"] < lstm["high"]
    assert [found.loc[key, "verdict"] for key in (("lstm", "torch"), ("conv", "torch"), ("conv", "jax"))] == [
        "better",
        "worse",
        "better",
    ]
    assert found["seeds needed"].isna().all()
    shown = (results / "mixer.md").read_text()
    assert f"| {lstm['difference']:+.2f} [{lstm['low']:+.2f}, {lstm['high']:+.2f}] |" in shown
    assert "| < 0.001 |" in shown


def test_one_seed_gives_a_difference_and_no_verdict(results):
    found = table("mixer", results).loc[("gru", "torch")]
    assert found["verdict"] == "one seed"
    assert found["difference"] == pytest.approx(3, abs=0.3)
    assert found[["low", "high", "p"]].isna().all()
    assert f"| {found['difference']:+.2f}  " in (results / "mixer.md").read_text()


def test_all_verdicts_and_the_seeds_that_an_undecided_row_needs(results):
    found = table("loss", results).xs("torch", level=1)
    assert found["verdict"].to_dict() == {
        "default": pytest.approx(np.nan, nan_ok=True),
        "long": "worse",
        "long-log": "better",  # than its control, although worse than the default row
        "same": "equivalent",
        "slight": "undecided",
        "lost": "not trained",
    }
    assert found["difference"]["long-log"] == pytest.approx(1, abs=1e-3)
    assert 2 < found["seeds needed"]["slight"] < 20
    assert found["seeds needed"].notna().sum() == 1
    assert np.isfinite(found["difference"]["lost"])


def test_the_noise_is_that_of_the_trained_rows(results, monkeypatch):
    trained = table("loss", results)
    monkeypatch.setattr(scores, "is_trained", lambda *_: True)
    everything = table("loss", results)
    assert (everything["low"].dropna() != trained["low"].dropna()).all()


def test_costs_and_the_score_at_equal_time(results):
    found = table("mixer", results)
    # The fastest row takes 0.1 s a step, 100 s for its 1,000: 500 steps of the default row, 400 of the slowest.
    columns = ["GFLOP / s", "step s", "MiB", "at equal time"]
    assert found.loc[("conv", "torch"), columns].tolist() == [2, 0.3, 700, 6]
    assert found.loc[("default", "torch"), "at equal time"] == 4.25
    assert found.loc[("lstm", "torch"), "at equal time"] == 4
    # In JAX 300 s: 750 steps of the default row.
    assert found.loc[("default", "jax"), "at equal time"] == 4.875
    assert found.loc[("conv", "jax"), columns].isna().tolist() == [True, True, True, False]
    assert "at equal time" in table("start", results)
    assert "at equal time" not in table("loss", results)


def test_before_its_first_validation_a_row_has_no_score_at_equal_time(results):
    curves = pd.read_csv(collect.CURVES)
    curves.loc[curves["row"] == "conv", "seconds"] /= 4
    curves.to_csv(collect.CURVES, index=False)
    found = table("mixer", results)["at equal time"]
    assert found["conv", "torch"] == 6
    assert np.isnan(found["lstm", "torch"])


def test_a_table_has_only_its_own_rows(results):
    assert list(table("start", results).index)[4:-1] == [("default", "torch"), ("default", "jax"), ("same", "torch")]


def test_the_caption_follows_the_runs_and_the_data(results, monkeypatch):
    table("loss", results)
    text = (results / "loss.md").read_text().split("\n")[0]
    for said in (
        "20 generated test songs",
        "1,000 steps of 1 × 1.5 s",
        "long, long-log: 500 steps of 1 × 3 s",
        "commit",
    ):
        assert said in text
    assert "long-log is compared with long." in text
    assert text.count("95 %") == 1
    monkeypatch.setattr(settings, "data_root", lambda: Path("/data/musdb18hq"))
    table("loss", results)
    text = (results / "loss.md").read_text()
    assert "20 test songs of musdb18hq" in text
    assert "generated" not in text


def test_the_base_table_has_museval_and_needs_no_other_group(results):
    for path in (scores.PATH, collect.RECORDS, collect.CURVES):
        path.unlink()
    for path in settings.RUNS.iterdir():
        if path.name != "torch-base" and not path.name.startswith("baseline"):
            shutil.rmtree(path)
    found = table("base", results)
    assert len(found) == 6
    assert found.loc[("base", "torch"), "museval SDR"] == pytest.approx(found.loc[("base", "torch"), "uSDR median"])
    assert np.isnan(found.loc[("base", "torch"), "verdict"])
    assert "| –" in (results / "base.md").read_text()
    assert r"\begin{tabular}" in (results / "base.tex").read_text()


def test_a_smoke_run_of_two_seeds_and_two_songs_has_a_table(finish):
    groups = {name: entry for name, entry in GROUPS.items() if name in ("torch-base", "torch-default", "torch-same")}
    groups = {name: entry | {"seeds": [0, 1]} for name, entry in groups.items()}
    rng = np.random.default_rng(0)
    folder = finish(groups, {name: rng.standard_normal((2, 2)) for name in groups}) / "results" / "tables"
    found = table("loss", folder)
    assert found.loc[("same", "torch"), "verdict"] == "not trained"
    assert table("base", folder).loc[("base", "torch"), "verdict"] == "not trained"


# ---------------------------------------------------------------------------- for dvc metrics and dvc plots


@pytest.fixture
def collected(results):
    """A workspace of DVC that holds the plots of ``dvc.yaml`` and the files of stage ``collect``."""
    folder = results.parents[1]
    dvc(folder, "init", "--no-scm", "--quiet")
    shutil.copytree(ROOT / ".dvc" / "plots", folder / ".dvc" / "plots")
    plots = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"plots": plots, "metrics": ["results/metrics.json"]}))
    return folder


def dvc(folder, *arguments):
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_plot_of_each_kind_overlays_all_groups(collected):
    plots = json.loads(dvc(collected, "plots", "show", "--json"))["data"]
    assert set(plots) == {"validation uSDR", "training loss"}
    for heading, (plot,) in plots.items():
        content = plot["content"]
        assert [content["encoding"][channel]["field"] for channel in ("color", "detail")] == ["group", "seed"]
        assert content["encoding"]["y"]["field"] == heading
        points = {(p["group"], p["seed"], p["step"]): p[heading] for p in content["data"]["values"] if p[heading]}
        assert {group for group, _, _ in points} == set(GROUPS)
        assert points["jax-conv", "1", "400"] == {"validation uSDR": "4.0", "training loss": "2.0"}[heading]


def test_all_means_are_in_one_file(collected):
    found = json.loads(dvc(collected, "metrics", "show", "--json"))[""]["data"]["results/metrics.json"]["data"]
    assert {"baseline-level_regression", "torch-base-0", "torch-default-2", "jax-conv-1"} <= set(found)
    assert found["baseline-mixture"] == {name: 8.0 if name.startswith("real") else 1.0 for name in collect.SCORES}


@pytest.mark.usefixtures("results")
def test_all_scores_are_in_one_table():
    found = scores.read()
    assert list(found) == ["group", "framework", "row", "seed", "split", "track", "metric", "value"]
    runs = sum(len(group.seeds) for group in settings.groups().values()) + 5
    assert len(found) == runs * 21 * 4  # songs, metrics
    assert set(found["metric"]) == {"usdr", "csdr", "si_sdr", "leakage"}
    own = scores.runs(found, "torch-default", *scores.JUDGED)
    assert (own.framework, own.row, own.seeds) == ("torch", "default", (0, 1, 2))
    # Songs are in the order of their names.
    assert own.scores == pytest.approx(simulated()["torch-default"][:, sorted(range(20), key=str)], abs=1e-4)
    assert scores.runs(found, "baseline-mixture", "real", "csdr").scores.tolist() == [[8.0]]


def test_an_undefined_score_stays_undefined(finish):
    own = {"torch-base": np.array([[5.0, np.nan, 7.0]]), "torch-default": np.array([[5.0, np.nan, 7.0]])}
    finish({name: GROUPS[name] | {"seeds": [0]} for name in own}, own)
    found = scores.runs(scores.read(), "torch-default", *scores.JUDGED).scores
    assert np.isnan(found).tolist() == [[False, True, False]]
