"""Stage ``evaluate``: ``python -m ablations.stages.evaluate <run or baseline>``, the command ``twinsep evaluate``."""

import json
import sys

from ablations import settings
from twinsep.config import from_dict
from twinsep.errors import guarded
from twinsep.evaluation import evaluate
from twinsep.evaluation.systems import BASELINES
from twinsep.training.run_dir import BEST
from twinsep.utils import provenance
from twinsep.utils.files import write_json


def main(name: str) -> None:
    """Score a run's best checkpoint, or a baseline under the configuration of the base run."""
    profile = settings.profile()
    baseline = name in BASELINES
    run = settings.BASE_RUN if baseline else name
    config = from_dict(json.loads((settings.CONFIGS / f"{run}.json").read_text()))
    out = settings.RUNS / (f"baseline-{name}" if baseline else name)
    entry = settings.runs()[run]
    evaluate.evaluate(
        name if baseline else str(out / BEST),
        config if baseline else None,
        out=out,
        root=None,
        splits=None,
        museval=profile["museval"] and (baseline or entry.row == "base"),
        overlap=0.25,
        segment=None,
        framework=entry.framework,
        device="cpu" if baseline else profile["device"],
    )
    if baseline:
        write_json(out / "run.json", {"configuration": config.to_dict(), **provenance.describe("cpu")})


if __name__ == "__main__":
    guarded(lambda: main(sys.argv[1]))
