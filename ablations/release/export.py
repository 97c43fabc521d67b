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

#: The records of the phases of the run, with their sittings, as they are committed.
OUT = settings.RELEASED / "run.json"
LICENCE = "see the model card: the songs are derived from recordings under CC BY-SA and GPL"


def main() -> None:
    """Write the weights of the last phase with the best validation score, and the records of all phases."""
    folders = [settings.phase_folder(number) for number in range(1, len(settings.phases()) + 1)]
    if not all((folder / RECORD).exists() for folder in folders):
        raise InputError(f"{settings.RUN} holds no finished run: run the stage `train` first")
    records = [
        json.loads((folder / RECORD).read_text()) | json.loads((folder / train.SITTINGS).read_text())
        for folder in folders
    ]
    released = released_checkpoint(checkpoints.read(folders[-1] / BEST), records[-1])
    write(released, settings.WEIGHTS, settings.recipe()["export"]["bytes"])
    write_atomically(settings.SHIPPED, settings.WEIGHTS.read_bytes())
    write_json(OUT, {"phases": records, "exported_step": released.step})


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
