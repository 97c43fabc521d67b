"""The layers whose spelling differs between frameworks; everything else in the twins reads alike.

No framework default is trusted: widths, eps, padding and initial weights all come from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array
from jaxtyping import Complex, Float

from jax_impl.kernels import cpu_kernels
from twinsep.model import initializers

# Products of float32 in float32: on accelerators JAX would round their factors to fewer bits, PyTorch does not.
jax.config.update("jax_default_matmul_precision", "highest")

EPS = 1e-6
#: Features of a head up to which our own kernel is used on a CPU, as in the twin.
NARROW = 32
Position = Callable[[Array], Array]

Module = nnx.Module
ModuleList = nnx.List
concatenate = jnp.concatenate
cumsum = jnp.cumsum
exp = jnp.exp
flip = jnp.flip
sigmoid = jax.nn.sigmoid
silu = jax.nn.silu
tanh = jnp.tanh
zeros_like = jnp.zeros_like

_compute_type: ContextVar[Any] = ContextVar("compute_type", default=None)


class Parameter(nnx.Param):
    """A weight that knows how it starts and whether weight decay applies to it."""

    initialiser: initializers.Initialiser
    decay: bool


def parameter(shape: tuple[int, ...], initialiser: initializers.Initialiser, *, decay: bool = False) -> Parameter:
    """An uninitialised weight; :func:`initialise` fills it in."""
    return Parameter(jax.ShapeDtypeStruct(shape, jnp.float32), initialiser=initialiser, decay=decay)


def named_parameters(module: nnx.Module) -> dict[str, Parameter]:
    """The weights by canonical name."""
    nodes = nnx.iter_graph(module)
    return {".".join(map(str, path)): node for path, node in nodes if isinstance(node, Parameter)}


def initialise(module: nnx.Module, seed: int) -> None:
    """Draw every weight from ``seed`` and its own name."""
    for name, weight in named_parameters(module).items():
        weight.set_value(jnp.asarray(initializers.draw(name, weight.shape, weight.initialiser, seed)))


def constant(array, like: Array) -> Array:
    """A NumPy constant in the dtype of ``like``."""
    return jnp.asarray(array, dtype=like.dtype)


def rematerialised(function, *inputs):
    """``function(*inputs)``, its activations recomputed in the backward pass instead of kept."""
    return jax.checkpoint(function)(*inputs)


@contextmanager
def autocast(dtype: Any) -> Iterator[None]:
    """Matrix products in ``dtype`` (None: in that of their inputs), read while a function is traced."""
    token = _compute_type.set(dtype)
    try:
        yield
    finally:
        _compute_type.reset(token)


def _in_compute_type(*arrays: Array) -> Sequence[Array]:
    dtype = _compute_type.get()
    return arrays if dtype is None else [x.astype(dtype) for x in arrays]


def split(x: Array, sizes: Sequence[int], axis: int) -> list[Array]:
    """Parts of the given sizes along an axis."""
    return jnp.split(x, np.cumsum(sizes)[:-1], axis)


@jax.custom_vjp
def softplus(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """log(1 + exp(x)), of which the backward pass keeps the result alone: its derivative is 1 − exp(−y)."""
    return jax.nn.softplus(x)


def _softplus_forward(x: Array) -> tuple[Array, Array]:
    y = jax.nn.softplus(x)
    return y, y


softplus.defvjp(_softplus_forward, lambda y, dy: (-dy * jnp.expm1(-y),))


def full_precision(function):
    """``function`` with its arrays in float32 at least, whatever the compute type; the result is as wide."""

    @wraps(function)
    def wide(x: Array, *others):
        dtype = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
        return function(*(y.astype(dtype) if isinstance(y, Array) else y for y in (x, *others)))

    return wide


class Linear(nnx.Module):
    """x Wᵀ (+ b), W (out, in)."""

    def __init__(self, d_in: int, d_out: int, *, bias: bool):
        self.weight = parameter((d_out, d_in), initializers.uniform(d_in), decay=True)
        self.bias = parameter((d_out,), initializers.uniform(d_in)) if bias else None

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        return linear(x, self.weight[...], None if self.bias is None else self.bias[...])


def linear(
    x: Float[Array, "... i"], weight: Float[Array, "o i"], bias: Float[Array, " o"] | None
) -> Float[Array, "... o"]:
    """x Wᵀ + b in the compute type."""
    x, weight = _in_compute_type(x, weight)
    y = (x.reshape(-1, x.shape[-1]) @ weight.T).reshape(*x.shape[:-1], len(weight))
    return y if bias is None else y + _in_compute_type(bias)[0]


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x²) + eps) · w (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, d: int, eps: float = EPS):
        self.eps = eps
        self.weight = parameter((d,), initializers.ones)

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        return rms_norm(x, self.weight[...], self.eps)


def rms_norm(x: Float[Array, "... d"], weight: Float[Array, "*w d"], eps: float = EPS) -> Float[Array, "... d"]:
    """x / sqrt(mean(x²) + eps) · weight over the last axis; ``weight`` broadcasts."""
    # In float32 whatever the compute type: a mean of squares overflows float16.
    wide = x if x.dtype == jnp.float64 else x.astype(jnp.float32)
    return (_normalised(wide, eps) * weight).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _normalised(x: Array, eps: float) -> Array:
    """x / sqrt(mean(x²) + eps). The gradient written out is a fifth faster than JAX's own on a CPU."""
    return _normalised_forward(x, eps)[0]


def _normalised_forward(x: Array, eps: float) -> tuple[Array, tuple[Array, Array]]:
    scale = jax.lax.rsqrt(_mean(x * x) + eps)
    return x * scale, (x, scale)


def _normalised_backward(_: float, saved: tuple[Array, Array], dy: Array) -> tuple[Array]:
    x, scale = saved
    n = x * scale
    return (scale * (dy - n * _mean(dy * n)),)


_normalised.defvjp(_normalised_forward, _normalised_backward)


def _mean(x: Array) -> Array:
    """Over the last axis, kept, as a product: XLA's sum over a short last axis is slow on a CPU."""
    return (x @ jnp.full(x.shape[-1], 1 / x.shape[-1], x.dtype))[..., None]


def silu_gate(a: Float[Array, "*s"], b: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """a ⊙ silu(b)."""
    return a * silu(b)


class DepthwiseConv1d(nnx.Module):
    """Depthwise convolution over the length: (b, l, d) -> (b, l, d).

    ``left`` zeros are padded before the first frame, kernel − 1 − ``left`` after the last.
    """

    def __init__(self, d: int, kernel: int, *, left: int):
        self.left = left
        self.weight = parameter((d, 1, kernel), initializers.uniform(kernel), decay=True)
        self.bias = parameter((d,), initializers.uniform(kernel))

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        return depthwise(x, self.weight[...], self.bias[...], self.left).astype(x.dtype)


class DepthwiseConvSiLU1d(DepthwiseConv1d):
    """The same, then SiLU."""

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        return depthwise_silu(x, self.weight[...], self.bias[...], self.left).astype(x.dtype)


@full_precision
def depthwise(
    x: Float[Array, "b l d"], weight: Float[Array, "d 1 k"], bias: Float[Array, " d"], left: int
) -> Float[Array, "b l d"]:
    """bias + Σ_j weight_j ⊙ x_{t−left+j}, zeros outside x."""
    return _taps(x, weight[:, 0].T, left) + bias


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _taps(x: Array, weight: Array, left: int) -> Array:
    """Σ_j weight_j ⊙ x_{t−left+j}, weight (kernel, d). JAX's own gradient would pad each of the copies anew."""
    # A sum of shifted copies: XLA fuses it with what follows, and its grouped convolution is slow on a CPU.
    return sum(w * shifted for w, shifted in zip(weight, _shifted(x, len(weight), left), strict=True))


def _shifted(x: Array, kernel: int, left: int) -> list[Array]:
    padded = jnp.pad(x, ((0, 0), (left, kernel - 1 - left), (0, 0)))
    return [padded[:, j : j + x.shape[1]] for j in range(kernel)]


def _taps_backward(left: int, saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, weight = saved
    kernel = len(weight)
    dweight = jnp.stack([(dy * shifted).sum((0, 1)) for shifted in _shifted(x, kernel, left)])
    return _taps(dy, weight[::-1], kernel - 1 - left), dweight


_taps.defvjp(lambda x, weight, left: (_taps(x, weight, left), (x, weight)), _taps_backward)


@full_precision
def depthwise_silu(
    x: Float[Array, "b l d"], weight: Float[Array, "d 1 k"], bias: Float[Array, " d"], left: int
) -> Float[Array, "b l d"]:
    """silu of :func:`depthwise`."""
    return _taps_silu(x, weight[:, 0].T, bias, left)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _taps_silu(x: Array, weight: Array, bias: Array, left: int) -> Array:
    """silu(Σ_j weight_j ⊙ x_{t−left+j} + bias), which the backward pass computes again instead of keeping it."""
    return silu(_taps(x, weight, left) + bias)


def _taps_silu_backward(left: int, saved: tuple[Array, Array, Array], dy: Array) -> tuple[Array, ...]:
    # x waits for dy, or XLA would compute it all again as the backward pass begins, and keep it until dy is there.
    x = saved[0] + 0 * dy[:1, :1, :1]
    _, pull = jax.vjp(lambda *inputs: silu(_taps(*inputs[:2], left) + inputs[2]), x, *saved[1:])
    return pull(dy)


_taps_silu.defvjp(lambda *inputs: (_taps_silu(*inputs), inputs[:3]), _taps_silu_backward)


class HalvingConv1d(nnx.Module):
    """Convolution of kernel 2 and stride 2 over the length, an odd last frame dropped: (b, l, d) -> (b, l/2, d)."""

    def __init__(self, d: int):
        self.weight = parameter((d, d, 2), initializers.uniform(2 * d), decay=True)
        self.bias = parameter((d,), initializers.uniform(2 * d))

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b m d"]:
        # Without overlap the convolution is one matrix product over pairs of frames.
        b, l, d = x.shape
        pairs = x[:, : l // 2 * 2].reshape(b, l // 2, 2 * d)
        return linear(pairs, self.weight[...].transpose(0, 2, 1).reshape(d, 2 * d), self.bias[...])


class DoublingConv1d(nnx.Module):
    """Transposed convolution of kernel 2 and stride 2 over the length: (b, l, d) -> (b, 2l, d)."""

    def __init__(self, d: int):
        self.weight = parameter((d, d, 2), initializers.uniform(2 * d), decay=True)
        self.bias = parameter((d,), initializers.uniform(2 * d))

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b m d"]:
        b, l, d = x.shape
        # weight (in, out, kernel) -> (kernel·out, in): frame 2t+j of the output is W_jᵀ x_t.
        pairs = linear(x, self.weight[...].transpose(2, 1, 0).reshape(2 * d, d), None)
        return pairs.reshape(b, 2 * l, d) + self.bias[...]


def batched_linear(
    x: Float[Array, "k n i"], weight: Float[Array, "k o i"], bias: Float[Array, "k o"]
) -> Float[Array, "k n o"]:
    """One Linear a band, all bands at once."""
    x, weight, bias = _in_compute_type(x, weight, bias)
    return x @ weight.mT + bias[:, None]


def split_complex(x: Complex[Array, "*s"]) -> Float[Array, "*s two"]:
    """Real and imaginary parts on a new last axis."""
    return jnp.stack([x.real, x.imag], -1)


def polar(magnitude: Float[Array, "*s"], phase: Float[Array, "*s"]) -> Complex[Array, "*s"]:
    """magnitude · exp(i · phase), in float32 at least: no framework has a complex half type to rely on."""
    if magnitude.dtype != jnp.float64:
        magnitude, phase = magnitude.astype(jnp.float32), phase.astype(jnp.float32)
    return jax.lax.complex(magnitude * jnp.cos(phase), magnitude * jnp.sin(phase))


def pad_axis(x: Array, axis: int, right: int, value: float = 0.0) -> Array:
    """``right`` entries of ``value`` appended to ``axis`` (negative, counted from the end)."""
    widths = [(0, right if i == x.ndim + axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value) if right else x


class MultiHeadAttention(nnx.Module):
    """softmax(q kᵀ / √(D/H)) v in H heads, four projections without bias (Vaswani et al. 2017, eq. 1).

    ``position`` is applied to queries and keys, (b, h, l, e) -> (b, h, l, e), before they meet.
    """

    def __init__(self, d: int, heads: int):
        self.heads = heads
        self.q_proj = Linear(d, d, bias=False)
        self.k_proj = Linear(d, d, bias=False)
        self.v_proj = Linear(d, d, bias=False)
        self.out_proj = Linear(d, d, bias=False)

    def __call__(
        self, x: Float[Array, "b l d"], memory: Float[Array, "b m d"], position: Position | None = None
    ) -> Float[Array, "b l d"]:
        q, k, v = (
            rearrange(project, "b l (h e) -> b h l e", h=self.heads)
            for project in (self.q_proj(x), self.k_proj(memory), self.v_proj(memory))
        )
        if position is not None:
            q, k = position(q), position(k)
        return self.out_proj(rearrange(attention(q, k, v), "b h l e -> b l (h e)"))


def attention(
    q: Float[Array, "b h l e"], k: Float[Array, "b h m e"], v: Float[Array, "b h m e"]
) -> Float[Array, "b h l e"]:
    """softmax(q kᵀ / √e) v (Vaswani et al. 2017, arXiv 1706.03762, eq. 1)."""
    dtype = q.dtype
    narrow = q.shape[-1] <= NARROW and dtype in (jnp.float32, jnp.float64) and dtype == k.dtype == v.dtype
    kernels = cpu_kernels() if narrow and _compute_type.get() is None and jax.default_backend() == "cpu" else None
    if kernels is not None:
        return kernels.attention(*(x.swapaxes(1, 2) for x in (q, k, v))).swapaxes(1, 2)
    q, k, v = _in_compute_type(q / q.shape[-1] ** 0.5, k, v)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.matmul(q, k.mT, preferred_element_type=wide)
    # The weights are divided by their sum last, in the result, which has fewer numbers than they.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    y = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=wide) / weights.sum(-1, keepdims=True)
    return y.astype(dtype)


@full_precision
def lstm(
    x: Float[Array, "b l d"],
    w_ih: Float[Array, "g d"],
    w_hh: Float[Array, "g h"],
    b_ih: Float[Array, " g"],
    b_hh: Float[Array, " g"],
) -> Float[Array, "b l h"]:
    """The hidden states of one LSTM from zero, its weights stacked in the order of gates i, f, g, o."""

    def frame(state: tuple[Array, Array], inputs: Array) -> tuple[tuple[Array, Array], Array]:
        h, c = state
        i, f, g, o = jnp.split(inputs + h @ w_hh.T, 4, -1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)
        return (h, c), h

    start = jnp.zeros((x.shape[0], w_hh.shape[1]), x.dtype)
    inputs = x @ w_ih.T + (b_ih + b_hh)
    return jax.lax.scan(frame, (start, start), inputs.swapaxes(0, 1))[1].swapaxes(0, 1)
