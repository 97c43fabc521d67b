"""Stage ``train``: ``python -m ablations.stages.train <run>`` trains a run as ``twinsep train`` does.

DVC runs this stage if code, configuration or songs have changed, or if the stage was interrupted. An unfinished run
resumes if it was started with the same code and songs; any other run starts anew.
"""

import hashlib
import json
import sys

from ablations import settings
from ablations.stages import inventory
from twinsep.config import from_dict
from twinsep.errors import guarded
from twinsep.training import loop
from twinsep.utils import provenance


def main(run: str) -> None:
    """Train ``run`` with its configuration file into ``results/runs/<run>``."""
    config = from_dict(json.loads((settings.CONFIGS / f"{run}.json").read_text()))
    framework = settings.runs()[run].framework
    options = loop.RunOptions(
        framework=framework, device=settings.profile()["device"], overwrite=True, basis=basis(framework)
    )
    loop.train(config, settings.RUNS / run, options)


def basis(framework: str) -> str:
    """Digests of the code that ``dvc.yaml`` lists for this stage and of the songs: a run resumes only on the same."""
    code = provenance.code_hash(*settings.code_dependencies("train", framework))
    songs = hashlib.sha256(inventory.OUT.read_bytes()).hexdigest()[:16]
    return f"code {code}, songs {songs}"


if __name__ == "__main__":
    guarded(lambda: main(sys.argv[1]))
