"""The selective scan in JAX: every implementation against PyTorch's definition."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_impl import scan
from torch_impl.scan import selective_scan_sequential as torch_definition

NAMES = ("u", "delta", "A", "B", "C", "D", "z")
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}  # relative to the largest value
METHODS = {
    "sequential": partial(scan.selective_scan_chunked, method="sequential"),
    "associative": partial(scan.selective_scan_chunked, method="associative"),
    "definition": scan.selective_scan_sequential,
    "kernel": scan.selective_scan,
}
#: Methods with gradients of their own.
WRITTEN = ("kernel", "sequential", "associative")


def make(b=2, l=40, e=6, n=3, seed=0, scale=1.0, loudness=1.0):
    """Inputs in float64, rounded to float32 first so that both dtypes share one expected result."""
    rng = np.random.default_rng(seed)
    shapes = ((b, l, e), (b, l, e), (e, n), (b, l, n), (b, l, n), (e,), (b, l, e))
    arrays = dict(zip(NAMES, (rng.standard_normal(shape) for shape in shapes), strict=True))
    arrays["delta"] = scale * np.log1p(np.exp(arrays["delta"] - 1))
    arrays["A"] = -np.exp(arrays["A"])
    arrays["u"] = loudness * arrays["u"]
    return [x.astype(np.float32).astype(np.float64) for x in arrays.values()]


@lru_cache
def expected(*size):
    """y and gradients by PyTorch's definition in float64, for the cotangent :func:`cotangent`."""
    inputs = [torch.from_numpy(x).requires_grad_() for x in make(*size)]
    y = torch_definition(*inputs)
    gradients = torch.autograd.grad(y, inputs, torch.from_numpy(cotangent(y.shape)))
    return [y.detach().numpy(), *(g.numpy() for g in gradients)]


def cotangent(shape):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32).astype(np.float64)


@partial(jax.jit, static_argnums=0)
def compiled(method, arrays, dy):
    y, pull = jax.vjp(method, *arrays)
    return [y, *pull(dy)]


def values_and_gradients(method, inputs, dtype):
    arrays = [jnp.asarray(x, dtype) for x in inputs]
    return compiled(method, arrays, jnp.asarray(cotangent(arrays[0].shape), dtype))


def assert_agree(found, wanted, tolerance):
    for name, x, exact in zip(("y", *NAMES), found, wanted, strict=True):
        assert x.shape == exact.shape
        error = np.abs(np.asarray(x, np.float64) - exact).max(initial=0) / max(np.abs(exact).max(initial=0), 1e-3)
        assert error <= tolerance, f"{name}: {error:.1e} of its largest value"


#: Lengths around one chunk (2·CHUNK + 1 needs padding), and one of many chunks.
SIZES = {
    method: [(2, l, 6, 3) for l in (1, 2, chunk - 1, chunk, chunk + 1, 2 * chunk + 1)] + [(1, 200, 4, 2)]
    for method, chunk in scan.CHUNK.items()
} | {
    "definition": [(2, 1, 6, 3), (2, 40, 6, 3)],
    # around one chunk, around whole vectors of channels, enough work for a second thread
    "kernel": [(2, l, e, 3) for l in (1, 31, 32, 33, 65) for e in (5, 16, 20)] + [(70, 64, 32, 2)],
}


@pytest.mark.parametrize("dtype", TOLERANCE, indirect=True)
@pytest.mark.parametrize(("method", "size"), [(method, size) for method in METHODS for size in SIZES[method]], ids=str)
def test_agrees_with_the_definition(method, size, dtype):
    found = values_and_gradients(METHODS[method], make(*size), dtype)
    assert all(x.dtype == dtype for x in found)
    assert_agree(found, expected(*size), TOLERANCE[dtype])


@settings(max_examples=6)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 80), st.integers(1, 5), st.integers(1, 4)),
    st.sampled_from([1e-6, 1.0, 1e4]),
    st.sampled_from([0.0, 1.0, 1e3]),
)
def test_agrees_for_any_shape_decay_and_loudness(size, scale, loudness):
    more = (0, scale, loudness)
    for method in WRITTEN:
        found = values_and_gradients(METHODS[method], make(*size, *more), "float32")
        assert_agree(found, expected(*size, *more), 1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE, indirect=True)
@pytest.mark.parametrize("method", WRITTEN)
@pytest.mark.parametrize("scale", [1e-6, 30.0, 1e4])
def test_slow_and_strong_decays_agree(method, scale, dtype):
    inputs = make(seed=3, scale=scale)
    wanted = values_and_gradients(METHODS["definition"], inputs, dtype)
    found = values_and_gradients(METHODS[method], inputs, dtype)
    assert all(np.isfinite(x).all() for x in found)
    assert_agree(found, [np.asarray(x, np.float64) for x in wanted], TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32"], indirect=True)
@pytest.mark.parametrize("method", METHODS)
def test_agrees_without_a_gate(method, dtype):
    *inputs, z = make()
    gated = METHODS[method](*(jnp.asarray(x, dtype) for x in (*inputs, z)))
    plain = METHODS[method](*(jnp.asarray(x, dtype) for x in inputs))
    np.testing.assert_allclose(gated, plain * jax.nn.silu(jnp.asarray(z, dtype)), rtol=1e-5)


@pytest.mark.parametrize("gated", [True, False])
def test_groups_of_sequences_agree(gated, monkeypatch):
    """Groups are formed if the states of all sequences would take too much memory."""
    inputs = make(6, 25, 4, 2)[: 7 if gated else 6]
    wanted = values_and_gradients(METHODS["sequential"], inputs, "float32")
    monkeypatch.setitem(scan.GROUP, "sequential", 3 * 4 * 2 * 4)  # three sequences of e = 4, n = 2
    assert "remat" in str(jax.make_jaxpr(METHODS["sequential"])(*(jnp.asarray(x, jnp.float32) for x in inputs)))
    in_groups = partial(METHODS["sequential"])  # a new function: JAX traces again
    found = values_and_gradients(in_groups, inputs, "float32")
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("sequences", "size", "group"), [(68, 1 << 16, 4), (72, 1 << 10, 72), (7, 1 << 20, 1), (5, 1 << 30, 1)]
)
def test_size_of_a_group(sequences, size, group):
    assert scan._group(sequences, size, 1 << 18) == group


def test_half_precision_inputs_have_a_float32_state():
    inputs = make(1, 400, 4, 2)
    half = [jnp.asarray(x, jnp.bfloat16) for x in inputs]
    y = scan.selective_scan(*half)
    assert y.dtype == jnp.bfloat16
    exact = scan.selective_scan(*(x.astype(jnp.float32) for x in half))
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("method", ["kernel", "associative"])
def test_the_backward_pass_saves_no_states_within_chunks(method):
    """Only the inputs and one state per chunk are saved for the backward pass."""
    b, l, e, n = 2, 320, 16, 5
    inputs = [jnp.asarray(x, jnp.float32) for x in make(b, l, e, n)]
    _, pull = jax.vjp(METHODS[method], *inputs)
    saved = sum(x.size for x in jax.tree.leaves(pull) if hasattr(x, "size"))
    assert saved < 8 * b * l * e + 4 * b * l * n + 10 * b * e * n + 100 < b * l * e * n * 3


@pytest.mark.parametrize(
    ("position", "change", "message"),
    [
        (1, lambda x: x[:, 1:], "delta has shape"),
        (2, lambda x: x[0], "A \\(e, n\\)"),
        (3, lambda x: x[..., :1], "B has shape"),
        (5, lambda x: x.astype(np.int32), "D is int32"),
    ],
)
def test_inputs_that_do_not_match_are_rejected(position, change, message):
    inputs = [jnp.asarray(x, jnp.float32) for x in make()]
    inputs[position] = change(inputs[position])
    with pytest.raises(Exception, match=message):
        scan.check_scan_inputs(*inputs)
