"""Attention with narrow heads on a CPU, as a differentiable JAX function."""

from functools import partial

import jax
from jax import Array

from jax_impl.kernels.foreign import operation
from twinsep.kernels import attention as loops
from twinsep.kernels.threads import cores

_forward = operation("twinsep_attention", partial(loops.forward, threads=cores()))
_backward = operation("twinsep_attention_backward", partial(loops.backward, threads=cores()))


@jax.custom_vjp
def attention(q: Array, k: Array, v: Array) -> Array:
    """Attend from q (b, queries, heads, e) to k, v (b, keys, heads, e), all float32 or all float64; shaped as q."""
    return _saving(q, k, v)[0]


def _saving(q, k, v):
    b, queries, heads, _ = q.shape
    o, logsum = _forward((q.shape, (b, heads, queries)), q, k, v)
    return o, (o, q, k, v, logsum)


def _gradients(saved, do):
    _, q, k, v, _ = saved
    return tuple(_backward((q.shape, k.shape, v.shape), do, *saved))


attention.defvjp(_saving, _gradients)
