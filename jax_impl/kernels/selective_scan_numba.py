"""The selective scan on a CPU, as a differentiable JAX function."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jax_impl.kernels.foreign import operation
from twinsep.kernels import selective_scan as loops
from twinsep.kernels.threads import cores

_forward = operation("twinsep_selective_scan", partial(loops.forward, threads=cores()))
_backward = operation("twinsep_selective_scan_backward", partial(loops.backward, threads=cores()))


@jax.custom_vjp
def selective_scan(u: Array, delta: Array, A: Array, B: Array, C: Array, D: Array, z: Array | None) -> Array:
    """Compute :func:`jax_impl.scan.selective_scan` of inputs that are all float32 or all float64."""
    return _results((0,), u, delta, A, B, C, D, z)[0]


def _results(states: tuple[int, ...], u: Array, delta: Array, A: Array, B: Array, C: Array, D: Array, z: Array | None):
    """y, and the saved states with the shape ``states``."""
    return _forward((u.shape, states), u, delta, A, B, C, D, _gate(u, z))


def _gate(u: Array, z: Array | None) -> Array:
    return jnp.empty((0, 0, 0), u.dtype) if z is None else z


def _saving(u, delta, A, B, C, D, z):
    inputs = (u, delta, A, B, C, D, z)
    y, states = _results(loops.shape_of_states(u.shape, A.shape[1], u.dtype.itemsize), *inputs)
    return y, (*inputs, states)


def _gradients(saved, dy):
    *inputs, z, states = saved
    arrays = (*inputs, _gate(inputs[0], z))
    *gradients, dz = _backward(tuple(x.shape for x in arrays), dy, *arrays, states)
    return *gradients, None if z is None else dz


selective_scan.defvjp(_saving, _gradients)
