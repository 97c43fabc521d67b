"""Keep the runs that another processor trained, for the stage ``noise``.

``python -m ablations.second_processor FOLDER "what computed there"`` reads a checkout in which the stages ``train``
and ``evaluate`` ran for the default row in PyTorch, or for all rows, and writes ``results/second_processor.json`` here.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from ablations import scores, settings
from ablations.stages import run_stage
from twinsep.errors import InputError
from twinsep.utils.files import write_json

OUT = Path("results/second_processor.json")


def main(folder: str, processor: str) -> None:
    """Write the record; ``processor`` says what computed in ``folder``.

    Raises :class:`InputError` if the default row is not scored there, or if its runs have several origins.
    """
    default = f"torch-{settings.default_row()}"
    found = {name: _runs(Path(folder), name) for name in settings.trained_groups()}
    missing = [seed for seed in settings.seeds(default) if str(seed) not in found[default]]
    if missing:
        raise InputError(f"{folder} has no scored run of {default} with the seed {missing[0]}: train it there")
    origin = next(iter(found[default].values()))["origin"]
    if any(run["origin"] != origin for run in found[default].values()):
        raise InputError(
            f"{folder} has runs of {default} of several commits, devices or versions: train them anew there"
        )
    # A checkout also holds the committed runs of rows that were not trained there: they have another origin.
    kept = {
        name: {seed: {key: run[key] for key in ("configuration", "uSDR")} for seed, run in runs.items()}
        for name, runs in found.items()
        if all(run["origin"] == origin for run in runs.values())
    }
    write_json(OUT, {"processor": processor, **origin, "runs": {name: runs for name, runs in kept.items() if runs}})


def _runs(folder: Path, group: str) -> dict[str, dict[str, Any]]:
    """Seed -> origin, digest of the configuration, and scores, for the runs of ``group`` scored under ``folder``."""
    split, metric = scores.JUDGED
    found = {}
    for seed in settings.seeds(group):
        paths = [folder / path for path in (settings.run_path(group, seed), settings.scores_path(group, seed))]
        if all(path.exists() for path in paths):
            run, records = (json.loads(path.read_text()) for path in paths)
            wanted = (split, metric, scores.STEMS[metric])
            judged = {
                r["track"]: None if r["value"] is None else round(r["value"], 4)
                for r in records
                if (r["split"], r["metric"], r["target"]) == wanted
            }
            found[str(seed)] = {
                "origin": {key: run[key] for key in ("commit", "device", "versions")},
                "configuration": configuration_digest(run["configuration"]),
                "uSDR": judged,
            }
    return found


def configuration_digest(configuration: dict[str, Any]) -> str:
    """16 hexadecimal digits of SHA-256 over a run's configuration."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:16]


if __name__ == "__main__":
    match sys.argv[1:]:
        case [folder, processor]:
            run_stage(lambda: main(folder, processor))
        case _:
            sys.exit('usage: python -m ablations.second_processor FOLDER "what computed there"')
