"""The selective scan: every implementation against its definition, values and gradients."""

import subprocess
import sys
import threading
from functools import lru_cache

import pytest
import torch
from helpers.closeness import assert_agree
from helpers.numba_failures import FAILURES
from helpers.oracles import need_mamba_ssm
from helpers.scans import definition, make, values_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

from torch_impl import scan
from torch_impl.scan import selective_scan, selective_scan_chunked, selective_scan_sequential
from twinsep.kernels import selective_scan as kernel

CHUNK = kernel.CHUNK
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}  # relative to the largest value


pytestmark = pytest.mark.usefixtures("one_thread")


@lru_cache
def expected(*shape_and_gate):
    return definition(make(*shape_and_gate))


SHAPES = [(2, l, 20, 8) for l in (1, 2, CHUNK - 1, CHUNK, CHUNK + 1)]
SHAPES += [(3, 50, 35, n) for n in (1, 5, 16, 32)] + [(1, 700, 16, 8), (70, 9, 3, 2), (2, 65, 64, 8)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("z", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("function", [selective_scan, selective_scan_chunked])
def test_agrees_with_the_definition(function, shape, z, dtype):
    inputs = make(*shape, z=z, dtype=dtype)
    assert_agree(values_and_gradients(function, inputs), expected(*shape, z), TOLERANCE[dtype])


def test_the_definition_agrees_with_a_hand_computed_example():
    # One channel and one state; the second decay is ½: h = 1, then ½ · 1 + 2 · 3 · 2.
    u, delta = (torch.tensor([1.0, 2.0]).reshape(1, 2, 1) for _ in range(2))
    A = torch.tensor([[0.5]]).log() / 2
    B, C = (torch.tensor([1.0, x]).reshape(1, 2, 1) for x in (3.0, 10.0))
    D, z = torch.tensor([7.0]), torch.tensor([0.0, 1.0]).reshape(1, 2, 1)
    y = torch.tensor([1.0 + 7.0, 10 * (0.5 + 12.0) + 14.0])
    for function in (selective_scan_sequential, selective_scan_chunked, selective_scan):
        torch.testing.assert_close(function(u, delta, A, B, C, D).flatten(), y)
        torch.testing.assert_close(function(u, delta, A, B, C, D, z).flatten(), y * silu(z).flatten())


@pytest.mark.parametrize("function", [selective_scan, selective_scan_chunked])
@pytest.mark.parametrize("z", [True, False])
def test_gradients_agree_with_finite_differences(function, z):
    assert torch.autograd.gradcheck(function, make(1, 4, 3, 2, z=z, dtype=torch.float64))


@pytest.mark.parametrize("missing", range(7))
def test_gradients_of_a_subset_of_the_inputs(missing):
    inputs = make()
    inputs[missing].requires_grad_(False)
    wanted = [x for x in inputs if x.requires_grad]
    selective_scan(*inputs).sum().backward()
    found = [x.grad.clone() for x in wanted]
    expected = torch.autograd.grad(selective_scan_sequential(*inputs).sum(), wanted)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@settings(max_examples=40)
@given(
    st.integers(0, 2**31),
    st.sampled_from([1e-6, 1e-3, 1.0, 30.0, 1e4]),
    st.sampled_from([1e-6, 1e-2, 1.0, 50.0, 1e4]),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_extreme_steps_and_decays_agree(seed, largest_delta, largest_A, dtype):
    inputs = make(2, 40, 20, 5, dtype=dtype, seed=seed)
    with torch.no_grad():
        inputs[1] *= largest_delta / inputs[1].max()
        inputs[2] *= largest_A / inputs[2].abs().max()
    # A float32 product x has an error of 6e-8 |x|: the relative error of exp(x), which underflows beyond |x| = 88.
    tolerance = {torch.float32: 3e-5, torch.float64: 1e-12}[dtype]
    for function in (selective_scan, selective_scan_chunked):
        assert_agree(values_and_gradients(function, inputs), definition(inputs), tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decay_beyond_the_exponent_range_is_zero(dtype):
    # u is 1 in the first frame only and A Δ = −1e4, so any later y other than 0 is wrong.
    inputs = [x.detach() for x in make(1, 3, 16, 2, dtype=dtype)]
    inputs[0][:, 1:] = 0
    inputs[1][:] = 100.0
    inputs[2][:] = -100.0
    assert (selective_scan(*inputs)[:, 1:] == 0).all()


def exp2_errors(dtype, low, high):
    """Relative errors of a = 2^(Δ A log2 e), from h_1 = a h_0 with h_0 = 1."""
    x = torch.linspace(low, high, 4096, dtype=dtype)
    u = torch.zeros(1, 2, 4096, dtype=dtype)
    delta = torch.ones_like(u)
    u[:, 0] = 1
    one = torch.ones(1, 2, 1, dtype=dtype)
    y = selective_scan(u, delta, x[:, None], one, one, torch.zeros(4096, dtype=dtype))[0, 1]
    return (y.double() / x.double().exp() - 1).abs().max().item()


def test_the_exponential_is_accurate():
    assert exp2_errors(torch.float32, -0.3, 0) < 1.5e-7
    assert exp2_errors(torch.float32, -80, 0) < 80 * 1.5e-7
    assert exp2_errors(torch.float64, -0.3, 0) < 1e-15
    assert exp2_errors(torch.float64, -700, 0) < 700 * 4e-16


def test_slow_states_do_not_drift():
    # A bias of the exponential would accumulate over 4,000 frames of a = exp(−1e-5).
    l = 4000
    u, delta = torch.zeros(1, l, 1), torch.full((1, l, 1), 1e-3)
    u[:, 0] = 1000.0
    one = torch.ones(1, l, 1)
    y = selective_scan(u, delta, torch.full((1, 1), -1e-2), one, one, torch.zeros(1))
    exact = torch.exp(-1e-5 * torch.arange(l, dtype=torch.float64))
    assert (y[0, :, 0].double() - exact).abs().max() < 1e-4


@pytest.mark.parametrize("position", range(7))
def test_nan_propagates(position):
    inputs = make(2, 40, 20, 3)
    with torch.no_grad():
        inputs[position].view(-1)[-1] = float("nan")
    for function in (selective_scan, selective_scan_chunked, selective_scan_sequential):
        y = function(*inputs)
        assert torch.isnan(y).any()
        assert not torch.isnan(y).all()
    expected = torch.isnan(selective_scan_sequential(*inputs))
    assert torch.equal(torch.isnan(selective_scan(*inputs)), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    half = [x.detach().to(dtype).requires_grad_() for x in make(2, 100, 20, 8)]
    found = values_and_gradients(selective_scan, half)
    assert all(x.dtype == dtype for x in found.values())
    assert_agree(found, definition(half), {torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype])


@pytest.mark.parametrize("function", [selective_scan, selective_scan_chunked])
def test_works_under_autocast(function):
    inputs = make(2, 40, 20, 8)
    alone = values_and_gradients(function, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = values_and_gradients(function, inputs) if function is selective_scan else None
        mixed = [inputs[0].bfloat16(), *inputs[1:]]
        y = selective_scan(*mixed)
    assert y.dtype == torch.bfloat16
    if found is not None:
        assert all(torch.equal(found[name], alone[name]) for name in alone)


def test_works_under_checkpoint():
    inputs = make(2, 70, 20, 8)
    once = torch.autograd.grad(selective_scan(*inputs).sum(), inputs)
    for reentrant in (True, False):
        for x in inputs:
            x.grad = None
        checkpoint(selective_scan, *inputs, use_reentrant=reentrant).sum().backward()
        assert all(torch.equal(x.grad, gradient) for x, gradient in zip(inputs, once, strict=True))


def test_works_without_gradients():
    inputs = make()
    expected = selective_scan(*inputs)
    with torch.no_grad():
        assert torch.equal(selective_scan(*inputs), expected)
    with torch.inference_mode():
        y = selective_scan(*inputs)
        assert torch.equal(y, expected.detach())
        assert not y.requires_grad
    detached = [x.detach() for x in inputs]
    assert not selective_scan(*detached).requires_grad
    *_, states = torch.ops.twinsep.selective_scan(*detached, False)
    assert states.numel() == 0


def test_non_contiguous_inputs_agree():
    inputs = make(3, 45, 32, 8)
    alone = values_and_gradients(selective_scan, inputs)
    strided = [
        x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() if x.ndim > 1 else x for x in inputs
    ]
    assert not strided[0].is_contiguous()
    found = values_and_gradients(selective_scan, strided)
    assert all(torch.equal(found[name], alone[name]) for name in alone)
    wide = torch.randn(2, 40, 64)
    u, z = wide.chunk(2, -1)
    b, c = torch.randn(2, 40, 4).chunk(2, -1)
    rest = (u.abs(), -torch.rand(32, 2), b, c, torch.ones(32))
    torch.testing.assert_close(selective_scan(u, *rest, z), selective_scan_sequential(u, *rest, z))
    # an expanded cotangent, with strides of 0
    selective_scan(*inputs).sum().backward()


@pytest.mark.parametrize("shape", [(0, 5, 4, 2), (2, 0, 4, 2), (2, 5, 0, 2)])
@pytest.mark.parametrize("function", [selective_scan, selective_scan_chunked, selective_scan_sequential])
def test_empty_inputs(function, shape):
    found = values_and_gradients(function, make(*shape))
    assert found["y"].shape == shape[:3]
    assert (found["A"] == 0).all()


def test_results_do_not_depend_on_the_number_of_threads():
    inputs = make(67, 90, 48, 8)
    assert kernel.SERIAL < 67 * 90 * 48 * 8
    results = []
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        results.append(values_and_gradients(selective_scan, inputs))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


def test_concurrent_calls_agree():
    inputs = make(16, 90, 32, 8)
    assert kernel.SERIAL < 16 * 90 * 32 * 8
    alone = values_and_gradients(selective_scan, inputs)
    wrong = []

    def call():
        torch.set_num_threads(2)  # set per thread
        copies = [x.detach().clone().requires_grad_() for x in inputs]
        for _ in range(5):
            found = values_and_gradients(selective_scan, copies)
            wrong.extend(name for name in alone if not torch.equal(found[name], alone[name]))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_scan_on_a_cpu_uses_the_kernel():
    inputs = make()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        selective_scan(*inputs).sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"twinsep::selective_scan", "twinsep::selective_scan_backward"} <= names


@pytest.mark.parametrize("z", [True, False])
def test_operators_pass_opcheck(z):
    torch.library.opcheck(torch.ops.twinsep.selective_scan, (*make(2, 40, 20, 3, z=z), True))
    constants = [x if x is None else x.detach() for x in make(2, 40, 20, 3, z=z)]
    torch.library.opcheck(torch.ops.twinsep.selective_scan, (*constants, False))


def test_forward_without_saved_states_has_no_gradient():
    with pytest.raises(RuntimeError, match="keep=True"):
        torch.ops.twinsep.selective_scan(*make(), False)


def replaced(inputs, position, value):
    return [*inputs[:position], value, *inputs[position + 1 :]]


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.ones(40, 20), r"u must be \(b, l, e\)"),
        (1, torch.ones(2, 40, 19), r"delta has shape \(2, 40, 19\).*must be \(2, 40, 20\)"),
        (2, torch.ones(8, 20), r"A has shape \(8, 20\).*must be \(20, 20\)"),
        (3, torch.ones(2, 40, 9), r"B has shape.*must be \(2, 40, 8\)"),
        (4, torch.ones(2, 39, 8), r"C has shape.*must be \(2, 40, 8\)"),
        (5, torch.ones(8), r"D has shape.*must be \(20,\)"),
        (6, torch.ones(1, 40, 20), r"z has shape.*must be \(2, 40, 20\)"),
        (1, torch.ones(2, 40, 20, dtype=torch.float64), "delta is torch.float64 and u torch.float32"),
        (3, torch.ones(2, 40, 8, dtype=torch.int64), "B is torch.int64"),
        (5, torch.ones(20, device="meta"), "D is on meta"),
    ],
)
def test_errors_name_the_wrong_input(position, value, message):
    inputs = replaced(make(), position, value)
    with pytest.raises(ValueError, match=message):
        scan._check_inputs(*inputs)
    # In tests, jaxtyping may reject the inputs first.
    for function in (selective_scan, selective_scan_chunked, selective_scan_sequential):
        with pytest.raises((ValueError, TypeError)):
            function(*inputs)


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("failure", FAILURES)
def test_import_is_lazy_and_missing_or_broken_numba_warns_once(failure):
    done = run_python(
        "import sys, warnings, torch\n"
        "from torch_impl.scan import selective_scan, selective_scan_sequential\n"
        "assert 'numba' not in sys.modules\n"
        f"{failure}\n"
        "x = torch.rand(2, 40, 3)\n"
        "inputs = (x, x, -torch.rand(3, 2), torch.rand(2, 40, 2), torch.rand(2, 40, 2), torch.ones(3))\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    y = selective_scan(*inputs), selective_scan(*inputs)\n"
        "assert [w.category for w in caught] == [RuntimeWarning], caught\n"
        "assert 'Numba' in str(caught[0].message)\n"
        "torch.testing.assert_close(y[1], selective_scan_sequential(*inputs))\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork on this system")
def test_works_in_a_forked_child():
    done = run_python(
        "import os, torch\n"
        "from torch_impl.scan import selective_scan\n"
        "torch.set_num_threads(2)\n"
        "x = torch.rand(64, 100, 32)\n"
        "inputs = (x, x, -torch.rand(32, 8), torch.rand(64, 100, 8), torch.rand(64, 100, 8), torch.ones(32))\n"
        "y = selective_scan(*inputs)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    os._exit(0 if torch.equal(selective_scan(*inputs), y) else 3)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("z", [True, False])
def test_agrees_with_the_reference_of_mamba_ssm(z):
    reference = need_mamba_ssm().selective_scan_ref

    def theirs(u, delta, A, B, C, D, z=None):
        u, delta, B, C = (x.transpose(1, 2) for x in (u, delta, B, C))
        return reference(u, delta, A, B, C, D, z if z is None else z.transpose(1, 2)).transpose(1, 2)

    inputs = make(2, 70, 20, 8, z=z)
    assert_agree(values_and_gradients(selective_scan, inputs), values_and_gradients(theirs, inputs), 1e-5)
