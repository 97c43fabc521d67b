"""The Mamba mixers against implementations that neither twin's author wrote, with equal weights, where installed.

mambapy (PyTorch) implements Mamba, mamba2-jax (Flax NNX) Mamba-2: `pip install mambapy mamba2-jax`.
"""

from importlib import import_module

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_impl
import torch_impl
from twinsep.config import preset
from twinsep.model import initializers

#: Frames: several chunks of either implementation, and a rest.
LENGTH = 150
D = 16


def drawn(mixer):
    """(mixer of each twin, its weights by name, input (2, l, d)); every weight is drawn, so that none is 0 or 1."""
    model = preset("tiny").override({"model": {"d_model": D, "mixer": mixer}}).model
    made = {twin: import_module(f"{twin.__name__}.mixers").build(model) for twin in (torch_impl, jax_impl)}
    made = {twin: getattr(mixer, "forwards", mixer) for twin, mixer in made.items()}
    rng = np.random.default_rng(0)
    weights = {}
    for name, weight in torch_impl.layers.named_parameters(made[torch_impl]).items():
        start = initializers.draw(name, weight.shape, weight.initialiser, 0)
        weights[name] = (start + 0.1 * rng.standard_normal(start.shape)).astype(np.float32)
    torch_impl.train.load_weights(made[torch_impl], weights, "oracle")
    jax_impl.train.load_weights(made[jax_impl], weights, "oracle")
    return made, weights, rng.standard_normal((2, LENGTH, D)).astype(np.float32)


def outputs(made, x):
    with torch.no_grad():
        return made[torch_impl](torch.from_numpy(x)).numpy(), np.asarray(made[jax_impl](jnp.asarray(x)))


def close(found, wanted):
    return np.linalg.norm(found - wanted) <= 2e-6 * np.linalg.norm(wanted)


def test_mamba_agrees_with_mambapy():
    mambapy = pytest.importorskip("mambapy.mamba")
    made, weights, x = drawn({"kind": "mamba", "d_state": 4})
    config = mambapy.MambaConfig(d_model=D, n_layers=1, d_state=4, expand_factor=2, d_conv=4, bias=False)
    block = mambapy.MambaBlock(config)
    block.load_state_dict({name: torch.from_numpy(w) for name, w in weights.items()})
    with torch.no_grad():
        wanted = block(torch.from_numpy(x)).numpy()
    assert all(close(found, wanted) for found in outputs(made, x))
    weights["A_log"][0, 0] += 0.1
    torch_impl.train.load_weights(made[torch_impl], weights, "oracle")
    assert not close(outputs(made, x)[0], wanted)


def test_mamba2_agrees_with_mamba2_jax():
    modeling = pytest.importorskip("mamba2_jax.modeling")
    from flax import nnx

    made, weights, x = drawn({"kind": "mamba2", "d_state": 4, "head_dim": 8})
    config = modeling.Mamba2Config(hidden_size=D, state_size=4, head_dim=8, chunk_size=32, num_hidden_layers=1)
    block = modeling.Mamba2Mixer(config, 0, rngs=nnx.Rngs(0))
    for layer, name in ((block.in_proj, "in_proj.weight"), (block.out_proj, "out_proj.weight")):
        layer.kernel.set_value(jnp.asarray(weights[name].T))
    block.conv1d.conv.kernel.set_value(jnp.asarray(weights["conv1d.weight"].transpose(2, 1, 0)))
    block.conv1d.conv.bias.set_value(jnp.asarray(weights["conv1d.bias"]))
    block.norm.weight.set_value(jnp.asarray(weights["norm.weight"]))
    for name in ("dt_bias", "A_log", "D"):
        getattr(block, name).set_value(jnp.asarray(weights[name]))
    wanted = np.asarray(block(jnp.asarray(x))[0])
    assert all(close(found, wanted) for found in outputs(made, x))
    weights["dt_bias"][0] += 0.1
    torch_impl.train.load_weights(made[torch_impl], weights, "oracle")
    assert not close(outputs(made, x)[0], wanted)
