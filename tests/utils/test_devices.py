"""``--device auto``: the best device that works, named on screen."""

import jax
import pytest
import torch

from jax_impl import devices as jax_devices
from torch_impl import devices
from torch_impl.unet import BandSplitUNet
from twinsep.separation.batch import SeparationOptions
from twinsep.utils import backend


@pytest.mark.parametrize(
    ("cuda", "mps", "agrees", "chosen"),
    [
        (True, True, True, "cuda"),
        (False, True, True, "mps"),
        (False, True, False, "cpu"),
        (False, False, True, "cpu"),
    ],
)
def test_pytorch_takes_cuda_then_an_apple_gpu_that_agrees_then_the_cpu(monkeypatch, cuda, mps, agrees, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(devices, "agrees_with_cpu", lambda _: agrees)
    monkeypatch.setattr(devices, "find_device", torch.device)
    assert devices.choose_device() == chosen


def test_a_gpu_that_pytorch_finds_and_cannot_use_is_passed_over(monkeypatch):
    def zeros(*_, device):
        raise RuntimeError(f"{device}: no kernel image is available for execution on the device")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", zeros)
    assert devices.choose_device() == "cpu"


@pytest.mark.parametrize(("backends", "chosen"), [("cpu", "cpu"), ("gpu", "cuda"), ("METAL", "cpu")])
def test_jax_takes_cuda_or_the_cpu(monkeypatch, backends, chosen):
    monkeypatch.setattr(jax, "default_backend", lambda: backends)
    assert jax_devices.choose_device() == chosen


def test_a_device_agrees_if_a_small_network_computes_the_same(monkeypatch):
    assert devices.agrees_with_cpu("cpu")
    forward = BandSplitUNet.forward

    def wrong(self, mixture):
        y = forward(self, mixture)
        return y * 1.01 if mixture.dtype == torch.float32 else y

    monkeypatch.setattr(BandSplitUNet, "forward", wrong)
    with pytest.warns(RuntimeWarning, match="^The device cpu is not used: y is off by"):
        assert not devices.agrees_with_cpu("cpu")


def test_the_chosen_device_is_named_and_an_unknown_kind_is_called_untested(monkeypatch):
    said = []
    monkeypatch.setattr(devices, "choose_device", lambda: "mps")
    assert backend.choose_device("torch", SeparationOptions().device, said.append) == "mps"
    assert backend.choose_device("torch", "cuda:1", said.append) == "cuda:1"
    assert backend.choose_device("torch", "xpu:0", said.append) == "xpu:0"
    assert said == ["computing on mps", "the device xpu:0 is untested: compare a short song with --device cpu"]
