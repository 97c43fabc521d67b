"""Stage ``train``: ``python -m ablations.train <run>``, the command ``twinsep train`` on that run's configuration.

DVC runs a stage again because its code, its configuration or its data changed, or because it was interrupted: a
finished run is out of date then, and an unfinished one goes on if it rested on the same code and data.
"""

import hashlib
import json
import sys

from ablations import data, settings
from twinsep import provenance, training
from twinsep.cli import guarded
from twinsep.config import from_dict


def main(run: str) -> None:
    config = from_dict(json.loads((settings.CONFIGS / f"{run}.json").read_text()))
    framework = settings.runs()[run].framework
    songs = hashlib.sha256(data.INVENTORY.read_bytes()).hexdigest()[:16]
    how = training.Run(
        framework=framework,
        device=settings.profile()["device"],
        overwrite=True,
        basis=f"code {provenance.code('twinsep', f'{framework}_impl')}, songs {songs}",
    )
    training.train(config, settings.RUNS / run, how)


if __name__ == "__main__":
    guarded(lambda: main(sys.argv[1]))
