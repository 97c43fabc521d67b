"""The identity start: features reach the mask head almost unchanged, and the mask starts with the mixture's phase."""

import numpy as np
import pytest
import torch

import torch_impl
from torch_impl.train import initialise
from twinsep.config import preset
from twinsep.config.mixers import MIXERS
from twinsep.model import initializers

SMALL = {"d_model": 16, "n_heads": 2, "bands": "vocal18", "memory_tokens": [16, 12, 8, 4]}


def network(start, mixer="conv", **more):
    config = preset("tiny").override({"model": {**SMALL, "init": start, "mixer": {"kind": mixer}}})
    model = torch_impl.networks.build(config.override({"model": more}))
    initialise(model, 0, start)
    return model.eval()


def kept(model, frames=40):
    """Cosine between the features that enter the U-Net and those that leave it."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 18, frames, 16))).float()
    with torch.no_grad():
        y = model.network(x)
    return float(torch.nn.functional.cosine_similarity(x.flatten(), y.flatten(), dim=0))


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_network_passes_features_on(mixer):
    assert kept(network("identity", mixer)) > 0.9
    assert kept(network("default", mixer)) < 0.3


@pytest.mark.parametrize("mask", ["polar", "glu"])
def test_the_mask_starts_with_phase_zero_and_magnitude_near_sigmoid_of_1(mask):
    model = network("identity", mask=mask)
    noise = torch.from_numpy(0.1 * np.random.default_rng(0).standard_normal((1, 2, 20_000))).float()
    with torch.no_grad():
        _, extra = model(noise, return_auxiliary_outputs=True)
    assert torch.equal(extra["mask"].imag, torch.zeros_like(extra["mask"].imag))
    assert abs(float(extra["mask"].real.median()) - 1 / (1 + np.exp(-1))) < 0.05


@pytest.mark.parametrize("pattern", initializers.IDENTITY_START)
def test_every_entry_changes_a_weight_of_some_network(pattern):
    found = False
    for mixer, mask in [*((mixer, "polar") for mixer in MIXERS), ("conv", "glu")]:
        own = torch_impl.layers.named_parameters(network("default", mixer, mask=mask))
        found |= any(
            initializers.change_of(name) == pattern
            and np.any(initializers.draw(name, w.shape, w.initialiser, 0, "identity") != w.detach().numpy())
            for name, w in own.items()
        )
    assert found


def test_other_weights_start_as_by_default():
    default, identity = (torch_impl.layers.named_parameters(network(start)) for start in ("default", "identity"))
    assert default.keys() == identity.keys()
    for name, w in default.items():
        if initializers.change_of(name) is None:
            assert torch.equal(w, identity[name])


def test_a_flat_network_passes_features_on_too():
    assert kept(network("identity", network="flat", n_layers=3)) > 0.9
