"""Stages that DVC runs again after a change; all but those that list or configure are stubs."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml

from ablations import settings
from ablations.stages import inventory, train

ROOT = Path(__file__).parents[2]
#: Writes each of the given paths: a file, or a folder with one file in it.
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
#: Copies a set of songs in place of generating one.
STUB_DATA = """
import shutil
from pathlib import Path

folder = Path("results/data/generated")
shutil.copytree("made", folder, dirs_exist_ok=True)
(folder / "dataset.json").write_text('{"version": 1, "songs": {}}')
"""
#: Two rows of one table, and the default row in each framework.
GROUPS = ("torch-default", "jax-default", "torch-lstm", "torch-conv")
TRAINED = {f"train@{group}" for group in GROUPS}
LISTS = ("training_code", "evaluation_code")
STAGES = ("data", "inventory", *LISTS, "train", "evaluate")
#: The stages of the workspace: DVC reads the file of all of them whenever it does anything.
KEPT = ("configure", *STAGES)
#: Modules that training imports and that change no number it computes; the pipeline starts from no weights of a file.
WITHOUT_NUMBERS = (
    "twinsep.audio",
    "twinsep.checkpoints.hub",
    "twinsep.checkpoints.initial",
    "twinsep.checkpoints.pickled",
    "twinsep.checkpoints.released",
    "twinsep.errors",
    "twinsep.utils",
)


def run_dvc(folder, *arguments):
    command = [sys.executable, "-m", "dvc", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def dvc(folder, *arguments):
    done = run_dvc(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def opened(folder):
    """The repository of DVC, in this process: importing DVC takes longer than most of its answers."""
    with contextlib.chdir(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from dvc.repo import Repo

        with Repo() as repo:
            yield repo


def outdated(folder, *stages):
    with opened(folder) as repo:
        return set(repo.status(targets=list(stages or STAGES)))


def reproduce(folder, *stages):
    with opened(folder) as repo:
        repo.reproduce(targets=list(stages))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, songs):
    """A workspace in which these groups have been trained and evaluated."""
    folder = tmp_path_factory.mktemp("pipeline")
    for package in ("ablations", "twinsep", "torch_impl", "jax_impl"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(songs, folder / "made")
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    pipeline["stages"] = {name: pipeline["stages"][name] for name in KEPT}
    python = f'"{sys.executable}"'
    for name, stage in pipeline["stages"].items():
        body = stage.get("do", stage)
        listed = [out for key in ("outs", "metrics") for out in body.get(key, [])]
        outs = [out if isinstance(out, str) else next(iter(out)) for out in listed]
        body["cmd"] = f"{python} stub.py {' '.join(outs)}"
        if name in ("configure", "inventory"):
            body["cmd"] = f"{python} -m ablations.stages.{name}"
        if name in LISTS:
            body["cmd"] = f"{python} -m ablations.stages.code {name} ${{item}}"
        if name == "data":
            body["cmd"] = f"{python} stub_data.py"
    (folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    shutil.copy(ROOT / ".dvcignore", folder)
    (folder / "stub.py").write_text(STUB)
    (folder / "stub_data.py").write_text(STUB_DATA)
    rows = yaml.safe_load((ROOT / "ablations" / "rows.yaml").read_text())
    rows["groups"] = {group: rows["groups"][group] for group in GROUPS}
    (folder / "ablations" / "rows.yaml").write_text(yaml.safe_dump(rows, sort_keys=False))
    params = yaml.safe_load((ROOT / "ablations" / "params.yaml").read_text())
    for profile in params["profiles"].values():
        profile.pop("only", None), profile.pop("without", None)  # they name rows that this workspace lacks
    (folder / "ablations" / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    dvc(folder, "init", "--no-scm", "--quiet")
    dvc(folder, "config", "core.analytics", "false")
    reproduce(folder, *STAGES)
    assert outdated(folder) == set()
    return folder


@pytest.fixture
def workspace(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "workspace"))


def edit(path, change):
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def append(path, line="# another line\n"):
    with path.open("a") as file:
        file.write(line)


def test_only_new_and_changed_rows_are_trained_again(workspace):
    """A row with another override, another seed or no run yet; not one whose question was reworded."""

    def change(content):
        groups = content["groups"]
        groups["torch-conv"]["override"].update(loss={"log_floor": 1e-4})
        groups["jax-default"].update(seeds=[0, 1, 2])
        groups["torch-lstm"].update(question="Why not?")
        override = {"model": {"n_enc": 2}}
        groups["torch-deeper"] = dict(framework="torch", seeds=[0], axis="mixer", question="Two?", override=override)

    edit(workspace / "ablations" / "rows.yaml", change)
    reproduce(workspace, "configure")
    trained = {"train@torch-conv", "train@jax-default", "train@torch-deeper"}
    assert outdated(workspace) == trained | {"evaluate@torch-deeper"}
    reproduce(workspace, "train", "evaluate")
    assert outdated(workspace) == set()


def test_all_groups_follow_the_profile(workspace):
    edit(workspace / "ablations" / "params.yaml", lambda c: c.update(profile="smoke"))
    reproduce(workspace, "configure")
    assert outdated(workspace) >= TRAINED | {"data"}


def test_training_depends_on_the_code_of_its_framework_and_on_no_page_check_or_document(workspace):
    for path in ("twinsep/demo/app.py", "twinsep/data/checks.py", "twinsep/cli.py"):
        append(workspace / path)
    for folder in ("torch_impl", "jax_impl", "twinsep/training"):
        append(workspace / folder / "README.md")
    assert outdated(workspace) == set()
    append(workspace / "jax_impl" / "unet.py")
    assert outdated(workspace) == {"training_code@jax", "evaluation_code@jax"}
    reproduce(workspace, *LISTS)
    assert outdated(workspace) == {"train@jax-default", "evaluate@jax-default"}
    append(workspace / "twinsep" / "metrics.py")
    reproduce(workspace, *LISTS)
    assert outdated(workspace) >= TRAINED


def test_the_generated_songs_depend_on_their_sizes_and_on_no_training_number(workspace):
    params = workspace / "ablations" / "params.yaml"
    edit(params, lambda c: c["profiles"]["cpu"]["training"].update(steps=17))
    assert outdated(workspace) == set()
    edit(params, lambda c: c["songs"]["cpu"].update(test=17))
    assert outdated(workspace) == {"data"}


@pytest.mark.parametrize(
    ("edits", "is_input"),
    [
        ({"twinsep/config/presets.py": "text + '# edited'"}, True),
        ({"ablations/params.yaml": "text.replace('profile: cpu', 'profile: gpu')"}, True),
        ({"ablations/params.yaml": "text + '# edited'", "twinsep/cli.py": "text + '# edited'"}, False),
    ],
)
def test_a_stage_whose_code_is_edited_while_it_runs_stays_outdated(workspace, edits, is_input):
    stage = workspace / "ablations" / "stages" / "configure.py"
    head, tail = stage.read_text().split('if __name__ == "__main__":')
    editing = "inner = main\ndef main():\n    from pathlib import Path\n    inner()\n" + "".join(
        f"    path = Path({edited!r})\n    text = path.read_text()\n    path.write_text({new})\n"
        for edited, new in edits.items()
    )
    stage.write_text(f'{head}{editing}if __name__ == "__main__":{tail}')
    lock = (workspace / "dvc.lock").read_text()
    done = run_dvc(workspace, "repro", "configure")
    assert (done.returncode != 0) is is_input, done.stderr
    said = "changed while the stage configure ran" in done.stderr and all(edited in done.stderr for edited in edits)
    assert said is is_input
    assert ("configure" in outdated(workspace, "configure")) is is_input
    assert ((workspace / "dvc.lock").read_text() == lock) is is_input
    assert "Traceback" not in done.stderr


def test_a_stage_does_not_start_with_other_code_than_was_listed(workspace):
    pipeline = yaml.safe_load((workspace / "dvc.yaml").read_text())
    pipeline["stages"]["train"]["do"]["cmd"] = f'"{sys.executable}" guarded.py'
    (workspace / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    (workspace / "guarded.py").write_text(
        "from ablations.stages import run_stage\nrun_stage(lambda: print('trained', flush=True))\n"
    )
    append(workspace / "torch_impl" / "README.md")
    append(workspace / "torch_impl" / "unet.py")
    alone = ("repro", "--single-item", "--force", "train@torch-conv")
    done = run_dvc(workspace, *alone)
    assert done.returncode != 0
    assert "torch_impl/unet.py changed since this command listed the code: run it again" in done.stderr
    dvc(workspace, "repro", "training_code@torch")
    assert "trained" in run_dvc(workspace, *alone).stdout


def test_dvc_notices_a_changed_file_in_an_external_folder(workspace, songs, tmp_path):
    own = Path(shutil.copytree(songs, tmp_path / "own"))
    edit(workspace / "ablations" / "params.yaml", lambda c: c["data"].update(root=str(own)))
    reproduce(workspace, *STAGES)
    assert outdated(workspace) == set()
    (stem,) = own.glob("train/a/vocals.wav")
    listed = json.loads((workspace / inventory.OUT).read_text())
    assert listed["root"] == str(own)
    assert listed["splits"]["train"]["a"]["files"]["vocals.wav"]["modified_ns"] == stem.stat().st_mtime_ns
    os.utime(stem, (0, 0))
    assert outdated(workspace) == set()  # touched, but of the same content
    stem.write_bytes(stem.read_bytes()[:-2] + b"ab")
    assert outdated(workspace) == {"inventory"}
    reproduce(workspace, "inventory")
    assert outdated(workspace) >= TRAINED


# ---------------------------------------------------------------------------- the lists in dvc.yaml


def test_every_dependency_on_code_exists():
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values():
        for path in stage.get("do", stage)["deps"]:
            if not path.startswith(("results/", "${data.root}")):
                assert (ROOT / path.replace("${item}", "torch")).exists(), path


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_training_depends_on_every_module_that_can_change_its_numbers(framework):
    code = (
        f"import sys, {framework}_impl.train, twinsep.training.loop\n"
        "for name, module in sys.modules.items():\n    if name.split('.')[0] == 'twinsep': print(name, module.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = [ROOT / path for path in settings.code_dependencies("train", framework)]
    assert ROOT / f"{framework}_impl" in listed
    for name, file in (line.split() for line in done.stdout.splitlines()):
        path = Path(file)
        if path.name == "__init__.py" or name.startswith(WITHOUT_NUMBERS):
            continue
        assert any(path.is_relative_to(dep) for dep in listed), name


def test_a_run_resumes_only_with_the_listed_code_and_the_same_songs(monkeypatch, tmp_path):
    monkeypatch.setattr(inventory, "OUT", tmp_path / "data.json")
    inventory.OUT.write_text("{}")
    first = train.basis("torch")
    assert train.basis("torch") == first != train.basis("jax")
    inventory.OUT.write_text("[]")
    assert train.basis("torch") != first
    inventory.OUT.write_text("{}")
    fewer = settings.code_dependencies("train", "torch")[1:]
    monkeypatch.setattr(settings, "code_dependencies", lambda *_: fewer)
    assert train.basis("torch") != first
