"""Tables, scores and curves from runs; verdicts; errors in ``rows.yaml``."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from ablations import settings
from ablations.stages import collect, tabulate
from ablations.statistics import between_seeds, between_songs, difference
from twinsep.config import preset
from twinsep.errors import InputError
from twinsep.evaluation.evaluate import summarise
from twinsep.utils.provenance import describe

ROOT = Path(__file__).parents[2]


def judged(row, default):
    return difference(row, default, between_seeds(default))


METRICS = ("usdr", "csdr", "si_sdr", "leakage", "museval_sdr", "museval_sir", "museval_sar", "museval_isr")


def write_run(folder, values):
    """Write a run whose every metric is ``values[split]``, one value per track."""
    records = [
        {"split": split, "track": str(i), "target": target, "metric": metric, "value": value, "unit": "dB"}
        for split, over in values.items()
        for i, value in enumerate(over)
        for target in ("instrumental", "vocals")
        for metric in METRICS
    ]
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(records))
    (folder / "summary.json").write_text(json.dumps(summarise(records)))
    record = {"configuration": preset("tiny").to_dict(), "parameters": 410_444, **describe("cpu")}
    (folder / "run.json").write_text(json.dumps(record))


def row(axis, **override):
    return {"framework": "torch", "axis": axis, "question": "Is it?", "override": override}


TABLE = {
    "axes": ["mixer", "loss"],
    "runs": {
        "torch-base-0": row("base"),
        "torch-default-0": row("all"),
        "torch-default-1": {"framework": "torch"},
        "jax-default-0": {"framework": "jax"},
        "torch-lstm-0": row("mixer", model={"mixer": {"kind": "lstm"}}),
        "torch-conv-0": row("mixer", model={"mixer": {"kind": "conv"}}),
        "jax-conv-0": {"framework": "jax"},
        "torch-log-floor-0": row("loss", loss={"log_floor": 1e-7}),
    },
}
SCORES = {
    "torch-base-0": [6.0, 7.0, 11.0],
    "torch-default-0": [6.0, 7.0, 11.0],
    "torch-default-1": [6.2, 7.2, 11.2],
    "jax-default-0": [6.0, 7.0, 11.0],
    "torch-lstm-0": [7.0, 8.2, 12.4],
    "torch-conv-0": [3.0, 4.0, 17.0],
    "jax-conv-0": [5.0, 6.0, 9.0],
    "torch-log-floor-0": [6.0, 7.0, 10.9],
}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(settings, "row_table", lambda: TABLE)
    monkeypatch.setattr(tabulate, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(tabulate, "COST", tmp_path / "cost.json")
    write_run(tmp_path / "runs" / "baseline-mixture", {"test": [1.0, 2.0, None], "real": [5.0]})
    write_run(tmp_path / "runs" / "baseline-band_gain", {"test": [3.0, 4.0, 5.0], "real": [None]})
    write_run(tmp_path / "runs" / "baseline-ideal_mask", {"test": [20.0, 20.0, 20.0], "real": [15.0]})
    for run, scores in SCORES.items():
        write_run(tmp_path / "runs" / run, {"test": scores, "real": [8.0]})
        logged = tmp_path / "runs" / run / "live" / "plots" / "metrics"
        for name, text in (("valid/usdr", "400\t4.0\n800\t5.0\n1000\t6.0\n"), ("train/loss", "10\t2.5\n400\t2.0\n")):
            (logged / name).parent.mkdir(parents=True)
            (logged / f"{name}.tsv").write_text(f"step\t{name.split('/')[1]}\n{text}")
    cost = {"flop_per_audio_second": 2e9, "peak_memory_mib": 700.0}
    steps = {"default": 0.2, "lstm": 0.25, "conv": 0.1}
    rows = {name: cost | {"step_s": seconds} for name, seconds in steps.items()}
    (tmp_path / "cost.json").write_text(json.dumps({"rows": rows}))
    return tmp_path / "tables"


def read(path):
    """The table with (row, framework) as its index; a baseline's framework is empty."""
    return pd.read_csv(path, keep_default_na=True).fillna({"framework": ""}).set_index(["row", "framework"])


def test_rows_stand_between_floors_and_ceiling(results):
    tabulate.main("mixer")
    table = read(results / "mixer.csv")
    rows = [("default", "torch"), ("default", "jax"), ("lstm", "torch"), ("conv", "torch"), ("conv", "jax")]
    assert list(table.index) == [("mixture", ""), ("fixed gain per band", ""), *rows, ("ideal ratio mask", "")]
    assert list(table["uSDR mean"].round(4)) == [1.5, 4, 8.1, 8, 9.2, 8, 6.6667, 20]
    assert list(table["uSDR median"]) == [1.5, 4, 7.1, 7, 8.2, 4, 6, 20]
    assert table.loc[("default", "torch"), ["parameters", "seeds"]].tolist() == [410_444, 2]
    assert not [column for column in table if column.startswith("museval")]


def test_a_row_is_judged_against_the_default_row_of_its_framework(results):
    tabulate.main("mixer")
    table = read(results / "mixer.csv")
    assert np.isnan(table.loc[("default", "torch"), "difference"])
    # The default row itself is compared with its runs in the first framework.
    assert table.loc[("default", "jax"), "difference"] == pytest.approx(-0.1)
    assert table.loc[("lstm", "torch"), ["difference", "verdict"]].tolist() == [pytest.approx(1.1), "better"]
    assert table.loc[("conv", "torch"), "verdict"] == "within noise"  # one song decides
    assert table.loc[("conv", "jax"), ["difference", "verdict"]].tolist() == [pytest.approx(-4 / 3, abs=1e-4), "worse"]
    shown = (results / "mixer.md").read_text()
    assert "| +1.10 [+0.90, +1.30] |" in shown
    assert table.loc[("default", "torch"), "sd seeds"] == pytest.approx(np.sqrt(0.02), abs=1e-4)


def test_costs_and_the_score_at_equal_time(results):
    tabulate.main("mixer")
    table = read(results / "mixer.csv")
    # The fastest row takes 0.1 s a step, 100 s for its 1,000: 500 steps of the default row, 400 of the slowest.
    columns = ["GFLOP / s", "step s", "MiB", "at equal time"]
    assert table.loc[("conv", "torch"), columns].tolist() == [2, 0.1, 700, 6]
    assert table.loc[("default", "torch"), "at equal time"] == table.loc[("lstm", "torch"), "at equal time"] == 4
    assert np.isnan(table.loc[("conv", "jax"), "step s"])


def test_a_table_has_only_its_own_rows(results):
    tabulate.main("loss")
    table = read(results / "loss.csv")
    assert list(table.index)[2:-1] == [("default", "torch"), ("default", "jax"), ("log-floor", "torch")]
    assert table.loc[("log-floor", "torch"), "verdict"] == "within noise"


def test_the_base_table_has_museval_and_states_its_origin(results):
    tabulate.main("base")
    table = read(results / "base.csv")
    assert len(table) == 4
    assert table.loc[("base", "torch"), ["museval SDR", "seeds"]].tolist() == [7, 1]
    text = (results / "base.md").read_text()
    for said in ("profile", "3 held-out generated songs", "1000 steps", "torch 2", "commit"):
        assert said in text
    assert "| –" in text  # undefined, not zero
    assert r"\begin{tabular}" in (results / "base.tex").read_text()


# ---------------------------------------------------------------------------- for dvc metrics and dvc plots


@pytest.fixture
def collected(results, monkeypatch):
    """A workspace of DVC that holds the plots of ``dvc.yaml`` and the two files of stage ``collect``."""
    folder = results.parent / "workspace"
    monkeypatch.setattr(collect, "METRICS", folder / "results" / "metrics.json")
    monkeypatch.setattr(collect, "CURVES", folder / "results" / "curves.csv")
    collect.main()
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


def test_one_plot_of_each_kind_overlays_all_runs(collected):
    plots = json.loads(dvc(collected, "plots", "show", "--json"))["data"]
    assert set(plots) == {"validation uSDR", "training loss"}
    for heading, (plot,) in plots.items():
        content = plot["content"]
        assert content["encoding"]["color"]["field"] == "run"
        assert content["encoding"]["y"]["field"] == heading
        points = {(p["run"], p["step"]): p[heading] for p in content["data"]["values"] if p[heading]}
        assert {run for run, _ in points} == set(SCORES)
        assert points["jax-conv-0", "400"] == {"validation uSDR": "4.0", "training loss": "2.0"}[heading]


def test_all_scores_are_in_one_file(collected):
    scores = json.loads(dvc(collected, "metrics", "show", "--json"))[""]["data"]["results/metrics.json"]["data"]
    assert set(scores) == {"baseline-mixture", "baseline-band_gain", "baseline-ideal_mask", *SCORES}
    assert scores["torch-base-0"] == {name: 8.0 for name in collect.SCORES}
    assert "real uSDR" not in scores["baseline-band_gain"]  # undefined on its only song


# ---------------------------------------------------------------------------- verdicts


def test_a_difference_must_exceed_both_noises():
    songs = np.arange(20.0)
    base = np.stack([songs - 0.5, songs + 0.5])  # 0.71 between seeds
    assert judged(base[:1] + 3, base).verdict == "better"
    assert judged(base[:1] - 3, base).verdict == "worse"
    assert judged(base[:1] + 1.5, base).verdict == "within noise"  # the seeds differ by as much
    uneven = songs + np.where(songs == 7, 60, 0)
    assert judged(uneven[None], base).verdict == "within noise"  # 3 on average, all from one song
    assert judged(base[:1] + 3, base[:1]).verdict == "one seed"


def test_the_interval_is_of_paired_differences():
    rng = np.random.default_rng(0)
    songs = 10 * rng.standard_normal(30)
    found = judged((songs + 1 + 0.1 * rng.standard_normal(30))[None], songs[None])
    assert found.low < found.mean < found.high
    assert found.mean == pytest.approx(1, abs=0.06)
    assert found.high - found.low < 0.1  # although the songs themselves are 10 dB apart
    again = judged((songs + 1)[None], songs[None])
    assert (again.low, again.high) == pytest.approx((1, 1))


def test_undefined_songs_are_left_out_of_both_rows():
    base = np.array([[1.0, 2.0, np.nan, 4.0]])
    assert judged(base + np.array([1, 1, 1, np.nan]), base).mean == 1
    with pytest.raises(ValueError, match="no song"):
        judged(base * np.nan, base)


def test_standard_deviations_over_seeds_and_songs():
    scores = np.array([[1.0, 3.0, np.nan], [2.0, 4.0, np.nan]])
    assert between_seeds(scores) == pytest.approx(np.sqrt(0.5))
    assert between_songs(scores) == pytest.approx(np.sqrt(2))
    assert np.isnan(between_seeds(scores[:1]))
    assert np.isnan(between_songs(scores[:, :1]))


# ---------------------------------------------------------------------------- errors in rows.yaml


@pytest.mark.parametrize(
    ("run", "entry", "said"),
    [
        ("torch-lstm", {"framework": "torch"}, "not named <framework>-<row>-<seed>"),
        ("jax-lstm-1", {"framework": "torch"}, "must have the entry 'framework: jax'"),
        ("torch-lstm-1", row("mixer"), "defines row 'lstm' again"),
        ("torch-gru-0", {"framework": "torch"}, "is the first of row 'gru'"),
        ("torch-gru-0", row("mixers"), "the axis 'mixers', which is not one of 'axes'"),
        ("torch-gru-0", row("mixer") | {"presets": "tiny"}, "must have question, axis and override"),
    ],
)
def test_a_wrong_entry_is_refused(monkeypatch, run, entry, said):
    monkeypatch.setattr(settings, "row_table", lambda: {**TABLE, "runs": {**TABLE["runs"], run: entry}})
    with pytest.raises(InputError, match=said):
        settings.rows()


def test_an_unknown_run_is_refused():
    with pytest.raises(InputError, match="has no run 'torch-gru-0'"):
        settings.configuration("torch-gru-0")
