"""Stage ``collect``: gather all groups' records, curves and scores in one file each.

The tables, ``dvc metrics`` and ``dvc plots`` read these files, so a table runs again only when a number changes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from ablations import settings
from twinsep.errors import guarded
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
    write_json(RECORDS, records())
    write_atomically(CURVES, curves().to_csv(index=False).encode())


def means(summary: Path) -> dict[str, float]:
    """The scores of a run or baseline, means over songs in dB; undefined ones are left out."""
    found, content = {}, json.loads(summary.read_text())
    for score, (split, stem, metric) in SCORES.items():
        mean = content.get(split, {}).get(stem, {}).get(metric, {}).get("mean")
        if mean is not None:
            found[score] = mean
    return found


def records() -> dict[str, dict[str, dict[str, Any]]]:
    """Group -> seed -> what tables and captions state about the run."""
    return {
        name: {
            str(seed): {key: json.loads(settings.run_path(name, seed).read_text())[key] for key in _STATED}
            for seed in group.seeds
        }
        for name, group in settings.trained_groups().items()
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


if __name__ == "__main__":
    guarded(main)
