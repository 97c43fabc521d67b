"""The runs of the grid on a Ray cluster: ``python -m ablations.cluster [group …]``, by default all groups.

Every run is an item: Ray places it on a free core (or GPU) and starts it again if its worker dies, and it then resumes
from its last checkpoint. All machines share the folder of the repository. The stage ``train`` keeps finished runs of
the same code and songs, so that ``dvc repro`` afterwards trains nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

from ablations import settings
from ablations.stages import train
from twinsep.errors import InputError, TwinsepError, guarded
from twinsep.utils import cluster, progress


class Run(NamedTuple):
    """A training, and the folder of the repository on every machine."""

    group: str
    seed: int
    root: Path


def main(names: list[str]) -> None:
    """Train the runs of the groups ``names`` that are not finished; raises TwinsepError naming those that failed."""
    groups = settings.trained_groups()
    if unknown := [name for name in names if name not in groups]:
        raise InputError(f"rows.yaml has no group {unknown[0]!r} in this profile; known: {', '.join(groups)}")
    root = Path.cwd()
    runs = [Run(name, seed, root) for name in names or groups for seed in groups[name].seeds]
    gpus = 0 if settings.profile()["device"] == "cpu" else 1
    failed = []
    with progress.progress_bar("runs") as report:
        for done, (run, _, error) in enumerate(cluster.run(train_run, runs, gpus=gpus, fresh=True), 1):
            report(done, len(runs))
            if error is not None:
                failed.append(f"{run.group}, seed {run.seed}: {error}")
    if failed:
        raise TwinsepError(f"{len(failed)} of {len(runs)} runs failed: {'; '.join(failed[:3])}; start the rest again")


def train_run(run: Run) -> None:
    """Train one run in the repository's folder."""
    os.chdir(run.root)
    train.train(run.group, run.seed)


if __name__ == "__main__":
    guarded(lambda: main(sys.argv[1:]))
