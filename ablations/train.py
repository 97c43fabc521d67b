"""Stage ``train``: ``python -m ablations.train <run>``, the command ``twinsep train`` on that run's configuration."""

import json
import sys

from ablations import settings
from twinsep import training
from twinsep.cli import guarded
from twinsep.config import from_dict


def main(run: str) -> None:
    config = from_dict(json.loads((settings.CONFIGS / f"{run}.json").read_text()))
    training.train(
        config,
        settings.RUNS / run,
        framework=settings.params()["runs"][run]["framework"],
        device=settings.profile()["device"],
        # DVC runs a stage again because its code or its data changed: a finished run is out of date then.
        overwrite=True,
    )


if __name__ == "__main__":
    guarded(lambda: main(sys.argv[1]))
