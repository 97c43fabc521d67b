"""The layout of the code: folders by subject, imports in one direction."""

import re
import subprocess

import pytest
from helpers.imports import ROOT, circles, imports

#: The modules of ``twinsep`` that are public and stand in no folder.
PUBLIC = {"__init__", "cli", "errors", "info", "losses", "metrics", "stft"}
FOLDERS = {
    "audio", "bands", "benchmarks", "checkpoints", "config", "data", "demo", "evaluation", "kernels", "model",
    "separation", "training", "utils",
}  # fmt: skip
TWINS = ("torch_impl", "jax_impl")


def arrows(graph):
    return {(source, target) for source, targets in graph.items() for target in targets}


def top(module):
    return module.partition(".")[0]


def test_no_modules_import_each_other():
    assert circles(imports()) == []


def test_shared_code_imports_neither_a_twin_nor_a_stage():
    assert not {arrow for arrow in arrows(imports()) if top(arrow[0]) == "twinsep" != top(arrow[1])}


def test_neither_twin_imports_the_other_or_a_stage():
    for twin in TWINS:
        reached = {top(target) for source, target in arrows(imports()) if top(source) == twin}
        assert reached <= {twin, "twinsep"}


def test_only_the_command_line_imports_itself():
    assert not {source for source, target in arrows(imports()) if target == "twinsep.cli"}


def test_no_stage_imports_a_test():
    for path in (ROOT / "ablations").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) (tests|helpers|conftest|test_)", path.read_text(), re.MULTILINE), path


def test_utilities_and_configuration_are_at_the_bottom():
    below = {"twinsep.utils", "twinsep.errors"}
    for source, target in arrows(imports()):
        if source.startswith("twinsep.utils."):
            assert ".".join(target.split(".")[:2]) in below, (source, target)
        if source.startswith("twinsep.config."):
            assert ".".join(target.split(".")[:2]) in {"twinsep.config", "twinsep.bands", *below}, (source, target)


def test_every_module_stands_in_a_folder_of_the_layout():
    loose = {path.stem for path in (ROOT / "twinsep").glob("*.py")}
    assert loose <= PUBLIC
    folders = {path.parent.name for path in (ROOT / "twinsep").glob("*/*.py")}
    assert folders == FOLDERS


def test_the_root_holds_only_what_the_layout_names():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("no git checkout")
    allowed = {
        "README.md", "pyproject.toml", "dvc.yaml", "dvc.lock", "LICENSE", "CITATION.cff", "CHANGELOG.md",
        "requirements.lock", "paper", "torch_impl", "jax_impl", "ablations", "results", "notebooks", "tests", "twinsep",
    }  # fmt: skip
    assert {path.split("/")[0] for path in done.stdout.split() if not path.startswith(".")} <= allowed


@pytest.mark.parametrize(
    ("file", "line", "seen"),
    [
        ("twinsep/stft.py", "from twinsep import losses", circles),
        ("twinsep/stft.py", "def f():\n    import torch_impl.scan", lambda _: ("twinsep.stft", "torch_impl.scan")),
    ],
)
def test_a_wrong_import_would_be_seen(tmp_path, file, line, seen):
    for package in ("twinsep", *TWINS):
        for path in (ROOT / package).rglob("*.py"):
            copy = tmp_path / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(path.read_text())
    with (tmp_path / file).open("a") as module:
        module.write(f"\n{line}\n")
    graph = imports(tmp_path)
    found = seen(graph)
    assert found in arrows(graph) if isinstance(found, tuple) else found
