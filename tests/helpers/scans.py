"""Random inputs of the selective scan, with values and gradients by its definition."""

import torch
from torch.nn.functional import softplus

from torch_impl.scan import selective_scan_sequential

NAMES = ("y", "u", "delta", "A", "B", "C", "D", "z")


def make(b=2, l=40, e=20, n=8, z=True, dtype=torch.float32, seed=0):
    """Random inputs with the value range of an initialised model, which require gradients."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    A = -torch.arange(1, n + 1, dtype=torch.float64) * torch.exp(0.3 * normal(e, 1))
    gate = normal(b, l, e) if z else None
    inputs = (normal(b, l, e), softplus(normal(b, l, e) - 2), A, normal(b, l, n), normal(b, l, n), normal(e), gate)
    # Round to float32 first, so that the float32 and the float64 test share one expected result.
    return [x if x is None else x.float().to(dtype).requires_grad_() for x in inputs]


def values_and_gradients(function, inputs):
    """y and gradients by name, for a fixed random cotangent."""
    y = function(*inputs)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(y.shape, generator=generator, dtype=torch.float64).float().to(y.dtype)
    present = [x for x in inputs if x is not None]
    gradients = torch.autograd.grad(y, present, cotangent, materialize_grads=True)
    return dict(zip(NAMES, (y.detach(), *gradients), strict=False))


def definition(inputs):
    """Values and gradients by the definition in float64."""
    exact = [x if x is None else x.detach().double().requires_grad_() for x in inputs]
    return values_and_gradients(selective_scan_sequential, exact)
