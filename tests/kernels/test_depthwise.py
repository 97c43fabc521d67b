"""The fused depthwise convolution with SiLU against PyTorch's operators: values and gradients."""

import subprocess
import sys
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from helpers.closeness import assert_agree
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from torch_impl import kernels, ops
from torch_impl.layers import DepthwiseConvSiLU1d, initialise
from twinsep.kernels import depthwise as kernel

NAMES = ("y", "x", "weight", "bias")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}  # relative to the largest value


pytestmark = pytest.mark.usefixtures("one_thread")


def definition(x, weight, bias, left):
    """Depthwise convolution and SiLU by PyTorch's own operators."""
    padded = F.pad(x.mT, (left, weight.shape[2] - 1 - left))
    return F.silu(F.conv1d(padded, weight, bias, groups=x.shape[2]).mT)


def fused(x, weight, bias, left):
    assert kernels.cpu_kernels() is not None
    return torch.ops.twinsep.depthwise_silu(x, weight, bias, left)


def layer(kernel_size, left, *, d=20):
    module = DepthwiseConvSiLU1d(d, kernel_size, left=left)
    initialise(module, 1)
    return module


def make(b=2, l=40, d=20, k=4, dtype=torch.float32, seed=0):
    """Random x, weight and bias that require gradients."""
    generator = torch.Generator().manual_seed(seed)
    # Round to float32 first, so that the float32 and the float64 test share one expected result.
    shapes = ((b, l, d), (d, 1, k), (d,))
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def values_and_gradients(function, inputs, left):
    """y and gradients by name, for a fixed random cotangent."""
    y = function(*inputs, left)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(y.shape, generator=generator).to(y.dtype)
    gradients = torch.autograd.grad(y, inputs, cotangent)
    return dict(zip(NAMES, (y.detach(), *gradients), strict=True))


@lru_cache
def expected(b, l, d, k, left):
    """Values and gradients by the definition in float64."""
    return values_and_gradients(definition, make(b, l, d, k, torch.float64), left)


# (kernel size, zeros before): those of Mamba and LocalConv, size 1, and both extremes
KERNELS = [(4, 3), (7, 3), (1, 0), (7, 0), (8, 5)]
# 24 and 48 are widths of the model; 3 is less than a vector, 35 has no common factor with its width
SIZES = [(2, l, 20) for l in (1, 3, 4, 6, 7)] + [(3, 50, d) for d in (1, 3, 16, 24, 35, 48)] + [(1, 700, 8), (70, 9, 5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("k", "left"), KERNELS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_agrees_with_the_definition(size, k, left, dtype):
    found = values_and_gradients(fused, make(*size, k, dtype), left)
    assert all(value.dtype == dtype for value in found.values())
    assert_agree(found, expected(*size, k, left), TOLERANCE[dtype])


@settings(max_examples=60)
@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 40), st.integers(1, 8), st.data())
def test_agrees_for_any_shape(b, l, d, k, data):
    left = data.draw(st.integers(0, k - 1))
    for dtype, tolerance in TOLERANCE.items():
        found = values_and_gradients(fused, make(b, l, d, k, dtype), left)
        assert_agree(found, expected(b, l, d, k, left), tolerance)


def test_agrees_with_a_hand_computed_example():
    # One channel and a causal kernel, weights in temporal order: a = (2·1 + 3, 1·1 + 2·4 + 3).
    x, weight, bias = torch.tensor([1.0, 4.0]).reshape(1, 2, 1), torch.tensor([[[1.0, 2.0]]]), torch.tensor([3.0])
    torch.testing.assert_close(fused(x, weight, bias, 1).flatten(), F.silu(torch.tensor([5.0, 12.0])))
    torch.testing.assert_close(fused(x, weight, bias, 0).flatten(), F.silu(torch.tensor([12.0, 7.0])))


@pytest.mark.parametrize(("k", "left"), [(1, 0), (4, 3), (3, 1)])
def test_gradients_agree_with_finite_differences(k, left):
    assert torch.autograd.gradcheck(lambda *inputs: fused(*inputs, left), make(2, 4, 3, k, torch.float64))


@pytest.mark.parametrize("missing", range(3))
def test_gradients_of_a_subset_of_the_inputs(missing):
    inputs = make()
    inputs[missing].requires_grad_(False)
    wanted = [x for x in inputs if x.requires_grad]
    gradients = (torch.autograd.grad(f(*inputs, 3).sum(), wanted) for f in (fused, definition))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e30])
def test_extreme_values_agree(scale, dtype):
    x, weight, bias = make(dtype=dtype)
    inputs = [(scale * x).detach().requires_grad_(), weight, (scale * bias).detach().requires_grad_()]
    found, wanted = (values_and_gradients(f, inputs, 3) for f in (fused, definition))
    for name, exact in wanted.items():
        assert torch.isfinite(found[name]).all()
        torch.testing.assert_close(found[name], exact, rtol=0, atol=TOLERANCE[dtype] * exact.abs().max().item())


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("index", [197, 350])
def test_nan_propagates(position, value, index):
    # In x: the first frame of the second sequence, and its last frame, in a channel of the partial vector.
    inputs = make(3, 9, 20, 4)
    with torch.no_grad():
        inputs[position].view(-1)[index % inputs[position].numel()] = value
    found, wanted = (values_and_gradients(f, inputs, 3) for f in (fused, definition))
    assert torch.isnan(found["x"]).any()
    assert not torch.isnan(found["x"]).all()
    for name in ("y", "x"):
        assert torch.equal(torch.isnan(found[name]), torch.isnan(wanted[name])), name
    for name in ("weight", "bias"):  # per channel: NaN in the same channels
        channels = [torch.isnan(values[name]).reshape(20, -1).any(1) for values in (found, wanted)]
        assert torch.equal(*channels), name


def test_non_contiguous_inputs_agree():
    inputs = make(3, 45, 32, 4)
    alone = values_and_gradients(fused, inputs, 3)
    x = inputs[0].detach()
    wide = torch.full((3, 45, 71), float("nan"))
    wide[..., 5:37] = x
    strided = {
        "half of wider frames": wide[..., 5:37],
        "channels first": x.mT.contiguous().mT,
        "frames first": x.transpose(0, 1).contiguous().transpose(0, 1),
        "reversed axes": x.permute(2, 1, 0).contiguous().permute(2, 1, 0),
    }
    for name, same in strided.items():
        assert not same.is_contiguous(), name
        found = values_and_gradients(fused, [same.requires_grad_(), *inputs[1:]], 3)
        assert all(torch.equal(found[key], alone[key]) for key in alone), name
    one = inputs[0][:1].detach()
    assert torch.equal(fused(one.expand(3, 45, 32), *inputs[1:], 3), fused(one.repeat(3, 1, 1), *inputs[1:], 3))
    across = inputs[1].detach().permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert not across.is_contiguous()
    assert torch.equal(fused(x, across, inputs[2], 3), alone["y"])


def test_non_contiguous_cotangents_agree():
    inputs = make(3, 45, 32, 4)
    ones = torch.autograd.grad(fused(*inputs, 3), inputs, torch.ones(3, 45, 32))
    wide = torch.full((3, 45, 40), float("nan"))
    wide[..., 8:] = 1
    for cotangent in (torch.ones(()).expand(3, 45, 32), wide[..., 8:]):
        found = torch.autograd.grad(fused(*inputs, 3), inputs, cotangent)
        assert all(map(torch.equal, found, ones))


@pytest.mark.parametrize("shape", [(0, 5, 4), (2, 0, 4), (2, 5, 0)])
def test_empty_inputs(shape):
    found = values_and_gradients(fused, make(*shape), 3)
    assert found["y"].shape == found["x"].shape == shape
    assert (found["weight"] == 0).all()
    assert (found["bias"] == 0).all()


def test_results_do_not_depend_on_the_number_of_threads():
    inputs = make(67, 90, 24, 7)
    assert kernel.SERIAL < 67 * 90 * 24
    results = []
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        results.append(values_and_gradients(fused, inputs, 3))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


def test_operators_pass_opcheck():
    inputs = make(2, 9, 20, 4)
    torch.library.opcheck(torch.ops.twinsep.depthwise_silu, (*inputs, 3))
    constants = [x.detach() for x in inputs]
    torch.library.opcheck(torch.ops.twinsep.depthwise_silu, (*constants, 3))
    torch.library.opcheck(torch.ops.twinsep.depthwise_silu_backward, (torch.ones(2, 9, 20), *constants, 3))


@pytest.mark.parametrize(("k", "left"), [(4, 3), (7, 3)])
def test_the_layer_on_a_cpu_uses_the_kernel(k, left, monkeypatch):
    module, (x, *_) = layer(k, left), make()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y = module(x)
        y.sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"twinsep::depthwise_silu", "twinsep::depthwise_silu_backward"} <= names
    torch.testing.assert_close(y, definition(x, module.weight, module.bias, left))
    # Without the kernel, the result is the same.
    monkeypatch.setattr(ops, "cpu_kernels", lambda: None)
    torch.testing.assert_close(module(x), y)


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype, fallback, monkeypatch):
    if fallback:
        monkeypatch.setattr(ops, "cpu_kernels", lambda: None)
    module, x = layer(4, 3), make()[0].detach()
    half, alone = x.to(dtype).requires_grad_(), module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(x), alone)
        y = module(half)
    y.sum().backward()
    assert y.dtype == half.grad.dtype == dtype
    assert module.weight.grad.dtype == torch.float32
    torch.testing.assert_close(y, definition(half.float(), module.weight, module.bias, 3).to(dtype))


def test_works_under_checkpoint():
    module, (x, *_) = layer(4, 3), make()
    inputs = [x, module.weight, module.bias]
    once = torch.autograd.grad(module(x).sum(), inputs)
    for reentrant in (True, False):
        for tensor in inputs:
            tensor.grad = None
        checkpoint(module, x, use_reentrant=reentrant).sum().backward()
        assert all(torch.equal(tensor.grad, gradient) for tensor, gradient in zip(inputs, once, strict=True))


def test_works_without_gradients():
    module, (x, *_) = layer(7, 3), make()
    wanted = module(x)
    with torch.inference_mode():
        y = module(x)
    assert torch.equal(y, wanted.detach())
    assert not y.requires_grad


def test_missing_numba_warns_once_for_all_kernels():
    code = (
        "import sys, warnings, torch\n"
        "from torch_impl.layers import DepthwiseConvSiLU1d, initialise\n"
        "from torch_impl.scan import selective_scan\n"
        "assert 'numba' not in sys.modules\n"
        "sys.modules['numba'] = None\n"
        "module, x = DepthwiseConvSiLU1d(3, 4, left=3), torch.rand(2, 40, 3)\n"
        "initialise(module, 0)\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    u = module(module(x))\n"
        "    selective_scan(u, u, -torch.rand(3, 2), torch.rand(2, 40, 2), torch.rand(2, 40, 2), torch.ones(3))\n"
        "assert [w.category for w in caught] == [RuntimeWarning], caught\n"
        "assert 'Numba' in str(caught[0].message)\n"
        "conv = torch.nn.functional.conv1d(x.mT, module.weight, module.bias, padding=3, groups=3)[..., :40]\n"
        "torch.testing.assert_close(module(x), torch.nn.functional.silu(conv).mT)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
