"""Stages ``training_code`` and ``evaluation_code``: ``python -m ablations.stages.code <stage> <framework>``.

They list the files of code that every training or evaluation in a framework depends on, with their digests.
"""

import sys

from ablations import settings
from ablations.stages import run_stage
from twinsep.utils.files import write_json


def main(stage: str, framework: str) -> None:
    """Write the list."""
    path = settings.code_list_path(stage, framework)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, settings.stage_inputs(f"{stage}@{framework}"))


if __name__ == "__main__":
    run_stage(lambda: main(*sys.argv[1:]))
