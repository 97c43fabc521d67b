"""The fused attention kernel against its equation: values and gradients."""

from functools import lru_cache
from math import sqrt

import pytest
import torch
from helpers.closeness import assert_agree
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from torch_impl import kernels, ops
from torch_impl.layers import MultiHeadAttention, initialise
from torch_impl.ops import attention
from twinsep.kernels import attention as kernel

NAMES = ("o", "q", "k", "v")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}  # relative to the largest value
FLOOR = 0.1  # if one weight is close to 1, the gradients of q and k nearly cancel


pytestmark = pytest.mark.usefixtures("one_thread")


def definition(q, k, v):
    """softmax(q kᵀ / √e) v for (b, length, heads, e)."""
    weights = torch.softmax(torch.einsum("blhe,bmhe->bhlm", q, k) / sqrt(q.shape[-1]), -1)
    return torch.einsum("bhlm,bmhe->blhe", weights, v)


def fused(q, k, v):
    assert kernels.cpu_kernels() is not None
    return torch.ops.twinsep.attention(q, k, v)[0]


def make(b=2, queries=9, keys=21, heads=3, e=8, dtype=torch.float32, seed=0):
    """Random q, k and v that require gradients."""
    generator = torch.Generator().manual_seed(seed)
    # Round to float32 first, so that the float32 and the float64 test share one expected result.
    shapes = [(b, n, heads, e) for n in (queries, keys, keys)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def values_and_gradients(function, inputs):
    """Output and gradients by name, for a fixed random cotangent."""
    o = function(*inputs)
    cotangent = torch.randn(o.shape, generator=torch.Generator().manual_seed(1)).to(o.dtype)
    return dict(zip(NAMES, (o.detach(), *torch.autograd.grad(o, inputs, cotangent)), strict=True))


@lru_cache
def expected(*size):
    """Values and gradients by the definition in float64."""
    return values_and_gradients(definition, make(*size, torch.float64))


# (batch, queries, keys, heads, features): around ROWS queries and whole vectors of keys, with many and few heads, and
# the sizes of the model
SIZES = [
    *((2, n, 20, 2, 8) for n in (1, 3, 4, 5)),
    *((1, 6, n, 2, 5) for n in (2, 7, 8, 15, 16, 17, 33)),
    *((1, n, 12, 1, 4) for n in (31, 32, 33)),
    (9, 10, 10, 2, 12),
    (1, 130, 130, 2, 12),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_agrees_with_the_definition(size, dtype):
    found = values_and_gradients(fused, make(*size, dtype))
    assert all(value.dtype == dtype for value in found.values())
    assert_agree(found, expected(*size), TOLERANCE[dtype], floor=FLOOR)


@settings(max_examples=60)
@given(st.tuples(*(st.integers(*ends) for ends in ((1, 3), (1, 40), (2, 40), (1, 3), (1, 20)))))
def test_agrees_for_any_shape(size):
    for dtype, tolerance in TOLERANCE.items():
        assert_agree(values_and_gradients(fused, make(*size, dtype)), expected(*size), tolerance, floor=FLOOR)


def test_agrees_with_a_hand_computed_example():
    # The scores are 0 and log 3 (e = 1), so the weights are 1/4 and 3/4.
    q, k, v = (torch.tensor(x).reshape(1, -1, 1, 1) for x in ([1.0], [0.0, torch.tensor(3.0).log()], [8.0, 4.0]))
    torch.testing.assert_close(fused(q, k, v).flatten(), torch.tensor([5.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_key_has_all_the_weight(dtype):
    inputs = make(1, 19, 1, 2, 9, dtype)
    found, (q, _, v) = values_and_gradients(fused, inputs), inputs
    assert torch.equal(found["o"], v.detach().expand(q.shape))
    # Each ∂s is the difference of two equal numbers of this size; the rounding errors of 19 queries add up.
    size = 19 * 9 * q.abs().max().item() * v.abs().max().item()
    for name in ("q", "k"):
        assert found[name].abs().max().item() <= torch.finfo(dtype).eps * size


def test_gradients_agree_with_finite_differences():
    assert torch.autograd.gradcheck(fused, make(2, 5, 3, 2, 3, torch.float64))


@pytest.mark.parametrize("missing", range(3))
def test_gradients_of_a_subset_of_the_inputs(missing):
    inputs = make()
    inputs[missing].requires_grad_(False)
    wanted = [x for x in inputs if x.requires_grad]
    gradients = (torch.autograd.grad(f(*inputs).square().sum(), wanted) for f in (fused, definition))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("scale", [1e-20, 30.0, 1e4])
def test_large_and_small_scores_agree(scale):
    q, k, v = make(dtype=torch.float64)
    inputs = [(scale * q).detach().requires_grad_(), k, v]
    found = values_and_gradients(fused, inputs)
    assert all(torch.isfinite(x).all() for x in found.values())
    assert_agree(found, values_and_gradients(definition, inputs), 1e-10, floor=FLOOR)


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_propagate(position, value):
    inputs = make()
    with torch.no_grad():
        inputs[position][1, 2, 1, 3] = value
    found, wanted = (f(*inputs) for f in (fused, definition))
    assert not torch.isfinite(found).all()
    assert torch.equal(torch.isfinite(found), torch.isfinite(wanted))


def test_non_contiguous_inputs_and_cotangents():
    inputs = make(3, 10, 18, 2, 6)
    alone = values_and_gradients(fused, inputs)
    ones = torch.autograd.grad(fused(*inputs), inputs, torch.ones(3, 10, 2, 6))
    wide = [torch.full((*x.shape[:3], 11), float("nan")) for x in inputs]
    for target, x in zip(wide, inputs, strict=True):
        target[..., 2:8] = x.detach()
    variants = {
        "slices of wider heads": [x[..., 2:8] for x in wide],
        "heads first": [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in inputs],
        "reversed axes": [x.detach().permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0) for x in inputs],
    }
    for name, same in variants.items():
        assert not same[0].is_contiguous(), name
        found = values_and_gradients(fused, [x.requires_grad_() for x in same])
        assert all(torch.equal(found[key], alone[key]) for key in alone), name
    found = torch.autograd.grad(fused(*inputs), inputs, torch.ones(()).expand(3, 10, 2, 6))
    assert all(map(torch.equal, found, ones))


@pytest.mark.parametrize("size", [(0, 3, 4, 2, 8), (2, 0, 4, 2, 8), (2, 3, 4, 0, 8)])
def test_empty_inputs(size):
    found = values_and_gradients(fused, make(*size))
    for name, x in zip(NAMES[1:], make(*size), strict=True):
        assert found[name].shape == x.shape
        assert (found[name] == 0).all()


def test_inputs_without_keys_are_rejected():
    with pytest.raises(ValueError, match="at least one key"):
        fused(*make(keys=0))


@pytest.mark.parametrize("size", [(1, 200, 200, 2, 8), (20, 60, 60, 2, 8)], ids=["few heads", "many heads"])
def test_results_do_not_depend_on_the_number_of_threads(size):
    inputs, (b, queries, keys, heads, _) = make(*size), size
    assert b * heads * queries * keys > kernel.SERIAL
    assert (b * heads < kernel.ENOUGH) == (b == 1)
    results = []
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        results.append(values_and_gradients(fused, inputs))
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)


def test_operators_pass_opcheck():
    inputs = make()
    constants = [x.detach() for x in inputs]
    for arguments in (inputs, constants):
        torch.library.opcheck(torch.ops.twinsep.attention, tuple(arguments))
    o, logsum = torch.ops.twinsep.attention(*constants)
    torch.library.opcheck(torch.ops.twinsep.attention_backward, (torch.ones_like(o), o, *constants, logsum))


def layer(heads=2, d=16):
    module = MultiHeadAttention(d, heads)
    initialise(module, 1)
    return module, torch.randn(3, 20, d, generator=torch.Generator().manual_seed(2)).requires_grad_()


def test_narrow_heads_on_a_cpu_use_the_kernel(monkeypatch):
    module, x = layer()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y = module(x, x)
        y.sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"twinsep::attention", "twinsep::attention_backward"} <= names
    # Without the kernel, the result is the same.
    monkeypatch.setattr(ops, "cpu_kernels", lambda: None)
    torch.testing.assert_close(module(x, x), y)


@pytest.mark.parametrize("case", ["wide", "half"])
def test_other_heads_use_pytorch(case):
    e, dtype = (ops.NARROW + 2, torch.float32) if case == "wide" else (8, torch.bfloat16)
    q, k, v = (x.detach().transpose(1, 2).to(dtype) for x in make(e=e))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        o = attention(q, k, v)
    assert "twinsep::attention" not in {event.key for event in profile.key_averages()}
    wanted = definition(*(x.transpose(1, 2).float() for x in (q, k, v))).transpose(1, 2)
    torch.testing.assert_close(o.float(), wanted, rtol=0, atol=1e-5 if case == "wide" else 0.03)


def test_works_under_checkpoint_and_without_gradients():
    module, x = layer()
    inputs = [x, *module.parameters()]
    once = torch.autograd.grad(module(x, x).sum(), inputs)
    again = torch.autograd.grad(checkpoint(module, x, x, use_reentrant=False).sum(), inputs)
    assert all(map(torch.equal, once, again))
    with torch.inference_mode():
        y = module(x, x)
    assert torch.equal(y, module(x, x).detach())
