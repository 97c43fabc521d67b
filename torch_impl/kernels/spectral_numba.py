"""The losses ``magnitude`` and ``band`` of two spectra on a CPU, as PyTorch operators.

    linear = mean |M̂ − M|,   logarithmic = Σ_f w_f · mean_f |log(M̂ + ε) − log(M + ε)|,   M = sqrt(|X|² + 1e-36)

As tensor operations (:mod:`twinsep.losses`) they and their gradient take some sixty passes over memory, here about ten.
XLA fuses those of the JAX twin by itself. Results do not depend on the number of threads.
"""

from math import sqrt

import numpy as np
import torch
from torch import Tensor

from torch_impl.kernels.operator import operator
from twinsep.kernels.simd import compiled, inlined
from twinsep.kernels.threads import in_parallel

TINY = 1e-36  # as in twinsep.losses: the gradient of an exact zero is 0
SERIAL = 1 << 16  # bins (0.1 ms of work) below which a second thread costs more than it saves


@inlined
def _modulus(x, i):
    """|X| of bin i of x, real and imaginary parts in turn."""
    return sqrt(x[2 * i] * x[2 * i] + x[2 * i + 1] * x[2 * i + 1] + TINY)


@inlined
def _sign(x, y):
    """sign(x − y), 0 if they are equal."""
    return (1.0 if x > y else 0.0) - (1.0 if x < y else 0.0)


@compiled
def _compare(estimate, target, magnitude, difference, ratio, floor, bins, start, stop):
    """M, M̂ − M and (M̂ + ε)/(M + ε) of the bins of rows start … stop − 1."""
    for i in range(start * bins, stop * bins):
        e, m = _modulus(estimate, i), _modulus(target, i)
        magnitude[i] = m
        difference[i] = e - m
        ratio[i] = (e + floor) / (m + floor)


@compiled
def _slopes(estimate, magnitude, gradient, linear, logarithmic, floor, bins, start, stop):
    """The gradient of linear · Σ |M̂ − M| + Σ_f logarithmic_f · |log(M̂ + ε) − log(M + ε)|."""
    for row in range(start, stop):
        for f in range(bins):
            i = row * bins + f
            e, m = _modulus(estimate, i), magnitude[i]
            slope = linear * _sign(e, m) + logarithmic[f] * _sign(e + floor, m + floor) / (e + floor)
            gradient[2 * i] = slope / e * estimate[2 * i]
            gradient[2 * i + 1] = slope / e * estimate[2 * i + 1]


def _threads(x: Tensor) -> int:
    return 1 if x.numel() < SERIAL else torch.get_num_threads()


def _flat(x: Tensor) -> np.ndarray:
    """The reals of x; of a complex x the real and the imaginary parts in turn."""
    x = x.detach().contiguous()
    return (torch.view_as_real(x) if x.is_complex() else x).numpy().reshape(-1)


@operator("spectral_distances")
def spectral_distances(estimate: Tensor, target: Tensor, weights: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Return the two distances (2,) of complex128 spectra (rows, F) for weights w (F,), and M (rows, F)."""
    magnitude = weights.new_empty(target.shape)
    difference, ratio = np.empty(target.shape), np.empty(target.shape)
    arrays = (_flat(estimate), _flat(target), magnitude.numpy().reshape(-1), difference.reshape(-1), ratio.reshape(-1))
    in_parallel(_compare, len(target), _threads(magnitude), *arrays, floor, len(weights))
    linear = np.abs(difference, out=difference).mean()
    logarithms = np.log(ratio, out=ratio)  # NumPy's is vectorised, Numba's is not
    logarithmic = np.abs(logarithms, out=logarithms).mean(0) @ _flat(weights)
    return weights.new_tensor([linear, logarithmic]), magnitude


@spectral_distances.register_fake()
def _(estimate, target, weights, floor):  # noqa: ARG001
    return weights.new_empty(2), weights.new_empty(target.shape)


@operator("spectral_distances_backward")
def spectral_distances_backward(
    slopes: Tensor, estimate: Tensor, magnitude: Tensor, weights: Tensor, floor: float
) -> Tensor:
    """Return the gradient of the estimate, for the gradients of the two distances."""
    gradient = torch.empty_like(estimate, memory_format=torch.contiguous_format)
    linear, logarithmic = slopes.tolist()
    factors = linear / magnitude.numel(), logarithmic / len(magnitude) * _flat(weights)
    arrays = (_flat(estimate), _flat(magnitude), _flat(gradient))
    in_parallel(_slopes, len(magnitude), _threads(magnitude), *arrays, *factors, floor, len(weights))
    return gradient


@spectral_distances_backward.register_fake()
def _(slopes, estimate, magnitude, weights, floor):  # noqa: ARG001
    return torch.empty_like(estimate, memory_format=torch.contiguous_format)


def _save(ctx, inputs, output) -> None:
    estimate, _, weights, ctx.floor = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(estimate, output[1], weights)


def _gradients(ctx, slopes, _):
    return spectral_distances_backward(slopes, *ctx.saved_tensors, ctx.floor), None, None, None


spectral_distances.register_autograd(_gradients, setup_context=_save)
