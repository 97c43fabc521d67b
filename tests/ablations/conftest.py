"""Fixtures of the tests of the pipeline and its results."""

import json

import numpy as np
import pytest
from helpers.committed import extract_commit

from ablations import settings
from ablations.stages import collect
from twinsep.config import preset
from twinsep.evaluation.evaluate import summarise

METRICS = ("usdr", "csdr", "si_sdr", "leakage", "museval_sdr", "museval_sir", "museval_sar", "museval_isr")


@pytest.fixture(scope="session")
def committed(tmp_path_factory):
    """Folder with the files of the last commit."""
    folder = tmp_path_factory.mktemp("commit")
    extract_commit(folder)
    return folder


@pytest.fixture
def committed_results(committed):
    """Folder with the files of the last commit, which include results of the grid."""
    if not (committed / "results" / "records.json").exists():
        pytest.skip("no results of the grid are committed")
    return committed


@pytest.fixture
def finish(tmp_path, monkeypatch):
    """A function that writes what finished runs leave, and changes into their folder.

    It takes the entries of ``rows.yaml`` by group, scores of the songs in test (seeds, songs) by group, in which also
    the song in real scores 8, and further ``seconds`` of a step by group.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(settings.params()["profiles"]["cpu"], "without")  # it names rows that this grid lacks

    def write(groups, scores, seconds=None, baselines=(1.0, 3.0, 4.0, 5.0, 20.0)):
        monkeypatch.setattr(
            settings, "row_table", lambda: {"axes": ["mixer", "loss", "start", "size"], "groups": groups}
        )
        songs = next(iter(scores.values())).shape[1]
        for name, level in zip(settings.params()["baselines"], baselines, strict=True):
            _write_scores(settings.RUNS / f"baseline-{name}", np.full(songs, level))
        for name, group in settings.groups().items():
            for seed, own in zip(group.seeds, scores[name], strict=True):
                _write_scores(settings.scores_path(name, seed).parent, own)
                _write_training(name, seed, (seconds or {}).get(name, 0.1))
        collect.main()
        return tmp_path

    return write


def _write_scores(folder, values):
    """Scores whose every metric is ``values`` in the split test, undefined where they are NaN, and 8 in real."""
    songs = {"test": values, "real": [8.0]}
    records = [
        {"split": split, "track": f"{i}", "target": stem, "metric": metric, "value": value, "unit": "dB"}
        for split, over in songs.items()
        for i, value in enumerate(None if np.isnan(v) else float(v) for v in over)
        for stem in ("instrumental", "vocals")
        for metric in METRICS
    ]
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(records))
    (folder / "summary.json").write_text(json.dumps(summarise(records)))


def _write_training(name, seed, seconds_per_step):
    """A record, and curves that reach 4, 5 and 6 dB after 400, 800 and 1,000 steps."""
    entry = settings.rows()[settings.groups()[name].row]
    usual = preset("tiny").override({"training": {"steps": 1000, "segment_seconds": 1.5}})
    config = usual.override(entry["override"]).override({"training": {"seed": seed}}).to_dict()
    record = {"configuration": config, "parameters": 410_444, "seconds": 1000 * seconds_per_step}
    record |= {"device": "cpu, 2 cores", "commit": "0123456789ab", "versions": {"torch": "2.13.0"}}
    settings.run_path(name, seed).parent.mkdir(parents=True)
    settings.run_path(name, seed).write_text(json.dumps(record))
    lines = ["step,seconds,training loss,validation uSDR,validation SI-SDR", f"10,{10 * seconds_per_step},2.5,,"]
    for step, value in ((400, 4.0), (800, 5.0), (1000, 6.0)):
        lines.append(f"{step},{step * seconds_per_step},2.0,{value},{value}")
    settings.curves_path(name, seed).write_text("\n".join(lines) + "\n")
