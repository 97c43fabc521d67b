"""Checks of GPU kernels against our own tensor operations.

A kernel built for another GPU, or by another compiler, may run and return wrong numbers, for all inputs or for those of
some shapes. A kernel is therefore used only after its values and gradients, on the device and in the dtypes of use,
agree with tensor operations in float64 on the CPU: once as a whole on small samples (:func:`checked`), and once for
every shape in which it is used (:func:`checked_at`), there in some rows and channels.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from twinsep.errors import is_out_of_memory
from twinsep.kernels import agreement
from twinsep.kernels.agreement import disagreement, sentence

Kernel = Callable[..., Tensor]
Inputs = Mapping[str, Tensor | None]  # by argument name
#: Letters of the axes of each argument and of "y": b (independent sequences), l, e (channels), …
Axes = Mapping[str, str]

#: Largest error / largest value.
TOLERANCE = {torch.float32: agreement.TOLERANCE, torch.float16: 4e-3, torch.bfloat16: 3e-2}
#: Rows and channels that are compared in a large call, from the first to the last.
COMPARED = {"b": 3, "e": 8}


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


def checked_at(
    name: str, kernel: Kernel, definition: Kernel, sample: Callable[[int], Inputs], batch: int, axes: Axes
) -> Kernel | None:
    """Return ``kernel`` if it agrees with ``definition`` on inputs of the shape of use; else None, with one warning.

    ``sample`` makes such inputs from the size of the axis b, which is ``batch`` or, where memory runs out, less. The
    kernel computes all of them. The definition computes only some rows b and channels e, which is exact, since a
    cotangent that is zero elsewhere makes all gradients depend on these alone.
    """
    with ThreadPoolExecutor(1) as thread:
        reason = thread.submit(_compare_part, kernel, definition, sample, batch, axes).result()
    if reason is not None:
        warnings.warn(f"{name} is not used in this shape: {reason}.", RuntimeWarning, stacklevel=2)
        return None
    return kernel


def _compare_part(kernel, definition, sample, batch, axes) -> str | None:
    while True:
        try:
            inputs = sample(batch)
            return _disagreement(kernel, definition, inputs, _part(inputs, axes))
        except Exception as error:
            if batch > 1 and is_out_of_memory(error):
                batch //= 2
                continue
            return f"it fails on this device ({sentence(error)})"


def _part(inputs: Inputs, axes: Axes) -> Callable[[str, Tensor], Tensor]:
    """Return the function of a name and its tensor that keeps the compared rows and channels."""
    given = [(axes[name], x.shape) for name, x in inputs.items() if x is not None]
    sizes = {letter: n for letters, shape in given for letter, n in zip(letters, shape, strict=True)}
    kept = {letter: torch.linspace(0, sizes[letter] - 1, count).long().unique() for letter, count in COMPARED.items()}

    def part(name: str, x: Tensor) -> Tensor:
        for axis, letter in enumerate(axes[name]):
            if letter in kept:
                x = x.index_select(axis, kept[letter].to(x.device))
        return x

    return part


def _load_and_compare(load, definition, samples) -> tuple[Kernel | None, str | None]:
    try:
        kernel = load()
    except Exception as error:  # a package built for another PyTorch can raise anything
        return None, f"it cannot be imported ({sentence(error)})"
    try:
        reasons = (_disagreement(kernel, definition, sample) for sample in samples())
        return kernel, next((reason for reason in reasons if reason), None)
    except Exception as error:  # so can a kernel that the GPU cannot run
        return None, f"it fails on this device ({sentence(error)})"


def _whole(_name: str, x: Tensor) -> Tensor:
    return x


def _disagreement(
    kernel: Kernel, definition: Kernel, inputs: Inputs, part: Callable[[str, Tensor], Tensor] = _whole
) -> str | None:
    # First to the CPU: Apple GPUs have no float64.
    exact_inputs = {name: x if x is None else part(name, x).cpu().double() for name, x in inputs.items()}
    exact = _values_and_gradients(definition, exact_inputs, _whole)
    found = _values_and_gradients(kernel, inputs, part)
    tolerance = max(TOLERANCE[x.dtype] for x in inputs.values() if x is not None)
    shapes = ", ".join(f"{key} {tuple(x.shape)}" for key, x in inputs.items() if x is not None)
    where = f"a test on {found['y'].device}" + ("" if part is _whole else f" with {shapes}")
    return disagreement(_arrays(found), _arrays(exact), where, tolerance)


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: x.cpu().double().numpy() for name, x in tensors.items()}


def _values_and_gradients(function: Kernel, inputs: Inputs, part: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
    """``part`` of y, and of the gradients of all inputs for a fixed random cotangent of that part of y."""
    leaves = {name: x if x is None else x.detach().clone().requires_grad_() for name, x in inputs.items()}
    y = part("y", function(**leaves))
    wanted = {name: x for name, x in leaves.items() if x is not None}
    gradients = torch.autograd.grad(y, list(wanted.values()), random(1, y.shape).to(y))
    return {"y": y.detach()} | {name: part(name, x) for name, x in zip(wanted, gradients, strict=True)}


def random(seed: int, shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Draw standard normal numbers from ``seed``, without touching PyTorch's global generators."""
    return torch.randn(*shape, generator=torch.Generator(device).manual_seed(seed), device=device)
