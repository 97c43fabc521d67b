"""Reproducibility: a run is determined by its configuration, its seed and its record."""

import json
import os
import subprocess
import sys

import pytest
import torch

from twinsep import checkpoints
from twinsep.training.loop import RunOptions, train
from twinsep.training.run_dir import LAST

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def micro(micro):
    """The mixer that compiles fastest."""
    return micro.override({"model": {"mixer": {"kind": "conv", "kernel": 3}, "memory_tokens": [0, 0, 0, 0]}})


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Folder of the run that the tests compare with."""
    return tmp_path_factory.mktemp("plain") / "a"


@pytest.fixture
def plain(micro, kept, no_pictures):  # noqa: ARG001
    """A run of the plain configuration, made once and only read."""
    if not kept.exists():
        train(micro, kept)
    return kept


def test_a_deterministic_run_equals_the_plain_one_on_a_cpu(micro, plain, tmp_path, monkeypatch, request):
    """A CPU repeats to the bit anyway; test_interruptions compares runs of one seed in both frameworks."""
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    train(micro, tmp_path / "b", RunOptions(deterministic=True))
    a, b = (checkpoints.read(run / LAST).tensors for run in (plain, tmp_path / "b"))
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)
    assert torch.are_deterministic_algorithms_enabled()
    assert "--xla_gpu_deterministic_ops=true" in os.environ["XLA_FLAGS"]


#: Program that prints the scan's output and gradients as bytes; all kernels compile their helpers alike.
SCAN = """
import sys
import torch
from torch_impl.scan import selective_scan

torch.manual_seed(0)
shapes = (2, 70, 16), (2, 70, 16), (16, 8), (2, 70, 8), (2, 70, 8), (16,), (2, 70, 16)
inputs = [torch.rand(shape, requires_grad=True) for shape in shapes]
u, delta, A, *rest = inputs
y = selective_scan(u, delta, -A, *rest)
y.square().sum().backward()
for tensor in (y, *(x.grad for x in inputs)):
    sys.stdout.buffer.write(tensor.detach().numpy().tobytes())
"""


def test_the_process_that_compiles_a_kernel_computes_the_same_as_later_ones(tmp_path):
    """Helpers compiled apart from their kernel once fused another of two products (see `inlined`)."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    first, second = (
        subprocess.run([sys.executable, "-c", SCAN], env=environment, stdout=subprocess.PIPE, check=True).stdout
        for _ in range(2)
    )
    assert list(tmp_path.rglob("*.nbc"))
    assert len(first) > 10_000
    assert first == second


def test_another_seed_gives_other_weights(micro, plain, tmp_path):
    train(micro.override({"training": {"seed": 1}}), tmp_path / "b")
    a, b = (checkpoints.read(run / LAST).tensors for run in (plain, tmp_path / "b"))
    assert any(a[name].tobytes() != b[name].tobytes() for name in a)


def test_a_run_can_be_repeated_from_its_record(plain, tmp_path, monkeypatch):
    from twinsep import cli

    record = json.loads((plain / "run.json").read_text())
    assert record["options"] == {"device": "cpu", "deterministic": False}
    arguments = ["twinsep", "train", "--from", plain / "run.json", "--out", tmp_path / "b"]
    monkeypatch.setattr("sys.argv", [str(argument) for argument in arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    assert (plain / LAST).stat().st_size > 0
    a, b = (checkpoints.read(run / LAST) for run in (plain, tmp_path / "b"))
    assert a.config == b.config
    assert all(a.tensors[name].tobytes() == b.tensors[name].tobytes() for name in a.tensors)
