"""Stage ``train``: ``python -m ablations.train <run>``, the command ``twinsep train`` on that run's configuration.

DVC runs a stage again because its code, its configuration or its data changed, or because it was interrupted: a
finished run is out of date then, and an unfinished one goes on if it rested on the same code and data.
"""

import hashlib
import json
import sys

from ablations import settings
from ablations.stages import data
from twinsep.config import from_dict
from twinsep.errors import guarded
from twinsep.training import loop
from twinsep.utils import provenance


def main(run: str) -> None:
    config = from_dict(json.loads((settings.CONFIGS / f"{run}.json").read_text()))
    framework = settings.runs()[run].framework
    songs = hashlib.sha256(data.INVENTORY.read_bytes()).hexdigest()[:16]
    how = loop.RunOptions(
        framework=framework,
        device=settings.profile()["device"],
        overwrite=True,
        basis=f"code {provenance.code_hash('twinsep', f'{framework}_impl')}, songs {songs}",
    )
    loop.train(config, settings.RUNS / run, how)


if __name__ == "__main__":
    guarded(lambda: main(sys.argv[1]))
