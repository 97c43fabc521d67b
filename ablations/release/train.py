"""Stage ``train``: train the model of the released weights, in as many sittings as it takes.

A stopped run resumes from its last checkpoint, on another machine or device too if ``results/work/release`` is carried
over. Unlike the runs of the tables it resumes after changes of the code, since it takes many hours; each sitting is
recorded with its commit. Other songs or another recipe start it again.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ablations.release import settings
from ablations.stages import run_stage
from twinsep.errors import InputError
from twinsep.training import loop
from twinsep.training.run_dir import BEST, LAST, RECORD
from twinsep.utils import provenance
from twinsep.utils.backend import choose_device
from twinsep.utils.files import write_json

#: The run, and the "commit", "device" and "time" of the start of each of its sittings.
SITTINGS = settings.WORK / "sittings.json"


def main() -> None:
    """Train into ``results/work/release/run``, unless the run is finished."""
    config, made_with = settings.configuration(), songs_digest()
    if is_finished(config.hash, made_with):
        return
    training = settings.recipe()["training"]
    device = choose_device(training["framework"], training["device"], print)
    note_sitting(config.hash, made_with, device)
    options = loop.RunOptions(training["framework"], device, overwrite=True, basis=made_with)
    loop.train(config, settings.RUN, options)


def songs_digest() -> str:
    """Digest of what determines the songs."""
    try:
        return "songs " + hashlib.sha256((settings.SONGS / "dataset.json").read_bytes()).hexdigest()[:16]
    except FileNotFoundError as error:
        raise InputError(f"{settings.SONGS} holds no songs: run the stage `songs` first") from error


def is_finished(config_hash: str, made_with: str) -> bool:
    """True if the run of this recipe and these songs is finished."""
    try:
        record = json.loads((settings.RUN / RECORD).read_text())
    except (OSError, ValueError):
        return False
    finished = all((settings.RUN / name).exists() for name in (BEST, LAST))
    return finished and record["hash"] == config_hash and record.get("basis") == made_with


def note_sitting(config_hash: str, made_with: str, device: str) -> None:
    """Add this sitting to those of the run; of another run none is kept."""
    run = {"hash": config_hash, "basis": made_with}
    found: dict[str, Any] = json.loads(SITTINGS.read_text()) if SITTINGS.exists() else {}
    earlier = found["sittings"] if found.get("run") == run and (settings.RUN / LAST).exists() else []
    described = provenance.describe(device)
    this = {key: described[key] for key in ("commit", "device", "time")}
    write_json(SITTINGS, {"run": run, "sittings": [*earlier, this]})


if __name__ == "__main__":
    run_stage(main)
