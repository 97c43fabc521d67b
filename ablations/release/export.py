"""Stage ``export``: write the released checkpoint, averaged weights in float16, for git and for the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ablations.release import settings, train
from ablations.stages import run_stage
from twinsep import checkpoints
from twinsep.checkpoints import Checkpoint
from twinsep.checkpoints.released import half_precision
from twinsep.errors import InputError, TwinsepError
from twinsep.training.run_dir import BEST, RECORD
from twinsep.utils.files import write_atomically, write_json

#: The record of the run, with its sittings, as it is committed.
OUT = settings.RELEASED / "run.json"
LICENCE = "see the model card: the songs are derived from recordings under CC BY-SA and GPL"


def main() -> None:
    """Write the weights with the best validation score, and the record of the run."""
    source = settings.RUN / BEST
    if not (settings.RUN / RECORD).exists():
        raise InputError(f"{settings.RUN} holds no finished run: run the stage `train` first")
    record = json.loads((settings.RUN / RECORD).read_text())
    released = released_checkpoint(checkpoints.read(source), record)
    write(released, settings.WEIGHTS, settings.recipe()["export"]["bytes"])
    write_atomically(settings.SHIPPED, settings.WEIGHTS.read_bytes())
    sittings = json.loads(train.SITTINGS.read_text())["sittings"]
    write_json(OUT, {**record, "sittings": sittings, "exported_step": released.step})


def released_checkpoint(found: Checkpoint, record: dict[str, Any]) -> Checkpoint:
    """The checkpoint with its averaged weights alone, in float16, and where it is from."""
    weights = half_precision(found.weights("ema"))
    origin = {key: record[key] for key in ("framework", "commit", "basis") if key in record}
    tensors = {f"model/{name}": w for name, w in weights.items()}
    return Checkpoint(found.config, tensors, found.step, provenance=origin | {"licence": LICENCE})


def write(released: Checkpoint, path: Path, most: int) -> None:
    """Write the checkpoint; raises :class:`TwinsepError`, and leaves no file, if it has more than ``most`` bytes."""
    checkpoints.write(path, released)
    size = path.stat().st_size
    if size > most:
        path.unlink()
        raise TwinsepError(f"the released weights take {size:,} bytes, more than {most:,}: choose a smaller model")


if __name__ == "__main__":
    run_stage(main)
