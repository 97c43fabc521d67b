"""Tables from runs: what stands in them and what a hole looks like."""

import json

import pandas as pd
import pytest

from ablations import settings, tabulate
from twinsep.config import preset
from twinsep.provenance import describe

METRICS = ("usdr", "csdr", "si_sdr", "leakage", "museval_sdr", "museval_sir", "museval_sar", "museval_isr")


def write_run(folder, values):
    """A run whose every metric is ``values[split]``, one entry a track."""
    records = [
        {"split": split, "track": str(i), "target": target, "metric": metric, "value": value, "unit": "dB"}
        for split, over in values.items()
        for i, value in enumerate(over)
        for target in ("instrumental", "vocals")
        for metric in METRICS
    ]
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(records))
    record = {"configuration": preset("tiny").to_dict(), "parameters": 410_444, **describe("cpu")}
    (folder / "run.json").write_text(json.dumps(record))


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(tabulate, "TABLES", tmp_path / "tables")
    write_run(tmp_path / "runs" / "baseline-mixture", {"test": [1.0, 2.0, None], "real": [5.0]})
    write_run(tmp_path / "runs" / "baseline-band_gain", {"test": [3.0, 4.0, 5.0], "real": [None]})
    write_run(tmp_path / "runs" / "torch-base-0", {"test": [6.0, 7.0, 11.0], "real": [8.0]})
    write_run(tmp_path / "runs" / "torch-transformer-0", {"test": [6.0, 6.0, 6.0], "real": [8.0]})
    write_run(tmp_path / "runs" / "baseline-ideal_mask", {"test": [20.0, 20.0, 20.0], "real": [15.0]})
    return tmp_path / "tables"


def test_rows_stand_between_floors_and_ceiling(results):
    tabulate.main("mixer")
    table = pd.read_csv(results / "mixer.csv", index_col="system")
    assert list(table.index) == [
        "mixture (no processing)",
        "fixed gain per band",
        "base (torch)",
        "transformer (torch)",
        "ideal ratio mask",
    ]
    assert list(table["uSDR mean"]) == [1.5, 4, 8, 6, 20]
    assert list(table["uSDR median"]) == [1.5, 4, 7, 6, 20]
    assert table.loc["base (torch)", ["parameters", "seeds"]].tolist() == [410_444, 1]
    assert not [column for column in table if column.startswith("museval")]


def test_base_table_has_museval_and_says_where_it_is_from(results):
    tabulate.main("base")
    table = pd.read_csv(results / "base.csv", index_col="system")
    assert len(table) == 4
    assert table.loc["base (torch)", "museval SDR"] == 7
    text = (results / "base.md").read_text()
    for said in ("profile", "3 held-out generated songs", "1000 steps", "torch 2", "commit"):
        assert said in text
    assert "| –" in text  # undefined, not zero
    assert r"\begin{tabular}" in (results / "base.tex").read_text()
