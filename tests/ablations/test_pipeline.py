"""What the pipeline runs again: the stages are the real ones, but for what they compute."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
#: Writes each of the paths it is given: a file, or a folder with one in it.
STUB = """
import sys
from pathlib import Path

for path in map(Path, sys.argv[1:]):
    if not path.suffix:
        path.mkdir(parents=True, exist_ok=True)
        path = path / "content"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("content")
"""
#: Enough to tell rows apart: two of one table, and of the default row a run in each framework.
RUNS = ("torch-default-0", "jax-default-0", "torch-lstm-0", "torch-conv-0")


def dvc(folder, *arguments):
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def outdated(folder):
    return set(json.loads(dvc(folder, "status", "--json", "train", "evaluate")))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workspace in which these runs have been trained and evaluated, stage `configure` as it is, the others stubs."""
    folder = tmp_path_factory.mktemp("pipeline")
    for package in ("ablations", "twinsep", "torch_impl", "jax_impl"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    for name, stage in pipeline["stages"].items():
        body = stage.get("do", stage)
        outs = [
            o if isinstance(o, str) else next(iter(o))
            for key in ("outs", "metrics", "plots")
            for o in body.get(key, [])
        ]
        python = f'"{sys.executable}"'
        body["cmd"] = (
            f"{python} -m ablations.stages.configure" if name == "configure" else f"{python} stub.py {' '.join(outs)}"
        )
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    (folder / "stub.py").write_text(STUB)
    rows = yaml.safe_load((ROOT / "ablations" / "rows.yaml").read_text())
    rows["runs"] = {run: rows["runs"][run] for run in RUNS}
    (folder / "ablations" / "rows.yaml").write_text(yaml.safe_dump(rows, sort_keys=False))
    dvc(folder, "init", "--no-scm", "--quiet")
    dvc(folder, "config", "core.analytics", "false")
    dvc(folder, "repro", "--quiet", "train", "evaluate")
    assert outdated(folder) == set()
    return folder


@pytest.fixture
def workspace(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "workspace"))


def edit(path, change):
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def test_a_touched_row_is_trained_again_and_no_other(workspace):
    edit(
        workspace / "ablations" / "rows.yaml",
        lambda c: c["runs"]["torch-conv-0"]["override"].update(loss={"log_floor": 1e-4}),
    )
    dvc(workspace, "repro", "--quiet", "configure")
    assert outdated(workspace) == {"train@torch-conv-0"}
    dvc(workspace, "repro", "--quiet", "train", "evaluate")
    assert outdated(workspace) == set()


def test_a_new_row_is_trained_and_a_question_reworded_trains_nothing(workspace):
    new = {"framework": "torch", "axis": "mixer", "question": "Two?", "override": {"model": {"n_enc": 2}}}

    def change(content):
        content["runs"]["torch-lstm-0"]["question"] = "Why not?"
        content["runs"]["torch-deeper-0"] = new

    edit(workspace / "ablations" / "rows.yaml", change)
    dvc(workspace, "repro", "--quiet", "configure")
    assert outdated(workspace) == {"train@torch-deeper-0", "evaluate@torch-deeper-0"}


def test_all_runs_follow_the_profile_and_those_of_one_framework_its_code(workspace):
    with (workspace / "jax_impl" / "unet.py").open("a") as file:
        file.write("# another line\n")
    assert outdated(workspace) == {"train@jax-default-0"}
    edit(workspace / "ablations" / "params.yaml", lambda c: c.update(profile="smoke"))
    dvc(workspace, "repro", "--quiet", "configure")
    assert outdated(workspace) >= {f"train@{run}" for run in RUNS}
