"""A one-time check of GPU kernels against our own tensor operations.

A kernel built for another GPU, or by another compiler, may run and return wrong numbers. A kernel is therefore used
only after its values and gradients, on the device and in the dtypes of use, agree with tensor operations in float64 on
the CPU.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

Kernel = Callable[..., Tensor]
Inputs = Mapping[str, Tensor | None]  # by argument name

TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # largest error / largest value
FLOOR = 1e-3  # lower bound of the largest value in that ratio


def checked(
    name: str, load: Callable[[], Kernel], definition: Kernel, samples: Callable[[], Sequence[Inputs]]
) -> Kernel | None:
    """Return the kernel that ``load`` imports if it agrees with ``definition``; else None, with one warning.

    ``samples`` makes the inputs of the comparison, on the device and in the dtypes of use.
    """
    # A thread of its own is free of the caller's inference mode, autocast and checkpoint hooks.
    with ThreadPoolExecutor(1) as thread:
        kernel, reason = thread.submit(_load_and_compare, load, definition, samples).result()
    if reason is not None:
        warnings.warn(f"{name} is not used: {reason}.", RuntimeWarning, stacklevel=2)
        return None
    return kernel


def _load_and_compare(load, definition, samples) -> tuple[Kernel | None, str | None]:
    try:
        kernel = load()
    except Exception as error:  # a package built for another PyTorch can raise anything
        return None, f"it cannot be imported ({_sentence(error)})"
    try:
        reasons = (_disagreement(kernel, definition, sample) for sample in samples())
        return kernel, next((reason for reason in reasons if reason), None)
    except Exception as error:  # so can a kernel that the GPU cannot run
        return None, f"it fails on this device ({_sentence(error)})"


def _disagreement(kernel: Kernel, definition: Kernel, inputs: Inputs) -> str | None:
    exact_inputs = {name: x if x is None else x.double().cpu() for name, x in inputs.items()}
    found, exact = _values_and_gradients(kernel, inputs), _values_and_gradients(definition, exact_inputs)
    tolerance = max(TOLERANCE[x.dtype] for x in inputs.values() if x is not None)
    for name, wanted in exact.items():
        error = (found[name].double().cpu() - wanted).abs().max().item() / max(wanted.abs().max().item(), FLOOR)
        if not error <= tolerance:  # also true for NaN
            return f"{name} is off by {error:.1e} of its largest value in a test on {found[name].device}"
    return None


def _values_and_gradients(function: Kernel, inputs: Inputs) -> dict[str, Tensor]:
    """y and the gradients of all inputs for a fixed random cotangent."""
    leaves = {name: x if x is None else x.detach().clone().requires_grad_() for name, x in inputs.items()}
    y = function(**leaves)
    wanted = {name: x for name, x in leaves.items() if x is not None}
    gradients = torch.autograd.grad(y, list(wanted.values()), random(1, y.shape).to(y))
    return {"y": y.detach(), **{f"the gradient of {name}": x for name, x in zip(wanted, gradients, strict=True)}}


def random(seed: int, shape: Sequence[int]) -> Tensor:
    """Draw standard normal numbers from ``seed``, without touching PyTorch's global generators."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _sentence(error: Exception) -> str:
    """First line of an error message, without the full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__
