"""Stage ``tune``: ``python -m ablations.systems.tune <system>`` finds the learning rate of a system.

It trains the system with each learning rate of ``systems.yaml``, for half the steps of a row, and keeps the rate whose
last averaged weights score best on the validation songs, and the seconds of a step. With a rate as second argument it
trains that run alone. An unfinished run resumes on the same code and songs.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

from ablations import settings, side_by_side
from ablations.stages import run_stage
from ablations.stages.train import curves
from ablations.systems import rows
from ablations.systems.train import train_into
from twinsep.config.schema import Config
from twinsep.utils import provenance
from twinsep.utils.files import write_json


def main(system: str) -> None:
    """Write ``results/systems/tuning/<system>.json``."""
    rates, device = rows.table()["tuning"]["learning_rates"], settings.profile()["device"]
    commands = {f"{system}, rate {rate}": ["ablations.systems.tune", system, str(rate)] for rate in rates}
    side_by_side.run_modules(commands, device=device)
    found = [score(folder(system, rate), rate) for rate in rates]
    chosen = {
        "learning_rate": max(found, key=lambda one: one["valid_usdr"])["learning_rate"],
        "seconds_per_step": round(statistics.median(one["seconds_per_step"] for one in found), 5),
    }
    setting = {"steps": configuration(system, rates[0]).training.steps, "seed": rows.table()["tuning"]["seed"]}
    write_json(rows.tuning_path(system), {**chosen, "rates": found, **setting, **provenance.describe(device)})
    shutil.rmtree(rows.WORK / "tuning" / system)


def configuration(system: str, rate: float) -> Config:
    """The configuration of one run."""
    steps = max(1, settings.profile()["rows"]["steps"] // 2)
    training = {"steps": steps, "validate_every": steps, "learning_rate": rate, "seed": rows.table()["tuning"]["seed"]}
    return rows.untrained(system, "steps").override({"training": training})


def folder(system: str, rate: float) -> Path:
    """Folder of a run."""
    return rows.WORK / "tuning" / system / str(rate)


def score(run: Path, rate: float) -> dict[str, Any]:
    """Score of the last averaged weights on the validation songs, and the median time of a step."""
    curve = curves(run)
    logged = curve[curve["seconds"].notna() & curve["validation uSDR"].isna()]
    steps = (logged["seconds"].diff() / logged["step"].diff()).dropna()
    if steps.empty:  # a run of a few steps, in the profile `smoke`
        steps = (curve["seconds"] / curve["step"]).dropna()
    (usdr,) = curve["validation uSDR"].dropna()
    return {
        "learning_rate": rate,
        "valid_usdr": float(usdr),
        "seconds_per_step": round(float(steps.median()), 5),
    }


if __name__ == "__main__":
    system, *rate = sys.argv[1:]
    run_stage(
        (lambda: train_into(folder(system, float(rate[0])), configuration(system, float(rate[0]))))
        if rate
        else (lambda: main(system))
    )
