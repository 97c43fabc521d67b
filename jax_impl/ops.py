"""The operations that the two frameworks spell differently, without parameters: aliases and plain functions."""

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
from jax import Array
from jaxtyping import Complex, Float

from jax_impl.kernels import cpu_kernels

# Multiply float32 matrices in float32, as PyTorch does: JAX's default on accelerators rounds the factors.
jax.config.update("jax_default_matmul_precision", "highest")

#: Number of bands and width in bins of each group of equally wide bands.
Groups = Sequence[tuple[int, int]]

EPS = 1e-6
#: Batch norm: weight of a batch in the running statistics, and what is added to the variance.
MOMENTUM, BATCH_NORM_EPS = 0.1, 1e-5
#: Widest attention head, in features, for which our CPU kernel is used, as in PyTorch.
NARROW = 32
#: Widest Mamba layer, in features, that our CPU kernel computes as one operation; its channels are whole vectors.
NARROW_MAMBA, VECTOR = 64, 16

concatenate = jnp.concatenate
cumsum = jnp.cumsum
exp = jnp.exp
flip = jnp.flip
relu = jax.nn.relu
sigmoid = jax.nn.sigmoid
silu = jax.nn.silu
stack = jnp.stack
tanh = jnp.tanh
zeros_like = jnp.zeros_like
#: The opposite of a flag, see :func:`choose`.
negate = jnp.logical_not

#: The dtype of matrix products, set by :func:`autocast`; None leaves that of their inputs.
_compute_type: ContextVar[Any] = ContextVar("compute_type", default=None)


def constant(array, like: Array) -> Array:
    """Convert a NumPy constant to an array with the dtype of ``like``."""
    return jnp.asarray(array, dtype=like.dtype)


def zeros(shape: Sequence[int], like: Array) -> Array:
    """Zeros with the dtype of ``like``."""
    return jnp.zeros(shape, like.dtype)


def take(x: Array, indices, axis: int) -> Array:
    """The entries of ``x`` at ``indices``, a NumPy array (n,), along an axis."""
    return jnp.take(x, indices, axis, mode="clip")  # other modes write NaN beyond the end, in the gradient too


def flag(value: bool) -> Array:
    """A truth value in the state of a stream, which the compiled program keeps."""
    return jnp.asarray(value)


def choose(condition: Array, if_true: Callable, if_false: Callable, *inputs):
    """Call ``if_true(*inputs)`` or ``if_false(*inputs)``; both return trees of the same shapes."""
    return jax.lax.cond(condition, if_true, if_false, *inputs)


def split(x: Array, sizes: Sequence[int], axis: int) -> list[Array]:
    """Split ``x`` into parts of the given sizes along an axis."""
    return jnp.split(x, np.cumsum(sizes)[:-1], axis)


def rematerialised(function, *inputs):
    """Call ``function(*inputs)`` and recompute its activations in the backward pass instead of saving them."""
    return jax.checkpoint(function)(*inputs)


@contextmanager
def autocast(dtype: Any) -> Iterator[None]:
    """Compute matrix products in ``dtype`` (None: the dtype of their inputs), for functions traced in this context."""
    token = _compute_type.set(dtype)
    try:
        yield
    finally:
        _compute_type.reset(token)


def _in_compute_type(*arrays: Array) -> Sequence[Array]:
    dtype = _compute_type.get()
    return arrays if dtype is None else [x.astype(dtype) for x in arrays]


def full_precision(function):
    """Make ``function`` compute in float32, or in float64 for float64 inputs, whatever the compute type."""

    @wraps(function)
    def wide(x: Array, *others):
        dtype = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
        return function(*(y.astype(dtype) if isinstance(y, Array) else y for y in (x, *others)))

    return wide


@jax.custom_vjp
def softplus(x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """log(1 + exp(x)), with only the output y saved for the backward pass: its derivative is 1 − exp(−y)."""
    return jax.nn.softplus(x)


def _softplus_forward(x: Array) -> tuple[Array, Array]:
    y = jax.nn.softplus(x)
    return y, y


softplus.defvjp(_softplus_forward, lambda y, dy: (-dy * jnp.expm1(-y),))


def linear(
    x: Float[Array, "... i"], weight: Float[Array, "o i"], bias: Float[Array, " o"] | None
) -> Float[Array, "... o"]:
    """Affine map x Wᵀ + b in the compute type."""
    x, weight = _in_compute_type(x, weight)
    y = (x.reshape(-1, x.shape[-1]) @ weight.T).reshape(*x.shape[:-1], len(weight))
    return y if bias is None else y + _in_compute_type(bias)[0]


def rms_norm(x: Float[Array, "... d"], weight: Float[Array, "*w d"], eps: float = EPS) -> Float[Array, "... d"]:
    """x / sqrt(mean(x²) + eps) · weight, the mean over the last axis; ``weight`` broadcasts against ``x``."""
    # Always in float32: a mean of squares overflows float16.
    wide = x if x.dtype == jnp.float64 else x.astype(jnp.float32)
    return (_normalised(wide, eps) * weight).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _normalised(x: Array, eps: float) -> Array:
    """x / sqrt(mean(x²) + eps), with its own gradient, which is a fifth faster on a CPU than the one JAX derives."""
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
    """Mean over the last axis, kept as size 1, by a product: XLA's sum over a short last axis is slow on a CPU."""
    return (x @ jnp.full(x.shape[-1], 1 / x.shape[-1], x.dtype))[..., None]


def silu_gate(a: Float[Array, "*s"], b: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Gate of SwiGLU, a ⊙ silu(b)."""
    return a * silu(b)


@full_precision
def depthwise(
    x: Float[Array, "b l d"], weight: Float[Array, "d 1 k"], bias: Float[Array, " d"], left: int
) -> Float[Array, "b l d"]:
    """Depthwise convolution bias + Σ_j weight_j ⊙ x_{t−left+j}, with zeros outside x."""
    return _taps(x, weight[:, 0].T, left) + bias


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _taps(x: Array, weight: Array, left: int) -> Array:
    """Σ_j weight_j ⊙ x_{t−left+j}, weight (kernel, d). The gradient JAX derives would pad every shifted copy again."""
    # A sum of shifted copies, which XLA fuses with its consumer; XLA's grouped convolution is slow on a CPU.
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
    """silu(depthwise(x))."""
    return _taps_silu(x, weight[:, 0].T, bias, left)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _taps_silu(x: Array, weight: Array, bias: Array, left: int) -> Array:
    """silu(Σ_j weight_j ⊙ x_{t−left+j} + bias), recomputed in the backward pass instead of saved."""
    return silu(_taps(x, weight, left) + bias)


def _taps_silu_backward(left: int, saved: tuple[Array, Array, Array], dy: Array) -> tuple[Array, ...]:
    # Make x depend on dy: otherwise XLA recomputes everything when the backward pass begins and holds it until then.
    x = saved[0] + 0 * dy[:1, :1, :1]
    _, pull = jax.vjp(lambda *inputs: silu(_taps(*inputs[:2], left) + inputs[2]), x, *saved[1:])
    return pull(dy)


_taps_silu.defvjp(lambda *inputs: (_taps_silu(*inputs), inputs[:3]), _taps_silu_backward)


def conv2d(
    x: Float[Array, "b i h w"], weight: Float[Array, "o i k k"], bias: Float[Array, " o"]
) -> Float[Array, "b o h w"]:
    """Convolution along two axes with an odd kernel k, zero-padded to their lengths, in the compute type."""
    x, weight, bias = _in_compute_type(x, weight, bias)
    axes = ("NCHW", "OIHW", "NCHW")
    return jax.lax.conv_general_dilated(x, weight, (1, 1), "SAME", dimension_numbers=axes) + bias[:, None, None]


@full_precision
def batch_norm(
    x: Float[Array, "b c h w"],
    weight: Float[Array, " c"],
    bias: Float[Array, " c"],
    mean: Float[Array, " c"],
    variance: Float[Array, " c"],
    training: bool,
) -> tuple[Float[Array, "b c h w"], Float[Array, " c"], Float[Array, " c"]]:
    """Batch norm, in ``training`` by the statistics of the batch, else by the running ones.

    Returns the output, the new running mean and the new running variance.
    """
    used = mean, variance
    if training:
        used = x.mean((0, 2, 3)), x.var((0, 2, 3))
        count = x.size // x.shape[1]
        mean = mean + MOMENTUM * (jax.lax.stop_gradient(used[0]) - mean)
        variance = variance + MOMENTUM * (jax.lax.stop_gradient(used[1]) * (count / (count - 1)) - variance)
    scale = weight * jax.lax.rsqrt(used[1] + BATCH_NORM_EPS)
    y = (x - used[0][:, None, None]) * scale[:, None, None] + bias[:, None, None]
    return y, mean, variance


def max_pool2d(x: Float[Array, "b c h w"]) -> Float[Array, "b c h2 w2"]:
    """Maximum over blocks of 2 × 2, h and w even; of equal maxima the first gets the gradient."""

    def larger(a: Array, b: Array) -> Array:
        # The gradient of ``jnp.maximum`` compares with the maximum, which XLA may compute again and round otherwise.
        return jnp.where(a >= b, a, b)

    columns = larger(x[..., ::2], x[..., 1::2])
    return larger(columns[..., ::2, :], columns[..., 1::2, :])


def fused_mamba(x: Float[Array, "b l d"], weights: Sequence[Array]) -> Float[Array, "b l d"] | None:
    """The layer ``Mamba`` with these weights as one operation, in a narrow model on a CPU; elsewhere None."""
    typed = _compute_type.get() is None and x.dtype == weights[0].dtype and x.dtype in (jnp.float32, jnp.float64)
    kernels = cpu_kernels() if typed and jax.default_backend() == "cpu" else None
    if kernels is None or x.shape[-1] > NARROW_MAMBA or len(weights[-2]) % VECTOR:
        return None
    return kernels.mamba(x, *weights)


def batched_linear(
    x: Float[Array, "k n i"], weight: Float[Array, "k o i"], bias: Float[Array, "k o"]
) -> Float[Array, "k n o"]:
    """One Linear per band, all bands in one batched product."""
    x, weight, bias = _in_compute_type(x, weight, bias)
    return x @ weight.mT + bias[:, None]


def band_outputs(
    hidden: Float[Array, "k n d"], weight: Float[Array, "o d"], bias: Float[Array, " o"], groups: Groups, stems: int
) -> Float[Array, "s r f n"]:
    """One Linear from each band's features to r numbers per stem and bin; rows are packed by band, stem, bin and r."""
    bins = sum(bands * width for bands, width in groups)
    rows = [len(weight) // bins * bands * width for bands, width in groups]
    bands = [bands for bands, _ in groups]
    parts = zip(split(hidden, bands, 0), split(weight, rows, 0), split(bias, rows, 0), groups, strict=True)
    return concatenate([_group_outputs(*part, stems) for part in parts], 2)


def _group_outputs(hidden: Array, weight: Array, bias: Array, group: tuple[int, int], stems: int) -> Array:
    """The bands of one group: hidden (k, n, d) -> (s, r, k·w, n)."""
    k, width = group
    y = batched_linear(hidden, rearrange(weight, "(k o) d -> k o d", k=k), rearrange(bias, "(k o) -> k o", k=k))
    return rearrange(y, "k n (s w r) -> s r (k w) n", s=stems, w=width)


def split_complex(x: Complex[Array, "*s"]) -> Float[Array, "*s two"]:
    """Split a complex array into its real and imaginary parts, on a new last axis."""
    return jnp.stack([x.real, x.imag], -1)


def complex_of(real: Float[Array, "*s"], imaginary: Float[Array, "*s"]) -> Complex[Array, "*s"]:
    """real + i · imaginary, at least complex64: neither framework has a usable half-precision complex type."""
    if real.dtype != jnp.float64:
        real, imaginary = real.astype(jnp.float32), imaginary.astype(jnp.float32)
    return jax.lax.complex(real, imaginary)


def polar(magnitude: Float[Array, "*s"], phase: Float[Array, "*s"]) -> Complex[Array, "*s"]:
    """magnitude · exp(i · phase), at least complex64."""
    if magnitude.dtype != jnp.float64:
        magnitude, phase = magnitude.astype(jnp.float32), phase.astype(jnp.float32)
    return jax.lax.complex(magnitude * jnp.cos(phase), magnitude * jnp.sin(phase))


def pad_axis(x: Array, axis: int, right: int, value: float = 0.0) -> Array:
    """Append ``right`` entries of ``value`` along ``axis``, a negative index."""
    widths = [(0, right if i == x.ndim + axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value) if right else x


def attention(
    q: Float[Array, "b h l e"], k: Float[Array, "b h m e"], v: Float[Array, "b h m e"]
) -> Float[Array, "b h l e"]:
    """Attention softmax(q kᵀ / √e) v (Vaswani et al. 2017, arXiv 1706.03762, equation 1)."""
    dtype = q.dtype
    narrow = q.shape[-1] <= NARROW and dtype in (jnp.float32, jnp.float64) and dtype == k.dtype == v.dtype
    kernels = cpu_kernels() if narrow and _compute_type.get() is None and jax.default_backend() == "cpu" else None
    if kernels is not None:
        return kernels.attention(*(x.swapaxes(1, 2) for x in (q, k, v))).swapaxes(1, 2)
    q, k, v = _in_compute_type(q / q.shape[-1] ** 0.5, k, v)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.matmul(q, k.mT, preferred_element_type=wide)
    # Divide by the sum last: the result has fewer entries than the matrix of weights.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    y = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=wide) / weights.sum(-1, keepdims=True)
    return y.astype(dtype)


def masked_attention(
    q: Float[Array, "*b l e"], k: Float[Array, "*b m e"], v: Float[Array, "*b m e"], bias: Float[Array, "*c _ m"]
) -> Float[Array, "*b l e"]:
    """Attention softmax(q kᵀ / √e + bias) v; every query must have a key with a finite bias, which broadcasts."""
    dtype = q.dtype
    q, k, v = _in_compute_type(q / q.shape[-1] ** 0.5, k, v)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.matmul(q, k.mT, preferred_element_type=wide) + bias
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
    """Hidden states of a one-layer LSTM that starts from zero; weights stack the gates in the order i, f, g, o."""

    def frame(state: tuple[Array, Array], inputs: Array) -> tuple[tuple[Array, Array], Array]:
        state = _lstm_frame(inputs, *state, w_hh)
        return state, state[0]

    start = jnp.zeros((x.shape[0], w_hh.shape[1]), x.dtype)
    inputs = x @ w_ih.T + (b_ih + b_hh)
    return jax.lax.scan(frame, (start, start), inputs.swapaxes(0, 1))[1].swapaxes(0, 1)


def _lstm_frame(inputs: Array, h: Array, c: Array, w_hh: Array) -> tuple[Array, Array]:
    """The next h and c from the inputs of the gates, W_ih x + b."""
    i, f, g, o = jnp.split(inputs + h @ w_hh.T, 4, -1)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def lstm_step(
    x: Float[Array, "b d"],
    h: Float[Array, "b h"],
    c: Float[Array, "b h"],
    w_ih: Float[Array, "g d"],
    w_hh: Float[Array, "g h"],
    b_ih: Float[Array, " g"],
    b_hh: Float[Array, " g"],
) -> tuple[Float[Array, "b h"], Float[Array, "b h"]]:
    """One frame of :func:`lstm`: the next h and c."""
    return _lstm_frame(x @ w_ih.T + (b_ih + b_hh), h, c, w_hh)
