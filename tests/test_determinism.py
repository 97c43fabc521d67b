"""Two runs from one seed are one run, up to the scores; and a run is repeated from its own record."""

import json
import os

import pytest
import torch

from twinsep import checkpoint, evaluation
from twinsep.runs import BEST, LAST
from twinsep.training import Run, train

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def micro(micro):
    """With the mixer that compiles fastest."""
    return micro.override({"model": {"mixer": {"kind": "conv", "kernel": 3}}})


def scores(run, framework):
    evaluation.run(
        str(run / BEST),
        None,
        out=run,
        root=None,
        splits=["test"],
        museval=False,
        overlap=0.25,
        segment=None,
        framework=framework,
        device="cpu",
    )
    return (run / "metrics.json").read_bytes()


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_two_runs_from_one_seed_have_one_metrics_file(micro, tmp_path, framework, monkeypatch, request):
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    for name in "ab":
        train(micro, tmp_path / name, Run(framework, deterministic=name == "b"))
    a, b = (checkpoint.read(tmp_path / name / LAST).tensors for name in "ab")
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)
    assert scores(tmp_path / "a", framework) == scores(tmp_path / "b", framework)


def test_another_seed_is_another_run(micro, tmp_path):
    for seed in (0, 1):
        train(micro.override({"training": {"seed": seed}}), tmp_path / str(seed))
    a, b = (checkpoint.read(tmp_path / name / LAST).tensors for name in "01")
    assert any(a[name].tobytes() != b[name].tobytes() for name in a)


def test_a_run_is_repeated_from_its_record(micro, tmp_path, monkeypatch):
    from twinsep import cli

    train(micro, tmp_path / "a")
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    assert record["options"] == {"device": "cpu", "deterministic": False}
    arguments = ["twinsep", "train", "--from", tmp_path / "a" / "run.json", "--out", tmp_path / "b"]
    monkeypatch.setattr("sys.argv", [str(argument) for argument in arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert (tmp_path / "a" / LAST).stat().st_size > 0
    a, b = (checkpoint.read(tmp_path / name / LAST) for name in "ab")
    assert a.config == b.config
    assert all(a.tensors[name].tobytes() == b.tensors[name].tobytes() for name in a.tensors)
