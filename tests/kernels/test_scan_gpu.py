"""The Triton kernels of the selective scan against its definition, on a GPU or in Triton's interpreter."""

import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from helpers.closeness import assert_agree
from helpers.scans import definition, make, values_and_gradients
from torch.utils.checkpoint import checkpoint

from torch_impl import scan
from torch_impl.layers import DepthwiseConvSiLU1d, initialise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    assert os.environ["TRITON_INTERPRET"] == "1"  # set by conftest before Triton is imported
pytest.importorskip("triton", reason="Triton is not installed (pip install triton)")

from torch_impl.kernels import selective_scan_triton as kernel  # noqa: E402 (after the variable is set)

pytestmark = pytest.mark.usefixtures("one_thread")
needs_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="no GPU here")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}  # relative to the largest value
CHUNK = 4


@pytest.fixture
def small(monkeypatch):
    """Use small chunks, blocks of 16 channels and two backward programs, so that few frames cover them all."""
    monkeypatch.setattr(kernel, "CHUNK", CHUNK)
    monkeypatch.setattr(kernel, "STATES", 16)
    monkeypatch.setattr(kernel, "PROGRAMS", 2)


def on_device(*inputs, function=None):
    """Call ``function``, by default the kernel, on inputs on the CPU and return values and gradients there."""
    return (function or kernel.selective_scan)(*(x if x is None else x.to(DEVICE) for x in inputs)).cpu()


@pytest.mark.parametrize("z", [True, False])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, CHUNK, 17, 3), (1, CHUNK + 1, 3, 1), (1, 3 * CHUNK - 1, 5, 2)], ids=str
)
@pytest.mark.usefixtures("small")
def test_agrees_with_the_definition(shape, z):
    inputs = make(*shape, z=z)
    assert_agree(values_and_gradients(on_device, inputs), definition(inputs), 1e-5)


@pytest.mark.parametrize(("b", "e", "programs"), [(3, 16, (1, 2)), (1, 48, (2, 1)), (3, 33, (1, 2))])
@pytest.mark.usefixtures("small")
def test_programs_share_blocks_and_sequences(b, e, programs):
    assert kernel._programs(b, -(-e // 16)) == programs
    inputs = make(b, 2, e, 3, z=False)
    assert_agree(values_and_gradients(on_device, inputs), definition(inputs), 1e-5)


def test_no_more_programs_than_units_of_work():
    assert kernel._programs(3, 4) == (4, 3)
    assert kernel._programs(kernel.PROGRAMS, 4) == (1, kernel.PROGRAMS)
    parts, groups = kernel._programs(68, 16)
    assert kernel.PROGRAMS / 2 <= parts * groups <= kernel.PROGRAMS


def test_agrees_with_the_default_chunks_and_tiles():
    inputs = make(1, kernel.CHUNK + 1, 6, 20)
    assert_agree(values_and_gradients(on_device, inputs), definition(inputs), 1e-5)


@needs_gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(70, 300, 128, 16), (5, 700, 512, 32), (3000, 72, 32, 8), (1, 5000, 40, 3)], ids=str)
def test_agrees_at_the_shapes_of_the_model(shape, dtype):
    inputs = make(*shape, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    wanted = values_and_gradients(partial(on_device, function=scan.selective_scan_chunked), exact)
    assert_agree(values_and_gradients(on_device, inputs), wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("small")
def test_half_precision_is_computed_in_float32(dtype):
    half = [x.detach().to(dtype).requires_grad_() for x in make(1, 6, 5, 3)]
    found = values_and_gradients(on_device, half)
    assert all(x.dtype == dtype for x in found.values())
    assert_agree(found, definition(half), TOLERANCE[dtype])


@pytest.mark.usefixtures("small")
def test_the_state_is_not_half_precision():
    # In bfloat16 1 + 2⁻⁸ rounds to 1 (the next number is 1 + 2⁻⁷), so a bfloat16 state would never grow.
    one = torch.ones(1, 9, 1, dtype=torch.bfloat16)
    u = torch.cat([one[:, :1], 2.0**-8 * one[:, 1:]], 1)
    y = on_device(u, one, torch.zeros(1, 1), one, one, torch.zeros(1))
    assert y[0, -1, 0].item() == 1 + 8 * 2.0**-8


@pytest.mark.usefixtures("small")
def test_gradients_have_the_dtypes_of_their_inputs():
    # As under autocast: half precision except for steps and weights.
    inputs = make(1, 5, 4, 2)
    half, full = torch.bfloat16, torch.float32
    types = [half, full, full, half, half, full, half]
    mixed = [x.detach().to(dtype).requires_grad_() for x, dtype in zip(inputs, types, strict=True)]
    found = values_and_gradients(on_device, mixed)
    assert [x.dtype for x in found.values()] == [half, *types]
    assert_agree(found, definition(mixed), 8e-3)


@pytest.mark.parametrize(
    ("largest_delta", "largest_A"), [(0.0, 1.0), (1e-6, 1e4), (1.0, 50.0), (1e4, 1e-6), (1e4, 1e4)]
)
@pytest.mark.usefixtures("small")
def test_extreme_steps_and_decays_agree(largest_delta, largest_A):
    inputs = make(1, 6, 4, 3)
    with torch.no_grad():
        inputs[1] *= largest_delta / inputs[1].max()
        inputs[2] *= largest_A / inputs[2].abs().max()
    assert_agree(values_and_gradients(on_device, inputs), definition(inputs), 3e-5)


@pytest.mark.usefixtures("small")
def test_non_contiguous_inputs_agree():
    inputs = make(2, 5, 4, 3)
    alone = values_and_gradients(on_device, inputs)
    strided = [
        x.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() if x.ndim > 1 else x for x in inputs
    ]
    assert not strided[0].is_contiguous()
    found = values_and_gradients(on_device, strided)
    assert all(torch.equal(found[name], alone[name]) for name in alone)


@pytest.mark.usefixtures("small")
def test_slices_and_an_expanded_cotangent_agree():
    generator = torch.Generator().manual_seed(3)
    wide = torch.randn(2, 5, 8, generator=generator).to(DEVICE).requires_grad_()
    narrow = torch.randn(2, 5, 6, generator=generator).to(DEVICE).requires_grad_()
    rest = -torch.rand(4, 3, generator=generator).to(DEVICE), torch.ones(4, device=DEVICE)

    def total(function):
        (u, z), (B, C), (A, D) = wide.chunk(2, -1), narrow.chunk(2, -1), rest
        return torch.autograd.grad(function(u, u.abs(), A, B, C, D, z).sum(), (wide, narrow))

    for ours, theirs in zip(total(kernel.selective_scan), total(scan.selective_scan_sequential), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("missing", range(7))
@pytest.mark.usefixtures("small")
def test_gradients_of_a_subset_of_the_inputs(missing):
    inputs = make(1, 2, 3, 2)
    inputs[missing].requires_grad_(False)
    wanted = [x for x in inputs if x.requires_grad]
    found = torch.autograd.grad(on_device(*inputs).sum(), wanted)
    expected = torch.autograd.grad(scan.selective_scan_sequential(*inputs).sum(), wanted)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("small")
def test_saves_states_at_chunk_boundaries_only():
    b, l, e, n = 1, 3 * CHUNK, 16, 16
    kept = []
    inputs = [x.to(DEVICE) for x in make(b, l, e, n)]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        kernel.selective_scan(*inputs)
    assert sorted(kept)[-1] == b * 2 * n * e  # two boundaries between three chunks
    kept.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x), torch.no_grad():
        assert not kernel.selective_scan(*inputs).requires_grad
    assert kept == []


@pytest.mark.usefixtures("small")
def test_works_under_checkpoint_and_without_gradients():
    inputs = make(1, 2, 3, 2)
    y = on_device(*inputs)
    once = torch.autograd.grad(y.sum(), inputs)
    for reentrant in (True, False):
        again = checkpoint(on_device, *inputs, use_reentrant=reentrant)
        again.sum().backward()
        for x, gradient in zip(inputs, once, strict=True):
            assert torch.equal(x.grad, gradient)
            x.grad = None
    with torch.inference_mode():
        assert torch.equal(on_device(*inputs), y)


def test_results_repeat_to_the_bit():
    inputs = make(*((67, 90, 48, 8) if DEVICE == "cuda" else (2, 3, 3, 2)))
    once, again = (values_and_gradients(on_device, inputs) for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.parametrize("position", range(7))
@pytest.mark.usefixtures("small")
def test_nan_propagates(position):
    inputs = [x.detach() for x in make(1, 3, 4, 2)]
    inputs[position].view(-1)[-1] = float("nan")
    wanted = torch.isnan(scan.selective_scan_sequential(*inputs))
    assert torch.equal(torch.isnan(on_device(*inputs)), wanted)


@pytest.mark.parametrize("shape", [(0, 5, 4, 2), (2, 0, 4, 2), (2, 5, 0, 2)])
def test_empty_inputs(shape):
    found = values_and_gradients(on_device, make(*shape))
    assert found["y"].shape == shape[:3]
    assert (found["A"] == 0).all()


def forget():
    scan.gpu_kernel.cache_clear()
    scan._checked_kernel.cache_clear()


@pytest.mark.usefixtures("small")
def test_the_dispatch_uses_the_kernel_only_if_it_agrees(monkeypatch):
    monkeypatch.setattr(scan, "SAMPLES", ((1, 5),))
    forget()
    types = (torch.bfloat16, torch.float32, torch.float32, torch.bfloat16, torch.bfloat16, torch.float32, None)
    found = scan.gpu_kernel(torch.device(DEVICE), types, (1, 5, 5, 2), False)
    assert found is kernel.selective_scan
    # A kernel that disagrees is not used.
    forget()
    monkeypatch.setattr(kernel, "selective_scan", lambda D, **others: found(D=2 * D, **others))
    with pytest.warns(RuntimeWarning, match=r"The Triton selective scan on \w+ is not used: y is off by"):
        assert scan.gpu_kernel(torch.device(DEVICE), types, (1, 5, 5, 2), False) is None
    forget()


@needs_gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("z", [True, False])
def test_the_scan_agrees_on_a_gpu(z, dtype):
    inputs = make(3, 100, 72, 16, z=z, dtype=dtype)
    moved = [x if x is None else x.detach().to(DEVICE).requires_grad_() for x in inputs]
    y = scan.selective_scan(*moved)
    wanted = definition(inputs)["y"]
    assert_agree({"y": y.cpu()}, {"y": wanted}, TOLERANCE[dtype])
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert torch.equal(scan.selective_scan(*moved), y)
    wide = [x if x is None else x.double() for x in moved]
    assert_agree({"y": scan.selective_scan(*wide).cpu()}, {"y": wanted}, 1e-12)


@needs_gpu
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_convolution_agrees_on_a_gpu(dtype):
    module = DepthwiseConvSiLU1d(24, 4, left=3)
    initialise(module, 1)
    x = torch.randn(2, 300, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    wanted = module(x.float())
    assert_agree({"y": module.to(DEVICE)(x.to(DEVICE)).cpu()}, {"y": wanted}, TOLERANCE[dtype])


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from torch_impl.kernels import selective_scan_triton as kernel  # noqa: E402 (after the variable is set)

for jitted in (kernel._forward, kernel._backward):
    constants = {"GATED": True, "KEEP": True, "CHUNK": kernel.CHUNK, "N": 8, "E": 32}
    half = {"dy", "u", "delta", "B", "C", "z", "y", "du", "ddelta", "dz"}
    wide = {"A", "D", "states", "dA", "dB", "dC", "dD", "buffer"}
    types = {"constexpr": constants, "*bf16": half, "*fp32": wide}
    signature = {x: next((t for t, names in types.items() if x in names), "i32") for x in jitted.arg_names}
    used = {x: value for x, value in constants.items() if x in signature}
    done = triton.compile(ASTSource(jitted, signature, used), GPUTarget("cuda", 90, 32), {"num_warps": 1})
    assert "atom" not in done.asm["ptx"] and done.asm["cubin"]
"""


def test_compiles_for_a_gpu_without_atomic_operations(tmp_path):
    """The interpreter accepts code that the compiler rejects."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
