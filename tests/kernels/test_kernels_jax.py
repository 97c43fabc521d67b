"""The CPU kernels in JAX: attention against its definition, and calls from XLA to Python functions."""

import contextlib
import re
import subprocess
import sys
import threading
from math import sqrt

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.numba_failures import FAILURES

from ablations.comparison import configuration, weights_of
from jax_impl import kernels, networks, ops, scan, train
from jax_impl.kernels import foreign
from twinsep.kernels import attention as loops

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def definition(q, k, v):
    """softmax(q kᵀ / √e) v."""
    return jax.nn.softmax(q @ k.mT / sqrt(q.shape[-1]), -1) @ v


def make(dtype, b=2, heads=3, queries=9, keys=21, e=8):
    rng = np.random.default_rng(0)
    arrays = (rng.standard_normal((b, heads, n, e)).astype(np.float32) for n in (queries, keys, keys))
    return [jnp.asarray(x, dtype) for x in arrays]


def values_and_gradients(function, inputs):
    cotangent = np.random.default_rng(1).standard_normal(inputs[0].shape).astype(np.float32)

    @jax.jit  # a new function: JAX traces again
    def both(inputs, dy):
        y, pull = jax.vjp(function, *inputs)
        return [y, *pull(dy)]

    return both(inputs, jnp.asarray(cotangent, inputs[0].dtype))


def traced(inputs):
    """Return the jaxpr of attention as text."""
    return str(jax.make_jaxpr(lambda *inputs: ops.attention(*inputs))(*inputs))  # a new lambda: JAX traces again


@pytest.mark.parametrize("dtype", TOLERANCE, indirect=True)
@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("sizes", [(2, 3, 9, 21, 8), (1, 1, 1, 1, 5), (20, 2, 60, 60, 8), (1, 2, 200, 200, 32)])
def test_attention_agrees_with_its_definition(kernel, sizes, dtype):
    inputs = make(dtype, *sizes)
    with contextlib.nullcontext() if kernel else kernels.own_operations():
        assert ("twinsep_attention" in traced(inputs)) == kernel
        found = values_and_gradients(ops.attention, inputs)
    for x, wanted in zip(found, values_and_gradients(definition, inputs), strict=True):
        assert x.shape == wanted.shape
        assert x.dtype == dtype
        assert np.abs(x - wanted).max() <= TOLERANCE[dtype] * max(np.abs(wanted).max(), 0.1)


def test_attention_stores_no_matrix_of_weights():
    b, heads, n, e = 1, 2, 400, 8
    _, pull = jax.vjp(ops.attention, *make("float32", b, heads, n, n, e))
    assert sum(x.size for x in jax.tree.leaves(pull) if hasattr(x, "size")) < 6 * b * heads * n * e < b * heads * n * n


def test_wide_heads_and_half_precision_use_xla():
    for inputs in (make("float32", e=ops.NARROW + 1), make("bfloat16")):
        assert "ffi_call" not in traced(inputs)
    with ops.autocast(jnp.bfloat16):
        assert "ffi_call" not in traced(make("float32"))


def inputs_of_scan(b=16, l=90, e=32, n=8):
    rng = np.random.default_rng(2)
    u, z, B, C = (jnp.asarray(rng.standard_normal((b, l, k)), jnp.float32) for k in (e, e, n, n))
    return u, jnp.abs(u), -jnp.ones((e, n)), B, C, jnp.ones(e), z


def test_the_scan_on_a_cpu_uses_the_kernel():
    step = jax.grad(lambda *inputs: scan.selective_scan(*inputs).sum(), argnums=(0, 2))
    words = str(jax.make_jaxpr(step)(*inputs_of_scan())).split()
    assert {"target_name=twinsep_selective_scan", "target_name=twinsep_selective_scan_backward"} <= set(words)


def test_own_operations_call_no_kernel():
    """Checks a whole network, forward and backward, as used by the parity tests."""
    config = configuration({"mixer": {"kind": "mamba", "directions": 1}})
    functional = train.Functional(networks.build(config))
    weights = {name: jnp.asarray(w, jnp.float32) for name, w in weights_of(config).items()}

    def text():
        loss = jax.grad(lambda weights, x: functional(weights, x).sum())
        return str(jax.make_jaxpr(lambda *inputs: loss(*inputs))(weights, jnp.zeros((1, 2, 17_000))))

    with kernels.own_operations():
        assert "ffi_call" not in text()
    assert {"twinsep_attention", "twinsep_mamba_backward"} <= set(re.findall(r"target_name=(\w+)", text()))


@pytest.mark.parametrize("shape", [(0, 5, 4, 2), (2, 0, 4, 2), (2, 5, 0, 2)])
def test_empty_inputs(shape):
    inputs = inputs_of_scan(*shape)
    found = values_and_gradients(scan.selective_scan, inputs)
    for x, wanted in zip(found, (inputs[0], *inputs), strict=True):
        assert x.shape == wanted.shape
        assert (x == 0).all()


def test_concurrent_calls_agree():
    """Both XLA and users may call from several threads."""
    function = jax.jit(lambda *inputs: jax.vjp(scan.selective_scan, *inputs)[1](inputs[0]))
    inputs = inputs_of_scan()
    alone, wrong = function(*inputs), []

    def call():
        for _ in range(5):
            wrong.extend(not np.array_equal(x, y) for x, y in zip(function(*inputs), alone, strict=True))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 4 * 5 * len(inputs)
    assert not any(wrong)


def test_functions_work_on_xlas_memory():
    """Inputs arrive uncopied, and the computation continues with the outputs, in both dtypes."""
    seen = []

    def twice(x, y):
        seen.append((x.shape, str(x.dtype)))
        y[...] = 2 * x

    double = foreign.operation("twinsep_test_double", twice)
    with jax.enable_x64(True):
        for dtype in ("float32", "float64"):
            x = jnp.arange(6, dtype=dtype).reshape(2, 3)
            y = jax.jit(lambda x: double((x.shape,), x + 1)[0] - 1)(x)
            np.testing.assert_array_equal(y, 2 * x + 1)
    assert seen == [((2, 3), "float32"), ((2, 3), "float64")]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("no such thing"), "INTERNAL.*twinsep_test_.*ValueError: no such thing"),
        (MemoryError(), "RESOURCE_EXHAUSTED"),
    ],
    ids=["error", "memory"],
)
def test_an_exception_in_a_function_fails_the_computation(error, message):
    def raising(_x, _y):
        raise error

    name = f"twinsep_test_{type(error).__name__}"
    function = foreign.operation(name, raising)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(jax.jit(lambda x: function((x.shape,), x))(jnp.ones(3)))


def test_another_version_of_the_ffi_is_rejected(monkeypatch):
    monkeypatch.setattr(foreign, "VERSION", (9, 0))
    with pytest.raises(jax.errors.JaxRuntimeError, match="version"):
        foreign.operation("twinsep_test_version", lambda *_: None)


@pytest.mark.parametrize("failure", FAILURES)
def test_without_a_working_numba_jaxs_operations_are_used_with_one_warning(failure):
    code = (
        "import sys, warnings, jax.numpy as jnp, numpy as np\n"
        "from jax_impl.scan import selective_scan, selective_scan_sequential\n"
        "assert 'numba' not in sys.modules\n"
        f"{failure}\n"
        "x = jnp.linspace(0.1, 1, 240).reshape(2, 40, 3)\n"
        "inputs = (x, x, -jnp.ones((3, 2)), x[..., :2], x[..., 1:], jnp.ones(3))\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    y = selective_scan(*inputs), selective_scan(*inputs)\n"
        "assert [w.category for w in caught] == [RuntimeWarning], caught\n"
        "assert 'need Numba' in str(caught[0].message)\n"
        "np.testing.assert_allclose(y[1], selective_scan_sequential(*inputs), rtol=1e-5)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_kernels_are_loaded_once():
    assert kernels.cpu_kernels() is kernels.cpu_kernels()
    assert loops.SERIAL < 1 * 2 * 200 * 200  # so the attention above used a second thread
