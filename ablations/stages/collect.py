"""Stage ``collect``: gather all groups' records, curves and scores in one file each.

The tables, ``dvc metrics`` and ``dvc plots`` read these files, so a table runs again only when a number changes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from ablations import scores, settings
from ablations.stages import run_stage
from twinsep.utils.files import write_atomically, write_json

METRICS = Path("results/metrics.json")
CURVES = Path("results/curves.csv")
RECORDS = Path("results/records.json")
#: Score -> (split, stem, metric) in a run's ``summary.json``.
SCORES = {
    "uSDR": ("test", "instrumental", "usdr"),
    "cSDR": ("test", "instrumental", "csdr"),
    "SI-SDR": ("test", "instrumental", "si_sdr"),
    "leakage": ("test", "vocals", "leakage"),
    "real uSDR": ("real", "instrumental", "usdr"),
    "real cSDR": ("real", "instrumental", "csdr"),
}
#: Parts of ``run.json`` that tables and captions state.
_STATED = ("parameters", "seconds", "device", "commit", "versions", "configuration")


def main() -> None:
    """Write the files."""
    baselines = {f"baseline-{name}": settings.RUNS / f"baseline-{name}" for name in settings.params()["baselines"]}
    runs = {
        f"{name}-{seed}": settings.scores_path(name, seed).parent
        for name, group in settings.trained_groups().items()
        for seed in group.seeds
    }
    write_json(METRICS, {name: means(folder / "summary.json") for name, folder in {**baselines, **runs}.items()})
    write_json(RECORDS, records(settings.trained_groups()))
    write_atomically(CURVES, curves().to_csv(index=False).encode())
    write_atomically(scores.PATH, scores_table(settings.trained_groups()).to_csv(index=False).encode())


def means(summary: Path) -> dict[str, float]:
    """The scores of a run or baseline, means over songs in dB; undefined ones are left out."""
    found, content = {}, json.loads(summary.read_text())
    for score, (split, stem, metric) in SCORES.items():
        mean = content.get(split, {}).get(stem, {}).get(metric, {}).get("mean")
        if mean is not None:
            found[score] = mean
    return found


def records(groups: Iterable[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Group -> seed -> what tables and captions state about the run."""
    return {
        name: {
            str(seed): {key: json.loads(settings.run_path(name, seed).read_text())[key] for key in _STATED}
            for seed in settings.trained_groups()[name].seeds
        }
        for name in groups
    }


def curves() -> pd.DataFrame:
    """The curves of all runs, with the columns group, framework, row and seed."""
    return pd.concat(
        pd.read_csv(settings.curves_path(name, seed)).assign(
            group=name, framework=group.framework, row=group.row, seed=seed
        )
        for name, group in settings.trained_groups().items()
        for seed in group.seeds
    )


def scores_table(groups: Iterable[str], stems: Mapping[str, str] = scores.STEMS) -> pd.DataFrame:
    """Scores in dB of the baselines and of all runs of ``groups``: one line per run, split, song and metric.

    The columns are group, framework, row, seed, split, track, metric and value, which is NaN where it is undefined.
    ``stems`` maps each wanted metric to the stem whose score is taken. A baseline, ``baseline-<name>``, has neither
    framework nor seed.
    """
    runs: dict[tuple[str, str, str, int | None], Path] = {
        (f"baseline-{name}", "", name, None): settings.RUNS / f"baseline-{name}" / "metrics.json"
        for name in settings.params()["baselines"]
    }
    for name in groups:
        framework, row, seeds = settings.trained_groups()[name]
        runs |= {(name, framework, row, seed): settings.scores_path(name, seed) for seed in seeds}
    lines = [
        (*run, record["split"], record["track"], record["metric"], record["value"])
        for run, path in runs.items()
        for record in json.loads(path.read_text())
        if stems.get(record["metric"]) == record["target"]
    ]
    columns = ["group", "framework", "row", "seed", "split", "track", "metric", "value"]
    return pd.DataFrame(lines, columns=columns).astype({"seed": "Int64", "value": float}).round({"value": 4})


if __name__ == "__main__":
    run_stage(main)
