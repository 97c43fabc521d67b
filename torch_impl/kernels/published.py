"""GPU kernels published by the authors of Mamba: the packages mamba-ssm and causal-conv1d, both optional.

Both sum gradients by atomic operations (causal-conv1d's latest releases can avoid them), so they are not used when
PyTorch is asked for deterministic algorithms.
"""

from functools import cache, reduce
from importlib.util import find_spec

import torch
from torch import Tensor

from torch_impl.kernels import guard

WIDTHS = range(2, 5)  # kernel sizes supported by causal-conv1d
_AXES = {"x": "ble", "weight": "e1k", "bias": "e", "y": "ble"}
ALIGNED = 8  # numbers that causal-conv1d reads at once from dense channels


def usable(package: str) -> bool:
    """Return True if the package is installed and PyTorch need not be deterministic; checks no kernel."""
    return not torch.are_deterministic_algorithms_enabled() and installed(package)


@cache
def installed(package: str) -> bool:
    """Return True if the package is installed; cached, as a lookup takes longer than a small kernel."""
    return find_spec(package) is not None


def load_selective_scan() -> guard.Kernel:
    """Import mamba-ssm's scan, with the signature of ours; raises ImportError if a build has no kernel for Mamba-1."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def selective_scan(u, delta, A, B, C, D, z=None) -> Tensor:
        """Return y (b, l, e) in the dtype of ``u``."""
        # mamba-ssm takes sequences in one dtype, with the length last and dense, and float32 parameters.
        sequences = [x for x in (u, delta, B, C, z) if x is not None]
        dtype = reduce(torch.promote_types, (x.dtype for x in sequences))
        u_t, delta_t, B_t, C_t, *gate = (x.to(dtype).mT.contiguous() for x in sequences)
        return selective_scan_fn(u_t, delta_t, A.float(), B_t, C_t, D.float(), *gate).mT.to(u.dtype)

    return selective_scan


def load_causal_convolution() -> guard.Kernel:
    """Import causal-conv1d's convolution with SiLU: x (b, l, d), weight (d, 1, k), bias (d,) -> (b, l, d)."""
    from causal_conv1d import causal_conv1d_fn

    def causal_convolution(x, weight, bias) -> Tensor:
        """Return the convolution of ``x`` after SiLU; copies ``x`` unless its strides are multiples of ALIGNED."""
        steps = (x.shape[2], x.stride(0), x.stride(1), x.storage_offset())
        in_place = x.stride(2) == 1 and not any(step % ALIGNED for step in steps)
        return causal_conv1d_fn(x.mT if in_place else x.mT.contiguous(), weight[:, 0], bias, activation="silu").mT

    return causal_convolution


def causal_convolution_for(x: Tensor, weight: Tensor, left: int, definition: guard.Kernel) -> guard.Kernel | None:
    """Return causal-conv1d's kernel if it is installed, supports this convolution and agrees with ``definition``.

    ``definition`` is a function of x, weight, bias and left.
    """
    width, types = weight.shape[2], {x.dtype, weight.dtype}
    suits = left == width - 1 and width in WIDTHS and types <= guard.TOLERANCE.keys() and x.numel() > 0
    if not (suits and usable("causal_conv1d")):
        return None
    return checked_convolution(x.device, x.dtype, weight.dtype, tuple(x.shape), width, definition)


@cache
def checked_convolution(
    device: torch.device,
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    shape: tuple[int, ...],
    width: int,
    definition: guard.Kernel,
) -> guard.Kernel | None:
    """Return causal-conv1d's kernel if it agrees with ``definition`` in these dtypes and for x of this shape (b, l, d).

    Checked once per process on a sample, and once for each shape.
    """
    batch, l, d = shape

    def causal(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return definition(x, weight, bias, width - 1)

    def sample(b: int) -> guard.Inputs:
        return _sample(b, l, d, width, device, dtype, weight_dtype)

    kernel = _agreeing_convolution(device, dtype, weight_dtype, width, definition)
    if kernel is None:
        return None
    return guard.checked_at(f"causal-conv1d's convolution on {device}", kernel, causal, sample, batch, _AXES)


@cache
def _agreeing_convolution(
    device: torch.device, dtype: torch.dtype, weight_dtype: torch.dtype, width: int, definition: guard.Kernel
) -> guard.Kernel | None:
    def samples() -> list[guard.Inputs]:
        return [_sample(2, 300, 72, width, device, dtype, weight_dtype)]

    def causal(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return definition(x, weight, bias, width - 1)

    return guard.checked(f"causal-conv1d's convolution on {device}", load_causal_convolution, causal, samples)


def _sample(
    b: int, l: int, d: int, width: int, device: torch.device, dtype: torch.dtype, weight_dtype: torch.dtype
) -> guard.Inputs:
    shapes = {"x": (b, l, d), "weight": (d, 1, width), "bias": (d,)}
    named = {name: guard.random(seed, shape, device) for seed, (name, shape) in enumerate(shapes.items())}
    return {name: x.to(dtype if name == "x" else weight_dtype) for name, x in named.items()}
