"""What a run is decided by: its seed, its record, and that it was asked to repeat."""

import json
import os
import subprocess
import sys

import pytest
import torch

from twinsep import checkpoints
from twinsep.audio import spectrogram
from twinsep.training.loop import RunOptions, train
from twinsep.training.run_dir import LAST


@pytest.fixture
def micro(micro):
    """With the mixer that compiles fastest."""
    return micro.override({"model": {"mixer": {"kind": "conv", "kernel": 3}, "memory_tokens": [0, 0, 0, 0]}})


@pytest.fixture(autouse=True)
def blank(monkeypatch):
    """No pictures of songs: nothing here looks at them."""
    monkeypatch.setattr(spectrogram, "draw_spectrograms", lambda *_, **__: b"")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("plain") / "a"


@pytest.fixture
def plain(micro, kept, blank):  # noqa: ARG001
    """A run of that configuration as it is, made once and only read."""
    if not kept.exists():
        train(micro, kept)
    return kept


def test_a_deterministic_run_is_the_same_run(micro, plain, tmp_path, monkeypatch, request):
    """On a CPU nothing else would do; two runs of one seed are compared, in both frameworks, in test_survival."""
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    train(micro, tmp_path / "b", RunOptions(deterministic=True))
    a, b = (checkpoints.read(run / LAST).tensors for run in (plain, tmp_path / "b"))
    assert all(a[name].tobytes() == b[name].tobytes() for name in a)
    assert torch.are_deterministic_algorithms_enabled()
    assert "--xla_gpu_deterministic_ops=true" in os.environ["XLA_FLAGS"]


#: The scan's output and gradients, as bytes; its helpers are compiled as those of the other kernels are.
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


def test_the_process_that_compiles_a_kernel_computes_as_those_after_it(tmp_path):
    """Helpers compiled apart from the kernel once had another of two products fused there (see `inlined`)."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    first, second = (
        subprocess.run([sys.executable, "-c", SCAN], env=environment, stdout=subprocess.PIPE, check=True).stdout
        for _ in range(2)
    )
    assert list(tmp_path.rglob("*.nbc"))
    assert len(first) > 10_000
    assert first == second


def test_another_seed_is_another_run(micro, plain, tmp_path):
    train(micro.override({"training": {"seed": 1}}), tmp_path / "b")
    a, b = (checkpoints.read(run / LAST).tensors for run in (plain, tmp_path / "b"))
    assert any(a[name].tobytes() != b[name].tobytes() for name in a)


def test_a_run_is_repeated_from_its_record(plain, tmp_path, monkeypatch):
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
