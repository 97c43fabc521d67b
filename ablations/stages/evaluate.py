"""Stage ``evaluate``: ``python -m ablations.stages.evaluate <run or baseline>``, the command ``twinsep evaluate``."""

import json
import sys

from ablations import settings
from twinsep.config import from_dict
from twinsep.errors import guarded
from twinsep.evaluation.evaluate import evaluate_baseline, evaluate_checkpoint
from twinsep.evaluation.systems import BASELINES
from twinsep.training.run_dir import BEST
from twinsep.utils import provenance
from twinsep.utils.files import write_json


def main(name: str) -> None:
    """Score a run's best checkpoint, or a baseline under the configuration of the base run."""
    profile = settings.profile()
    if name in BASELINES:
        config = from_dict(json.loads((settings.CONFIGS / f"{settings.BASE_RUN}.json").read_text()))
        out = settings.RUNS / f"baseline-{name}"
        evaluate_baseline(name, config, out=out, museval=profile["museval"])
        write_json(out / "run.json", {"configuration": config.to_dict(), **provenance.describe("cpu")})
        return
    run = settings.runs()[name]
    evaluate_checkpoint(
        settings.RUNS / name / BEST,
        out=settings.RUNS / name,
        museval=profile["museval"] and run.row == "base",
        framework=run.framework,
        device=profile["device"],
    )


if __name__ == "__main__":
    guarded(lambda: main(sys.argv[1]))
