"""Keep the runs of the default row that another processor trained, for the stage ``noise``.

``python -m ablations.second_processor FOLDER "what computed there"`` reads a checkout in which the stages ``train``
and ``evaluate`` of ``torch-default`` ran, and writes ``results/second_processor.json`` here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ablations import scores, settings
from ablations.stages import run_stage
from twinsep.errors import InputError
from twinsep.utils.files import write_json

OUT = Path("results/second_processor.json")
#: What is kept of a run's record.
KEPT = ("configuration", "commit", "device", "versions", "seconds")


def main(folder: str, processor: str) -> None:
    """Write the record; ``processor`` says what computed in ``folder``."""
    group = f"torch-{settings.default_row()}"
    split, metric = scores.JUDGED
    runs, judged = {}, {}
    for seed in settings.seeds(group):
        paths = [Path(folder) / path for path in (settings.run_path(group, seed), settings.scores_path(group, seed))]
        if not all(path.exists() for path in paths):
            raise InputError(f"{folder} has no scored run of {group} with the seed {seed}: train it there")
        run, records = (json.loads(path.read_text()) for path in paths)
        runs[str(seed)] = {key: run[key] for key in KEPT}
        judged[str(seed)] = {
            record["track"]: record["value"]
            for record in records
            if (record["split"], record["metric"], record["target"]) == (split, metric, scores.STEMS[metric])
        }
    write_json(OUT, {"processor": processor, "group": group, "runs": runs, "uSDR of the instrumental": judged})


if __name__ == "__main__":
    match sys.argv[1:]:
        case [folder, processor]:
            run_stage(lambda: main(folder, processor))
        case _:
            sys.exit('usage: python -m ablations.second_processor FOLDER "what computed there"')
