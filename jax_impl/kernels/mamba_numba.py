"""The layer Mamba on a CPU, as a differentiable JAX function."""

import jax
import numpy as np
from jax import Array

from jax_impl.kernels.foreign import operation
from twinsep.kernels import mamba as loops
from twinsep.kernels.mamba import Saved, Weights
from twinsep.kernels.threads import cores

_WEIGHTS, _SAVED = len(Weights._fields), len(Saved._fields)


def _run_forward(x: np.ndarray, *arrays: np.ndarray) -> None:
    weights, (y, *saved) = arrays[:_WEIGHTS], arrays[_WEIGHTS:]
    loops.forward(x, Weights(*weights), y, Saved(*saved), threads=cores())


def _run_backward(dy: np.ndarray, x: np.ndarray, *arrays: np.ndarray) -> None:
    weights, saved, (dx, *gradients) = arrays[:_WEIGHTS], arrays[_WEIGHTS : _WEIGHTS + _SAVED], arrays[-1 - _WEIGHTS :]
    loops.backward(dy, x, Weights(*weights), Saved(*saved), dx, Weights(*gradients), threads=cores())


_forward = operation("twinsep_mamba", _run_forward)
_backward = operation("twinsep_mamba_backward", _run_backward)


@jax.custom_vjp
def mamba(x: Array, *weights: Array) -> Array:
    """The layer: x (b, l, d) -> (b, l, d); ``weights`` are those of :class:`Weights`, all float32 or all float64."""
    return _results(x, weights, keep=False)[0]


def _results(x: Array, weights: tuple[Array, ...], *, keep: bool) -> tuple[Array, ...]:
    """y, and the arrays that the backward pass needs."""
    shapes = loops.shapes_of_saved(x.shape, Weights(*weights), x.dtype.itemsize, keep=keep)
    return _forward((x.shape, *shapes), x, *weights)


def _saving(x, *weights):
    y, *saved = _results(x, weights, keep=True)
    return y, (x, weights, saved)


def _gradients(residuals, dy):
    x, weights, saved = residuals
    return tuple(_backward((x.shape, *(w.shape for w in weights)), dy, x, *weights, *saved))


mamba.defvjp(_saving, _gradients)
