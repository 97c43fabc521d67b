"""Stage ``train``: ``python -m ablations.systems.train <group>`` trains a system's runs side by side.

With a seed as second argument it trains that run alone. An unfinished run resumes on the same code and songs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

from ablations import settings, side_by_side
from ablations.stages import inventory, run_stage
from ablations.stages.train import curves, is_finished
from ablations.systems import rows
from twinsep.config.schema import Config
from twinsep.training import loop
from twinsep.training.run_dir import FINAL, RECORD
from twinsep.utils import provenance
from twinsep.utils.files import write_atomically, write_json

ADDRESS = "ablations/systems/dvc.yaml:train"


def main(group: str) -> None:
    """Train the seeds of ``group`` and keep their records, curves and weights."""
    commands = {f"{group}, seed {seed}": ["ablations.systems.train", group, str(seed)] for seed in rows.seeds()}
    side_by_side.run_modules(commands, device=settings.profile()["device"])
    for folder in (rows.training_folder(group, 0).parent, rows.weights_path(group, 0).parent):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for seed in rows.seeds():
        work, kept = rows.WORK / group / str(seed), rows.training_folder(group, seed)
        write_json(kept / "run.json", json.loads((work / RECORD).read_text()))
        write_atomically(kept / "curves.csv", curves(work).to_csv(index=False).encode())
        shutil.copyfile(work / FINAL, rows.weights_path(group, seed))
    shutil.rmtree(rows.WORK / group)


def train_into(folder: Path, config: Config) -> None:
    """Train ``config`` into ``folder``, unless it is finished there already."""
    code = provenance.code_hash(*settings.code_dependencies(ADDRESS, rows.FRAMEWORK))
    made_with = f"code {code}, songs {hashlib.sha256(inventory.OUT.read_bytes()).hexdigest()[:16]}"
    if not is_finished(folder, config.hash, made_with):
        device = settings.profile()["device"]
        options = loop.RunOptions(framework=rows.FRAMEWORK, device=device, overwrite=True, basis=made_with)
        loop.train(config, folder, options)


def train(group: str, seed: int) -> None:
    """Train one run."""
    train_into(rows.WORK / group / str(seed), rows.configuration(rows.groups()[group], seed))


if __name__ == "__main__":
    group, *seed = sys.argv[1:]
    run_stage((lambda: train(group, int(seed[0]))) if seed else (lambda: main(group)))
