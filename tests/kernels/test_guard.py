"""GPU kernels are used only after a check, and published kernels get inputs they accept; these tests need no GPU."""

import random
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from helpers.scans import make
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import conv1d, silu
from torch.utils.checkpoint import checkpoint

from torch_impl import ops, scan
from torch_impl.kernels import guard, published

CPU = torch.device("cpu")
FLOATS = (torch.float32,) * 7
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def forgetful():
    """Clear cached results of kernel checks before and after each test."""
    caches = (
        scan.gpu_kernel,
        scan._checked_kernel,
        published.checked_convolution,
        published._agreeing_convolution,
        published.installed,
    )
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def install(monkeypatch):
    """Return install("a.b", name=value), which fakes an installed module and its parents."""

    def install(path, **members):
        parts = path.split(".")
        for i in range(1, len(parts) + 1):
            module = ModuleType(".".join(parts[:i]))
            module.__spec__, module.__path__ = ModuleSpec(module.__name__, None), []
            monkeypatch.setitem(sys.modules, module.__name__, module)
        vars(module).update(members)

    return install


def samples():
    x = guard.random(0, (3, 5))
    return [{"x": x, "w": x + 1, "absent": None}]


def definition(x, w, absent=None):
    assert absent is None
    return x * w


class Wrong(torch.autograd.Function):
    """x w with a wrong gradient of w."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        return dy * w, dy * x * 1.01


def check(kernel, definition=definition):
    return guard.checked("The kernel", lambda: kernel, definition, samples)


def test_a_kernel_that_agrees_is_used():
    assert check(definition) is definition

    def slightly_off(x, w, absent):  # noqa: ARG001
        return x * w * (1 + 2e-5)

    assert check(slightly_off) is slightly_off


def raising(error):
    def kernel(**_):
        raise error

    return kernel


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (lambda x, w, absent: x * w * 1.001, r"y is off by \S+ of its largest value in a test on cpu"),  # noqa: ARG005
        (lambda x, w, absent: Wrong.apply(x, w), "the gradient of w is off by 1"),  # noqa: ARG005
        (lambda x, w, absent: x * w + float("nan"), "y is off by nan"),  # noqa: ARG005
        (raising(RuntimeError("no kernel image is available\nfor this device.")), "it fails on .* image is available"),
        (raising(AttributeError()), r"it fails on this device \(AttributeError\)"),
    ],
)
def test_a_kernel_that_disagrees_causes_one_warning(kernel, message):
    with pytest.warns(RuntimeWarning, match=f"^The kernel is not used: {message}.*[.]$") as caught:
        assert check(kernel) is None
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)


def test_a_kernel_that_cannot_be_imported_causes_one_warning():
    def load():
        import no_such_package  # noqa: F401

    with pytest.warns(RuntimeWarning, match=r"The kernel is not used: it cannot be imported \(No module named 'no_"):
        assert guard.checked("The kernel", load, definition, samples) is None


def test_the_check_ignores_the_callers_context():
    seen = []

    def kernel(x, w, absent):
        seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")))
        return definition(x, w, absent)

    with torch.inference_mode(), torch.autocast("cpu"):
        assert check(kernel) is kernel
    assert seen == [(True, False, False)]

    def first_use(x):
        check(kernel)
        return (x.exp() * x).sum()

    x = torch.ones(3, requires_grad=True)
    before = torch.get_rng_state(), random.getstate()
    checkpoint(first_use, x, use_reentrant=False).backward()
    assert torch.equal(x.grad, torch.full((3,), 2 * torch.e))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def mamba_ssm(u, delta, A, B, C, D=None, z=None):
    """Assert mamba-ssm's requirements, then compute by our definition instead of its kernel."""
    assert len({x.dtype for x in (u, delta, B, C, z) if x is not None}) == 1
    assert A.dtype == D.dtype == torch.float32
    assert all(x.stride(-1) == 1 for x in (u, delta, B, C, z) if x is not None)
    sequences = [x if x is None else x.mT.float() for x in (u, delta, B, C, z)]
    u_t, delta_t, B_t, C_t, z_t = sequences
    return scan.selective_scan_chunked(u_t, delta_t, A, B_t, C_t, D, z_t).mT.to(u.dtype).contiguous()


SCAN = "mamba_ssm.ops.selective_scan_interface"


@pytest.mark.parametrize("z", [True, False])
@pytest.mark.parametrize("types", [FLOATS, (torch.bfloat16, torch.float32) * 3 + (torch.float16,)], ids=["one", "many"])
def test_mamba_ssm_gets_inputs_it_accepts(install, z, types):
    install(SCAN, selective_scan_fn=mamba_ssm)
    inputs = [x if x is None else x.to(t) for x, t in zip(make(2, 9, 10, 3, z=z), types, strict=True)]
    found = published.load_selective_scan()(*inputs)
    wanted = scan.selective_scan(*inputs)
    assert found.dtype == inputs[0].dtype
    torch.testing.assert_close(found, wanted, rtol=1e-2 if types != FLOATS else 1e-5, atol=1e-5)


def kernel_for(published_too=True, types=FLOATS, shape=(2, 9, 10, 3)):
    return scan.gpu_kernel(CPU, types, shape, published_too)


def test_the_first_kernel_that_agrees_is_chosen(install, monkeypatch):
    monkeypatch.setattr(scan, "SAMPLES", ((2, 9),))
    monkeypatch.setattr(scan, "_load_triton", lambda: scan.selective_scan_chunked)
    install(SCAN, selective_scan_fn=mamba_ssm)
    found = kernel_for()
    assert found.__module__ == published.__name__
    assert kernel_for() is found  # no second check
    assert kernel_for(published_too=False) is scan.selective_scan_chunked


@pytest.mark.parametrize(
    ("scan_fn", "message"),
    [(lambda *x: 1.01 * mamba_ssm(*x), "y is off by"), (None, "it cannot be imported .*'selective_scan_fn'")],
)
def test_the_next_kernel_is_chosen_if_one_is_wrong_or_missing(install, monkeypatch, scan_fn, message):
    monkeypatch.setattr(scan, "SAMPLES", ((2, 9),))
    monkeypatch.setattr(scan, "_load_triton", lambda: scan.selective_scan_chunked)
    install(SCAN, **({} if scan_fn is None else {"selective_scan_fn": scan_fn}))
    with pytest.warns(RuntimeWarning, match=f"mamba-ssm's selective scan on cpu is not used: {message}") as caught:
        assert kernel_for() is scan.selective_scan_chunked
    assert len(caught) == 1


def wrong_above(frames, function=mamba_ssm):
    """A kernel that is right up to this length and wrong in its last channel above."""

    def kernel(u, *rest, **named):
        y = function(u, *rest, **named)
        sign = torch.ones(y.shape[-1]).index_fill(0, torch.tensor(y.shape[-1] - 1), -1.0)
        return y if u.shape[1] <= frames else y * sign

    return kernel


def test_a_kernel_that_is_wrong_only_at_the_shape_of_use_is_not_used_there(monkeypatch):
    calls = []

    def kernel(**named):
        calls.append(named["u"].shape)
        return wrong_above(60, scan.selective_scan_chunked)(**named)

    monkeypatch.setattr(scan, "SAMPLES", ((2, 9),))
    monkeypatch.setattr(scan, "_load_triton", lambda: kernel)
    assert kernel_for(False, shape=(40, 50, 10, 3)) is kernel
    with pytest.warns(RuntimeWarning, match=r"Triton .* is not used in this shape: y is off .* u \(40, 70, 10\)"):
        assert kernel_for(False, shape=(40, 70, 10, 3)) is None
    assert kernel_for(False, shape=(40, 50, 10, 3)) is kernel
    assert kernel_for(False, shape=(40, 70, 10, 3)) is None
    assert calls == [(2, 9, 10), (40, 50, 10), (40, 70, 10)]  # the whole call, once each


def test_the_next_kernel_is_chosen_at_a_shape_where_the_first_is_wrong(install, monkeypatch):
    def first(u, *rest, **named):  # sequences lie last
        return wrong_above(60, lambda u, *x: mamba_ssm(u.mT, *x).mT)(u.mT, *rest, **named).mT

    monkeypatch.setattr(scan, "SAMPLES", ((2, 9),))
    monkeypatch.setattr(scan, "_load_triton", lambda: scan.selective_scan_chunked)
    install(SCAN, selective_scan_fn=first)
    assert kernel_for(shape=(2, 50, 10, 3)).__module__ == published.__name__
    with pytest.warns(RuntimeWarning, match=r"^mamba-ssm's selective scan on cpu is not used in this shape"):
        assert kernel_for(shape=(2, 70, 10, 3)) is scan.selective_scan_chunked


@pytest.mark.parametrize("row", [0, 39])
def test_a_gradient_that_is_wrong_in_the_first_or_last_row_is_noticed(monkeypatch, row):
    class Spoilt(torch.autograd.Function):
        @staticmethod
        def forward(_, x):
            return x.clone()

        @staticmethod
        def backward(_, dx):
            spoilt = dx.clone()
            if len(dx) == 40:
                spoilt[row] *= 1.01
            return spoilt

    def kernel(B, **named):
        return scan.selective_scan_chunked(B=Spoilt.apply(B), **named)

    monkeypatch.setattr(scan, "SAMPLES", ((2, 9),))
    monkeypatch.setattr(scan, "_load_triton", lambda: kernel)
    with pytest.warns(RuntimeWarning, match="the gradient of B is off by"):
        assert kernel_for(False, shape=(40, 50, 10, 3)) is None


def test_a_shape_too_large_for_the_check_is_tried_with_fewer_rows(monkeypatch):
    tried = []

    def kernel(**named):
        tried.append(len(named["u"]))
        if len(named["u"]) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return scan.selective_scan_chunked(**named)

    monkeypatch.setattr(scan, "SAMPLES", ((2, 9),))
    monkeypatch.setattr(scan, "_load_triton", lambda: kernel)
    assert kernel_for(False, shape=(20, 9, 10, 3)) is kernel
    assert tried == [2, 20, 10, 5]


def test_the_samples_cover_all_dtypes_and_several_sizes(monkeypatch):
    seen = []

    def kernel(**inputs):
        seen.append({name: None if x is None else (x.dtype, *x.shape) for name, x in inputs.items()})
        return scan.selective_scan(**inputs)

    monkeypatch.setattr(scan, "_load_triton", lambda: kernel)
    types = (torch.bfloat16, torch.float32) * 3 + (None,)
    assert scan.gpu_kernel(CPU, types, (5, 40, 512, 2), False) is kernel
    assert [x["u"][1:] for x in seen] == [(2, 100, 72), (1, 2100, 72), (5, 40, 512)]
    assert [None if x is None else x[0] for x in seen[0].values()] == list(types)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_scan_on_a_gpu_uses_the_chosen_kernel(monkeypatch, dtype):
    asked = []

    def gpu_kernel(*arguments):
        asked.append(arguments)
        return lambda u, *_: u + 1

    monkeypatch.setattr(scan, "gpu_kernel", gpu_kernel)
    monkeypatch.setattr(scan, "selective_scan_chunked", lambda u, *_: u + 1)
    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = [torch.empty(x.shape, dtype=dtype, device="cuda") for x in make(2, 4, 3, 2)]
        y = scan.selective_scan(*inputs)
    assert (y.dtype, y.shape, y.device.type) == (dtype, (2, 4, 3), "cuda")
    device = inputs[0].device
    wanted = (device, (dtype,) * 7, (2, 4, 3, 2), published.usable("mamba_ssm"))
    assert asked == ([] if dtype == torch.float64 else [wanted])


def test_published_kernels_are_skipped_if_missing_or_not_deterministic(install):
    assert not published.usable("no_such_package")
    install("mamba_ssm")
    assert published.usable("mamba_ssm")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert not published.usable("mamba_ssm")
    finally:
        torch.use_deterministic_algorithms(False)


def causal_conv1d(x, weight, bias, activation):
    """Assert causal-conv1d's requirements, then compute by PyTorch's convolution instead of its kernel."""
    d, width = weight.shape
    assert width in (2, 3, 4)
    assert activation == "silu"
    assert x.shape[1] == d
    if x.stride(2) != 1:
        assert x.stride(1) == 1
        assert d % 8 == x.stride(0) % 8 == x.stride(2) % 8 == x.storage_offset() % 8 == 0
    return silu(conv1d(x.to(weight), weight[:, None], bias, padding=width - 1, groups=d)[..., : x.shape[2]]).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", [slice(0, 16), slice(16, 32), slice(3, 19), slice(0, 10), slice(0, 32, 2)], ids=str)
def test_causal_conv1d_gets_inputs_it_accepts(install, part, dtype):
    install("causal_conv1d", causal_conv1d_fn=causal_conv1d)
    x = guard.random(0, (2, 9, 32)).to(dtype)[..., part]
    weight, bias = guard.random(1, (x.shape[2], 1, 4)), guard.random(2, (x.shape[2],))
    kernel = published.causal_convolution_for(x, weight, 3, ops._depthwise_silu)
    y = kernel(x, weight, bias)
    assert y.dtype == dtype
    torch.testing.assert_close(y, ops.depthwise_silu(x, weight, bias, 3).to(dtype), rtol=1e-2, atol=1e-5)
    assert published.causal_convolution_for(x, weight, 3, ops._depthwise_silu) is kernel


def test_a_convolution_on_a_gpu_uses_the_chosen_kernel(monkeypatch):
    called = []

    def kernel(x, weight, bias):
        called.append((x, weight, bias))
        return x + 1

    monkeypatch.setattr(published, "causal_convolution_for", lambda *_: kernel)
    with FakeTensorMode():
        inputs = [torch.empty(shape, device="cuda", dtype=torch.bfloat16) for shape in ((2, 9, 8), (8, 1, 4), (8,))]
        ops.depthwise_silu(*inputs, 3)
    assert called == [tuple(inputs)]  # not converted to float32


@pytest.mark.parametrize(
    ("shape", "width", "left", "dtype"),
    [
        ((2, 9, 8), 4, 2, torch.float32),
        ((2, 9, 8), 5, 4, torch.float32),
        ((2, 9, 8), 4, 3, torch.float64),
        ((2, 0, 8), 4, 3, torch.float32),
    ],
)
def test_causal_conv1d_is_used_only_for_causal_convolutions_of_its_widths(install, shape, width, left, dtype):
    install("causal_conv1d", causal_conv1d_fn=causal_conv1d)
    x, weight = torch.zeros(shape, dtype=dtype), torch.zeros(8, 1, width)
    assert published.causal_convolution_for(x, weight, left, ops._depthwise_silu) is None


def test_a_convolution_that_is_wrong_only_at_the_shape_of_use_is_not_used_there(install):
    def wrong_when_long(x, *rest, activation):
        return causal_conv1d(x, *rest, activation=activation) * (1 if x.shape[2] <= 400 else 1.01)

    install("causal_conv1d", causal_conv1d_fn=wrong_when_long)
    weight = torch.zeros(8, 1, 4)
    assert published.causal_convolution_for(torch.zeros(5, 400, 8), weight, 3, ops._depthwise_silu) is not None
    with pytest.warns(RuntimeWarning, match=r"not used in this shape: y is off .* with x \(5, 401, 8\)"):
        assert published.causal_convolution_for(torch.zeros(5, 401, 8), weight, 3, ops._depthwise_silu) is None


def test_a_wrong_convolution_is_not_used(install):
    install("causal_conv1d", causal_conv1d_fn=lambda *x, activation: causal_conv1d(*x, activation).flip(0))
    x, weight = torch.zeros(2, 9, 8), torch.zeros(8, 1, 4)
    with pytest.warns(RuntimeWarning, match="causal-conv1d's convolution on cpu is not used: y is off by"):
        assert published.causal_convolution_for(x, weight, 3, ops._depthwise_silu) is None
