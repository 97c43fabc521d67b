"""Stage ``train``: train the model of the released weights, in phases, each in as many sittings as it takes.

A phase begins with the averaged weights of the phase before, and its learning rate rises again (warm restarts,
Loshchilov and Hutter 2017, arXiv 1608.03983); so a run is prolonged without being repeated. A stopped phase resumes
from its last checkpoint, on another machine or device too if ``results/work/release`` is carried over. Unlike the runs
of the tables it resumes after changes of the code, since it takes many hours; each sitting is recorded with its commit.
Other songs or another recipe start a phase and those after it again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ablations.release import settings
from ablations.stages import run_stage
from twinsep.checkpoints.initial import describe_initial_weights
from twinsep.config import Config
from twinsep.errors import InputError
from twinsep.training import loop
from twinsep.training.run_dir import BEST, LAST, RECORD
from twinsep.utils import provenance
from twinsep.utils.backend import choose_device
from twinsep.utils.files import write_json

#: In the folder of a phase: the phase, and the "commit", "device" and "time" of the start of each of its sittings.
SITTINGS = "sittings.json"


def main() -> None:
    """Train each phase into ``results/work/release/run/phase-N``, unless it is finished."""
    made_with, init = songs_digest(), None
    for number, config in enumerate(settings.phases(), 1):
        folder = settings.phase_folder(number)
        if not is_finished(folder, config.hash, made_with, init):
            train_phase(folder, config, made_with, init)
        init = folder / BEST


def train_phase(folder: Path, config: Config, made_with: str, init: Path | None) -> None:
    """Train one phase to its end, from the weights ``init`` or, without them, from the seed."""
    training = settings.recipe()["training"]
    device = choose_device(training["framework"], training["device"], print)
    note_sitting(folder, config.hash, made_with, device)
    options = loop.RunOptions(training["framework"], device, overwrite=True, basis=made_with, init=init)
    loop.train(config, folder, options)


def songs_digest() -> str:
    """Digest of what determines the songs."""
    try:
        return "songs " + hashlib.sha256((settings.SONGS / "dataset.json").read_bytes()).hexdigest()[:16]
    except FileNotFoundError as error:
        raise InputError(f"{settings.SONGS} holds no songs: run the stage `songs` first") from error


def is_finished(folder: Path, config_hash: str, made_with: str, init: Path | None) -> bool:
    """True if the phase in ``folder``, of this recipe, these songs and these first weights, is finished."""
    try:
        record = json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return False
    finished = all((folder / name).exists() for name in (BEST, LAST))
    start = describe_initial_weights(init)["sha256"] if init else ""
    same = record["hash"] == config_hash and record.get("basis") == made_with
    return finished and same and record.get("init", {}).get("sha256", "") == start


def note_sitting(folder: Path, config_hash: str, made_with: str, device: str) -> None:
    """Add this sitting to those of the phase; of another phase none is kept."""
    path, phase = folder / SITTINGS, {"hash": config_hash, "basis": made_with}
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    earlier = found["sittings"] if found.get("phase") == phase and (folder / LAST).exists() else []
    described = provenance.describe(device)
    this = {key: described[key] for key in ("commit", "device", "time")}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"phase": phase, "sittings": [*earlier, this]})


if __name__ == "__main__":
    run_stage(main)
