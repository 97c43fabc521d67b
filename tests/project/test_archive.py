"""An archive of the repository, which has no ``.git``."""

import os
import subprocess
import sys
from pathlib import Path

from helpers.committed import extract_commit


def test_the_pipeline_runs_in_an_archive_after_one_line(tmp_path):
    extract_commit(tmp_path)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def dvc(*arguments):
        command = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    line = "dvc config core.no_scm true"
    assert f"`{line}`" in (tmp_path / "README.md").read_text()
    assert "not a git repository" in dvc("repro", "configure").stderr
    for arguments in (line.split()[1:], ["repro", "configure"]):
        done = dvc(*arguments)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "results" / "work" / "configs" / "torch-base.json").exists()
