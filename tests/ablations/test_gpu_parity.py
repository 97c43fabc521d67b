"""The comparison on a GPU, made here on the CPU."""

import json

import pytest

from ablations import comparison, gpu_parity
from ablations.comparison import TOLERANCE


def test_distances_of_modules_and_networks_are_recorded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "level features; no U-Net"
    model = comparison.cases()[name]
    monkeypatch.setattr(comparison, "cases", lambda: {name: model})
    monkeypatch.setattr(gpu_parity, "DEVICE", "cpu")
    gpu_parity.main()
    record = json.loads((tmp_path / "results/parity_gpu.json").read_text())
    assert record["modules"].keys() == {"BandSplit", "MaskHead"}
    for distances in record["modules"].values():
        assert 0 < distances["forward"] <= TOLERANCE["block"]["float32"]
        assert 0 < distances["backward"] <= TOLERANCE["gradients"]["float32"]
    network = record["networks"][name]
    assert network.keys() == {"PyTorch, float32", "PyTorch, TF32", "PyTorch, bfloat16", "JAX, float32"}
    for what in ("PyTorch, float32", "JAX, float32"):
        assert 0 < network[what]["forward"] <= TOLERANCE["network"]["float32"]
        assert 0 < network[what]["gradients"] <= TOLERANCE["gradients"]["float32"]
    assert 1e-4 < network["PyTorch, bfloat16"]["forward"] < 0.1


def test_the_largest_distance_counts():
    exact = [{"y": 1.0, "d w": 2.0}, {"y": 1.0, "d w": 2.0}]
    found = [{"y": 1.5, "d w": 2.0}, {"y": 1.0, "d w": 2.5}]
    assert gpu_parity.compare(found, exact) == {"forward": 0.5, "gradients": pytest.approx(0.25)}
