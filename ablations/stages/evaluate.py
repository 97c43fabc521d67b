"""Stages ``evaluate`` and ``baselines``: ``python -m ablations.stages.evaluate <group or baselines>``.

They score what ``twinsep evaluate`` scores; bleedless and fullness, which no table of rows shows, of baselines only.
The runs of a group, or all baselines, are scored side by side; with a seed as second argument, or the name of a
baseline as first, one is scored alone.
"""

import json
import shutil
import sys

from ablations import settings, side_by_side
from ablations.stages import run_stage
from twinsep.config import from_dict
from twinsep.evaluation.evaluate import evaluate_baseline, evaluate_checkpoint
from twinsep.evaluation.systems import BASELINES
from twinsep.separation.overlap_add import Chunking
from twinsep.utils import provenance
from twinsep.utils.files import write_json


def main(name: str) -> None:
    """Score a group's runs, all baselines under the configuration of the base run, or one of them."""
    if name in BASELINES:
        baseline(name)
        return
    if name == "baselines":
        side_by_side.run_modules({each: ["ablations.stages.evaluate", each] for each in settings.params()["baselines"]})
        return
    folder = settings.RUNS / name / "scores"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    commands = {f"{name}, seed {seed}": ["ablations.stages.evaluate", name, str(seed)] for seed in settings.seeds(name)}
    side_by_side.run_modules(commands, device=settings.profile()["device"])


def run(group: str, seed: int) -> None:
    """Score one run."""
    profile, found = settings.profile(), settings.groups()[group]
    evaluate_checkpoint(
        settings.weights_path(group, seed),
        out=settings.scores_path(group, seed).parent,
        museval=profile["museval"] and found.name == settings.BASE_GROUP,
        bleedless=False,
        chunking=Chunking(**profile.get("chunking", {})),
        framework=found.framework,
        device=profile["device"],
        overwrite=True,
    )


def baseline(name: str) -> None:
    """Score a floor or the ceiling."""
    (first, *_) = json.loads(settings.configs_path(settings.BASE_GROUP).read_text()).values()
    config, out = from_dict(first), settings.RUNS / f"baseline-{name}"
    evaluate_baseline(name, config, out=out, museval=settings.profile()["museval"], overwrite=True)
    write_json(out / "run.json", {"configuration": config.to_dict(), **provenance.describe("cpu")})


if __name__ == "__main__":
    name, *seed = sys.argv[1:]
    run_stage((lambda: run(name, int(seed[0]))) if seed else (lambda: main(name)))
