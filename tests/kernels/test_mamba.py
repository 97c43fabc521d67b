"""The fused layer Mamba against the layer's own operations, in both twins: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers.closeness import assert_agree
from torch.utils.checkpoint import checkpoint

import jax_impl
import torch_impl
from torch_impl.kernels import operations
from torch_impl.mixers import mamba
from twinsep.config import preset
from twinsep.kernels import mamba as kernel

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}  # relative to the largest value
NAMES = ("y", "x", *kernel.Weights._fields)

pytestmark = pytest.mark.usefixtures("one_thread")


def layer(dtype=torch.float32, d=16, n=8):
    """A layer with random weights, none of them zero or one."""
    mixer = {"kind": "mamba", "d_state": n}
    made = mamba.Mamba(preset("tiny").override({"model": {"d_model": d, "mixer": mixer}}).model)
    torch_impl.layers.initialise(made, 0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.3 * torch.randn(weight.shape, generator=generator)
    return made.to(dtype)


def make(shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()


def values_and_gradients(made, x, function=None):
    y = (function or made)(x)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    gradients = torch.autograd.grad(y, [x, *made.weights()], cotangent)
    return dict(zip(NAMES, (y.detach(), *gradients), strict=True))


def definition(made, x):
    with torch_impl.kernels.own_operations():
        return values_and_gradients(made, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (2, 33), (5, 70), (70, 40)], ids=str)
@pytest.mark.parametrize(("d", "n"), [(16, 8), (24, 3), (48, 4)])  # one, two and three inputs of Δ
def test_agrees_with_the_layers_own_operations(shape, dtype, d, n):
    if d != 16 and shape != (5, 70):
        return
    found = values_and_gradients(layer(dtype, d, n), make((*shape, d), dtype))
    assert all(value.dtype == dtype for value in found.values())
    assert_agree(found, definition(layer(torch.float64, d, n), make((*shape, d), torch.float64)), TOLERANCE[dtype])


def test_the_layer_calls_the_kernel_only_where_it_is_made_for_it(monkeypatch):
    called = []
    real = torch.ops.twinsep.mamba
    monkeypatch.setattr(torch_impl.ops, "cpu_kernels", lambda: called.append(1) or torch_impl.kernels.cpu_kernels())
    assert real is torch_impl.kernels.cpu_kernels().mamba
    x = make((2, 9, 16))
    assert torch_impl.ops.fused_mamba(x, layer().weights()) is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert torch_impl.ops.fused_mamba(x, layer().weights()) is None
    assert torch_impl.ops.fused_mamba(x.double(), layer().weights()) is None
    for d in (8 + 4, torch_impl.ops.NARROW_MAMBA + 16):  # channels that are no whole vectors; a wide layer
        assert torch_impl.ops.fused_mamba(make((2, 9, d)), layer(d=d).weights()) is None
    with torch_impl.kernels.own_operations():
        assert torch_impl.ops.fused_mamba(x, layer().weights()) is None


@pytest.mark.parametrize("large", [1e3, 1e8])
def test_large_steps_stay_finite(large):
    made, exact = layer(), layer(torch.float64)
    with torch.no_grad():
        for each in (made, exact):
            each.dt_proj.bias[::2], each.dt_proj.bias[1::2] = large, -large
    found = values_and_gradients(made, make((2, 20, 16)))
    assert_agree(found, definition(exact, make((2, 20, 16), torch.float64)), 1e-4)


def test_results_do_not_depend_on_the_number_of_threads():
    made, x = layer(), make((67, 70, 16))
    assert kernel.SERIAL < 67 * 70 * 32
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(values_and_gradients(made, x))
    for other in results[1:]:
        assert all(torch.equal(results[0][key], other[key]) for key in other)


def test_operators_pass_opcheck():
    weights = [w.detach().requires_grad_() for w in layer().weights()]
    x = make((2, 9, 16))
    torch.library.opcheck(torch.ops.twinsep.mamba, (x, *weights, True))
    constants = [w.detach() for w in weights]
    y, *saved = torch.ops.twinsep.mamba(x.detach(), *constants, True)
    torch.library.opcheck(torch.ops.twinsep.mamba_backward, (torch.ones_like(y), x.detach(), constants, saved))


def test_gradients_need_kept_states():
    with pytest.raises(RuntimeError, match="keep=True"):
        torch.ops.twinsep.mamba(make((2, 9, 16)), *layer().weights(), False)


def test_works_without_gradients_and_under_checkpoint():
    made, x = layer(), make((4, 40, 16))
    wanted = values_and_gradients(made, x)
    with torch.no_grad():
        assert torch.equal(made(x), wanted["y"])
    again = values_and_gradients(made, x, lambda x: checkpoint(made, x, use_reentrant=False))
    assert all(torch.equal(again[key], value) for key, value in wanted.items())


@pytest.mark.parametrize("shape", [(0, 5, 16), (2, 0, 16)])
def test_empty_inputs(shape):
    found = values_and_gradients(layer(), make(shape))
    assert found["y"].shape == found["x"].shape == shape
    assert all((found[name] == 0).all() for name in kernel.Weights._fields)


def test_its_operations_are_those_of_the_layer():
    made, x = layer(), make((3, 20, 16)).detach()
    fused = operations.count(lambda: made(x)), operations.exponentials(lambda: made(x))
    mamba_fused, mamba.fused_mamba = mamba.fused_mamba, lambda *_: None
    try:
        assert fused == (operations.count(lambda: made(x)), operations.exponentials(lambda: made(x)))
    finally:
        mamba.fused_mamba = mamba_fused


@pytest.mark.parametrize("dtype", ["float32", "float64"], indirect=True)
def test_jax_agrees_with_the_layers_own_operations(dtype):
    typed = getattr(torch, dtype)
    made, x = layer(typed), make((5, 70, 16), typed)
    weights = [jnp.asarray(w.detach().numpy()) for w in made.weights()]
    y, pull = jax.vjp(lambda x, *w: jax_impl.ops.fused_mamba(x, w), jnp.asarray(x.detach().numpy()), *weights)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(typed)
    arrays = (y, *pull(jnp.asarray(cotangent.numpy())))
    found = {name: torch.from_numpy(np.array(a)) for name, a in zip(NAMES, arrays, strict=True)}
    exact = layer(torch.float64), make((5, 70, 16), torch.float64)
    assert_agree(found, definition(*exact), TOLERANCE[typed])
    with jax_impl.kernels.own_operations():
        assert jax_impl.ops.fused_mamba(jnp.asarray(x.detach().numpy()), weights) is None
