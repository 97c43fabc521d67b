"""Stage ``collect``: gather all runs' scores and curves for ``dvc metrics`` and ``dvc plots``.

``results/metrics.json`` maps a run or baseline to its scores, means over songs in dB. ``results/curves.csv`` has one
line per logged step of each run.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from ablations import settings
from twinsep.errors import guarded
from twinsep.utils.files import write_atomically, write_json

METRICS = Path("results/metrics.json")
CURVES = Path("results/curves.csv")
#: Score -> (split, stem, metric) in a run's ``summary.json``.
SCORES = {
    "uSDR": ("test", "instrumental", "usdr"),
    "cSDR": ("test", "instrumental", "csdr"),
    "SI-SDR": ("test", "instrumental", "si_sdr"),
    "leakage": ("test", "vocals", "leakage"),
    "real uSDR": ("real", "instrumental", "usdr"),
    "real cSDR": ("real", "instrumental", "csdr"),
}
#: Column -> (file, column) of DVCLive below a run's ``live/plots/metrics``.
LOGGED = {"validation uSDR": ("valid/usdr.tsv", "usdr"), "training loss": ("train/loss.tsv", "loss")}


def main() -> None:
    """Write both files."""
    baselines = [f"baseline-{name}" for name in settings.params()["baselines"]]
    write_json(METRICS, {name: scores(name) for name in (*baselines, *settings.runs())})
    table = pd.concat([curves(name) for name in settings.runs()])
    write_atomically(CURVES, table.to_csv(index=False).encode())


def scores(name: str) -> dict[str, float]:
    """The scores of a run or baseline; undefined ones are left out."""
    summary = json.loads((settings.RUNS / name / "summary.json").read_text())
    found = {}
    for score, (split, stem, metric) in SCORES.items():
        mean = summary.get(split, {}).get(stem, {}).get(metric, {}).get("mean")
        if mean is not None:
            found[score] = mean
    return found


def curves(name: str) -> pd.DataFrame:
    """Validation uSDR in dB and training loss of a run by step; a value that was not logged at a step is empty."""
    framework, row, seed = settings.runs()[name]
    folder = settings.RUNS / name / "live" / "plots" / "metrics"
    logged = [
        pd.read_csv(folder / file, sep="\t").set_index("step")[column].rename(heading)
        for heading, (file, column) in LOGGED.items()
    ]
    table = pd.concat(logged, axis=1).sort_index().round(4).reset_index()
    return pd.DataFrame({"run": name, "framework": framework, "row": row, "seed": seed, **table})


if __name__ == "__main__":
    guarded(main)
