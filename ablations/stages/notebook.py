"""Stages of the notebooks: ``python -m ablations.stages.notebook <name>`` runs one, which writes figures of the paper.

The executed notebook is discarded because it differs from run to run; its answer is printed.
"""

import os
import sys

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from ablations import settings
from ablations.stages import run_stage
from twinsep.errors import TwinsepError


def main(name: str) -> None:
    """Run ``notebooks/<name>.ipynb`` and print its answer. Raises :class:`TwinsepError` if a cell fails."""
    path = settings.ROOT / "notebooks" / f"{name}.ipynb"
    (settings.RUNS.parent / "figures").mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = str(settings.ROOT)  # the notebooks import the stages
    client = NotebookClient(nbformat.read(path, 4), timeout=600, resources={"metadata": {"path": str(settings.ROOT)}})
    try:
        client.execute()
    except CellExecutionError as error:
        raise TwinsepError(f"{path.name}: {error.ename}: {error.evalue}") from error
    for output in client.nb.cells[-1].outputs:
        print(output.get("data", {}).get("text/markdown", "").removeprefix("**Answer.** "))


if __name__ == "__main__":
    run_stage(lambda: main(sys.argv[1]))
