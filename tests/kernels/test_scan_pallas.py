"""The Pallas kernels of the selective scan against its definition, interpreted, and lowered to Triton's language.

Interpreted kernels run in JAX's operations; tests/kernels/test_scan_gpu.py tests the same algorithm in Triton.
"""

import warnings
from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import scans
from helpers.closeness import assert_agree
from jax.experimental.pallas import triton

from jax_impl import kernels, scan
from jax_impl.kernels import guard
from jax_impl.kernels import selective_scan_pallas as kernel

pytestmark = pytest.mark.usefixtures("one_thread")
CHUNK = 4
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 8e-3}  # relative to the largest value
compiled = partial(kernel.selective_scan, elsewhere=scan.selective_scan_chunked)
interpreted = partial(compiled, interpret=True)


@pytest.fixture
def small(monkeypatch):
    """Use small chunks, blocks of 16 channels and two backward programs, so that few frames cover them all."""
    monkeypatch.setattr(kernel, "CHUNK", CHUNK)
    monkeypatch.setattr(kernel, "STATES", 16)
    monkeypatch.setattr(kernel, "PROGRAMS", 2)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture
def gpu(monkeypatch):
    """Make JAX take this CPU for a GPU, on which the interpreted kernel runs; forget earlier checks of it."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(kernel, "selective_scan", lambda *inputs, **_: interpreted(*inputs))
    monkeypatch.setattr(guard, "SAMPLES", ((2, 3, 5, 2), (1, 6, 17, 3)))
    kernels._checked_gpu_scan.cache_clear()
    yield
    kernels._checked_gpu_scan.cache_clear()


def arrays(inputs, dtype=jnp.float32):
    return [jnp.asarray(x.detach().numpy(), dtype) for x in inputs if x is not None]


def values_and_gradients(function, inputs):
    """y and gradients by name, in float64, for the cotangent of ``scans.values_and_gradients``."""
    y, pull = jax.vjp(function, *inputs)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(y.shape, generator=generator, dtype=torch.float64).numpy()
    results = (y, *pull(jnp.asarray(cotangent.astype(np.float32), y.dtype)))
    named = zip(scans.NAMES[: len(results)], results, strict=True)
    return {name: torch.from_numpy(np.array(x, np.float64)) for name, x in named}


def program(inputs):
    """Jaxpr of the scan as text."""
    return str(jax.make_jaxpr(lambda *inputs: scan.selective_scan(*inputs))(*inputs))  # a new lambda: JAX traces again


@pytest.mark.parametrize("z", [True, False])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, CHUNK, 17, 3), (1, CHUNK + 1, 3, 1), (3, 3 * CHUNK - 1, 5, 2)], ids=str
)
@pytest.mark.usefixtures("small")
def test_agrees_with_the_definition(shape, z):
    inputs = scans.make(*shape, z=z)
    assert_agree(values_and_gradients(interpreted, arrays(inputs)), scans.definition(inputs), 1e-5)


def test_agrees_with_the_default_chunks_and_tiles():
    inputs = scans.make(1, kernel.CHUNK + 1, 6, 20)
    assert_agree(values_and_gradients(interpreted, arrays(inputs)), scans.definition(inputs), 1e-5)


@pytest.mark.parametrize(("largest_delta", "largest_A"), [(0.0, 1.0), (1e-6, 1e4), (1e4, 1e4)])
@pytest.mark.usefixtures("small")
def test_extreme_steps_and_decays_agree(largest_delta, largest_A):
    inputs = scans.make(1, 6, 4, 3)
    with torch.no_grad():
        inputs[1] *= largest_delta / inputs[1].max()
        inputs[2] *= largest_A / inputs[2].abs().max()
    assert_agree(values_and_gradients(interpreted, arrays(inputs)), scans.definition(inputs), 3e-5)


@pytest.mark.usefixtures("small")
def test_the_same_under_checkpoint_and_vmap():
    inputs = arrays(scans.make(2, 2, 3, 2))
    once = jax.grad(lambda *x: interpreted(*x).sum(), range(7))(*inputs)
    again = jax.grad(lambda *x: jax.checkpoint(interpreted)(*x).sum(), range(7))(*inputs)
    assert all(jnp.array_equal(x, y) for x, y in zip(once, again, strict=True))
    twice = jax.vmap(interpreted)(*(jnp.stack([x, x / 2]) for x in inputs))
    assert jnp.array_equal(twice[0], interpreted(*inputs))


def test_on_a_cpu_beside_a_gpu_it_is_the_chunked_form():
    inputs = scans.make(2, 9, 3, 2)
    assert_agree(values_and_gradients(compiled, arrays(inputs)), scans.definition(inputs), 1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.usefixtures("gpu")
def test_the_scan_on_a_gpu_uses_the_kernel(dtype):
    inputs = scans.make(1, 5, 4, 2, dtype={jnp.float32: torch.float32, jnp.bfloat16: torch.bfloat16}[dtype])
    found = [jnp.asarray(x.detach().float().numpy(), dtype) for x in inputs]
    assert "pallas_call" in program(found)
    y = scan.selective_scan(*found)
    assert y.dtype == dtype
    assert_agree(
        {"y": torch.from_numpy(np.array(y, np.float64))}, {"y": scans.definition(inputs)["y"]}, TOLERANCE[dtype]
    )


@pytest.mark.usefixtures("gpu")
def test_own_operations_are_not_the_kernel():
    inputs = arrays(scans.make(1, 5, 4, 2))
    with kernels.own_operations():
        assert "pallas_call" not in program(inputs)


@pytest.mark.usefixtures("gpu")
def test_empty_inputs():
    for shape in ((0, 5, 4, 2), (2, 0, 4, 2), (2, 5, 0, 2)):
        found = values_and_gradients(scan.selective_scan, arrays(scans.make(*shape)))
        assert found["y"].shape == shape[:3]
        assert (found["A"] == 0).all()


@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
@pytest.mark.usefixtures("gpu")
def test_float64_keeps_the_chunked_form(dtype):
    inputs = arrays(scans.make(1, 5, 4, 2), dtype)
    assert "pallas_call" not in program(inputs)


@pytest.mark.usefixtures("gpu")
def test_the_check_runs_once_and_inside_a_transformation(monkeypatch):
    checks = []
    monkeypatch.setattr(guard, "disagreement", lambda *_: checks.append(1))
    inputs = arrays(scans.make(1, 5, 4, 2))
    for _ in range(2):
        jax.make_jaxpr(jax.grad(lambda *x: jax.jit(lambda *y: scan.selective_scan(*y))(*x).sum()))(*inputs)
    assert len(checks) == len(guard.SAMPLES)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda u, delta, A, B, C, D, *z: interpreted(u, delta, A, B, C, 2 * D, *z), "y is off by"),
        (lambda *inputs: jnp.nan * interpreted(*inputs), "y is off by nan"),
        (lambda u, _: u, "it fails on this device"),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_a_kernel_that_disagrees_is_not_used(wrong, reason, monkeypatch):
    monkeypatch.setattr(kernel, "selective_scan", lambda *inputs, **_: wrong(*inputs))
    inputs = arrays(scans.make(1, 5, 4, 2))
    with pytest.warns(RuntimeWarning, match=rf"The Pallas selective scan is not used: {reason}"):
        found = scan.selective_scan(*inputs)
    assert jnp.array_equal(found, scan.selective_scan_chunked(*inputs))
    with warnings.catch_warnings():  # one warning per process
        warnings.simplefilter("error")
        scan.selective_scan(*inputs)


@pytest.mark.usefixtures("gpu")
def test_a_wrong_gradient_is_found(monkeypatch):
    @jax.custom_vjp
    def wrong(*inputs):
        return interpreted(*inputs)

    def gradients(inputs, dy):
        du, *others = jax.vjp(interpreted, *inputs)[1](dy)
        return du * 1.001, *others

    wrong.defvjp(lambda *inputs: (interpreted(*inputs), inputs), gradients)
    monkeypatch.setattr(kernel, "selective_scan", lambda *inputs, **_: wrong(*inputs))
    with pytest.warns(RuntimeWarning, match=r"is not used: the gradient of u is off by 1.0e-03 of its largest value"):
        assert kernels.gpu_scan(scan.selective_scan_chunked, scan.selective_scan_sequential) is None


def abstract_gpu():
    """Context in which JAX lowers Pallas's Triton kernels without a GPU; JAX 0.10 needs none."""
    if not hasattr(triton, "get_gpu_info"):
        return nullcontext()
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="cuda")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize(("shape", "z"), [((68, 258, 128, 16), True), ((3, 40, 5, 3), False), ((2, 9, 144, 1), True)])
def test_becomes_triton_code_without_atomic_operations(shape, z):
    """The interpreter accepts operations that Triton lacks, and tiles whose sides are no powers of two."""
    b, l, e, n = shape
    shapes = [(b, l, e), (b, l, e), (e, n), (b, l, n), (b, l, n), (e,), *([(b, l, e)] if z else [])]

    def both(*inputs):
        y, pull = jax.vjp(compiled, *inputs)
        return y, *pull(y)

    with abstract_gpu():
        traced = jax.jit(both).trace(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("gpu.triton") == 2
    assert "atomic_rmw" not in text
