"""The fused RMSNorm and SwiGLU gate against PyTorch's operators: values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from helpers.closeness import assert_agree
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from torch_impl import kernels, ops
from torch_impl.kernels import pointwise_numba as kernel

EPS = 1e-6
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}  # relative to the largest value

pytestmark = pytest.mark.usefixtures("one_thread")


def norm_definition(x, weight):
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + EPS) * weight


def gate_definition(a, b):
    return a * F.silu(b)


def norm(x, weight):
    assert kernels.cpu_kernels() is not None
    return torch.ops.twinsep.rms_norm(x, weight, EPS)


def gate(a, b):
    assert kernels.cpu_kernels() is not None
    return torch.ops.twinsep.silu_gate(a, b)


#: Kernels by name: (fused, definition, shapes of the inputs for a shape of x).
FUNCTIONS = {
    "norm": (norm, norm_definition, lambda shape: (shape, shape[-1:])),
    "gate": (gate, gate_definition, lambda shape: (shape, shape)),
}


def make(name, shape, dtype=torch.float32, seed=0):
    """Both random inputs, which require gradients."""
    generator = torch.Generator().manual_seed(seed)
    # Round to float32 first, so that the float32 and the float64 test share one expected result.
    shapes = FUNCTIONS[name][2](shape)
    return [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in shapes]


def values_and_gradients(function, inputs):
    """Value and gradients for a fixed random cotangent."""
    y = function(*inputs)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(y.shape, generator=generator).to(y.dtype)
    gradients = torch.autograd.grad(y, inputs, cotangent)
    return dict(zip(("y", "first", "second"), (y.detach(), *gradients), strict=True))


# A vector has 16 or 8 numbers, a block of the gate 4,096; 24 and 88 are widths of models.
SHAPES = [(3, d) for d in (2, 7, 8, 15, 16, 17, 24, 88)] + [
    (70, 40),
    (2, 5, 24),
    (2, 3, 4, 16),
    (1, 2, 3, 2, 5),
    (8, 600),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_agrees_with_the_definition(name, shape, dtype):
    fused, definition, _ = FUNCTIONS[name]
    found = values_and_gradients(fused, make(name, shape, dtype))
    assert all(value.dtype == dtype for value in found.values())
    assert_agree(found, values_and_gradients(definition, make(name, shape, torch.float64)), TOLERANCE[dtype])


@settings(max_examples=40)
@given(st.sampled_from(sorted(FUNCTIONS)), st.lists(st.integers(1, 9), max_size=3), st.integers(3, 70))
def test_agrees_for_any_shape(name, leading, d):
    fused, definition, _ = FUNCTIONS[name]
    exact = values_and_gradients(definition, make(name, (*leading, d), torch.float64))
    for dtype, tolerance in TOLERANCE.items():
        assert_agree(values_and_gradients(fused, make(name, (*leading, d), dtype)), exact, tolerance)


def test_agrees_with_a_hand_computed_example():
    x = torch.tensor([[3.0, 4.0, 0.0, 0.0]])  # rms 2.5
    weight = torch.tensor([1.0, 10.0, 1.0, 1.0])
    torch.testing.assert_close(norm(x, weight), torch.tensor([[1.2, 16.0, 0.0, 0.0]]))
    torch.testing.assert_close(gate(torch.tensor([2.0, 5.0]), torch.tensor([0.0, 40.0])), torch.tensor([0.0, 200.0]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_agree_with_finite_differences(name):
    assert torch.autograd.gradcheck(FUNCTIONS[name][0], make(name, (4, 19), torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4, 1e15])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_extreme_values_agree(name, scale, dtype):
    first, second = make(name, (5, 40), dtype)
    inputs = [(scale * first).detach().requires_grad_(), (second if name == "norm" else scale * second).detach()]
    inputs[1].requires_grad_()
    found, exact = (values_and_gradients(f, inputs) for f in FUNCTIONS[name][:2])
    for key, wanted in exact.items():
        assert torch.isfinite(found[key]).all()
        atol = TOLERANCE[dtype] * max(wanted.abs().max().item(), 1e-30)
        torch.testing.assert_close(found[key], wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_propagates(name, position, value):
    inputs = make(name, (6, 21))
    with torch.no_grad():
        inputs[position].view(-1)[20] = value  # after the last whole vector
    found, wanted = (values_and_gradients(f, inputs) for f in FUNCTIONS[name][:2])
    for key, exact in wanted.items():
        assert torch.equal(torch.isnan(found[key]), torch.isnan(exact)), key


@pytest.mark.parametrize("name", FUNCTIONS)
def test_non_contiguous_inputs_agree(name):
    inputs = make(name, (3, 5, 4, 24))
    alone = values_and_gradients(FUNCTIONS[name][0], inputs)
    x = inputs[0].detach()
    wide = torch.full((3, 5, 4, 60), float("nan"))
    wide[..., 7:31] = x
    strided = {
        "part of a wider tensor": wide[..., 7:31],
        "bands and frames exchanged": x.transpose(1, 2).contiguous().transpose(1, 2),
        "features first": x.movedim(-1, 0).contiguous().movedim(0, -1),
    }
    for how, same in strided.items():
        assert not same.is_contiguous(), how
        found = values_and_gradients(FUNCTIONS[name][0], [same.requires_grad_(), inputs[1]])
        assert all(torch.equal(found[key], alone[key]) for key in alone), how
        assert found["y"].shape == x.shape


@pytest.mark.parametrize("name", FUNCTIONS)
def test_non_contiguous_cotangents_agree(name):
    inputs = make(name, (3, 5, 24))
    function = FUNCTIONS[name][0]
    ones = torch.autograd.grad(function(*inputs), inputs, torch.ones(3, 5, 24))
    found = torch.autograd.grad(function(*inputs), inputs, torch.ones(()).expand(3, 5, 24))
    assert all(map(torch.equal, found, ones))


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_empty_inputs(name, shape):
    found = values_and_gradients(FUNCTIONS[name][0], make(name, shape))
    assert found["y"].shape == found["first"].shape == shape
    assert (found["second"] == 0).all()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_do_not_depend_on_the_number_of_threads(name):
    inputs = make(name, (67, 90, 24))
    assert kernel.SERIAL < 67 * 90 * 24
    results = []
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        results.append(values_and_gradients(FUNCTIONS[name][0], inputs))
    for other in results[1:]:
        assert all(torch.equal(results[0][key], other[key]) for key in other)


def test_operators_pass_opcheck():
    inputs = make("norm", (2, 9, 20))
    torch.library.opcheck(torch.ops.twinsep.rms_norm, (*inputs, EPS))
    constants = [x.detach() for x in inputs]
    torch.library.opcheck(torch.ops.twinsep.rms_norm_backward, (torch.ones(2, 9, 20), *constants, EPS))
    inputs = make("gate", (2, 9, 20))
    torch.library.opcheck(torch.ops.twinsep.silu_gate, tuple(inputs))
    torch.library.opcheck(torch.ops.twinsep.silu_gate_backward, (torch.ones(2, 9, 20), *(x.detach() for x in inputs)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_works_under_checkpoint(name):
    inputs = make(name, (4, 40))
    function = FUNCTIONS[name][0]
    again = values_and_gradients(lambda *x: checkpoint(function, *x, use_reentrant=False), inputs)
    for key, value in values_and_gradients(function, inputs).items():
        assert torch.equal(again[key], value)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_operation_uses_the_kernel_for_supported_dtypes(name, dtype, monkeypatch):
    inputs = [x.detach().to(dtype) for x in make(name, (4, 40))]
    layer = ops.rms_norm if name == "norm" else ops.silu_gate
    found = layer(*inputs)
    assert found.dtype == dtype
    asked = []

    class Watched:
        def __getattr__(self, operator):
            asked.append(operator)
            return getattr(torch.ops.twinsep, operator)

    monkeypatch.setattr(ops, "cpu_kernels", Watched)
    layer(*inputs)
    assert asked == ([] if dtype == torch.bfloat16 else ["rms_norm" if name == "norm" else "silu_gate"])
    monkeypatch.setattr(ops, "cpu_kernels", lambda: None)
    torch.testing.assert_close(layer(*inputs), found)


def test_a_norm_per_band_uses_tensor_operations():
    x, weight = torch.randn(2, 3, 5, 8), torch.rand(3, 1, 8)
    torch.testing.assert_close(ops.rms_norm(x, weight), norm_definition(x, weight))
