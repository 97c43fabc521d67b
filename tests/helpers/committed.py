"""The files of the last commit: unlike those of the working tree, a run of the pipeline leaves them as they are."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def extract_commit(folder):
    """Write the files of the last commit into ``folder``; skip the test outside a clone."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git clone")
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
