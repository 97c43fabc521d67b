"""The layers: modules with parameters, built from the operations in :mod:`jax_impl.ops`.

Nothing relies on a framework's defaults: widths, eps, padding and initial weights are set here. Weights have PyTorch's
names and layouts in both twins, so that checkpoints need no conversion.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import einsum, rearrange
from flax import nnx
from jax import Array
from jaxtyping import Float

from jax_impl.ops import (
    EPS,
    attention,
    batch_norm,
    concatenate,
    conv2d,
    depthwise,
    depthwise_silu,
    linear,
    relu,
    rms_norm,
    silu,
    zeros,
)
from twinsep.model import initializers

Module = nnx.Module
ModuleList = nnx.List
#: A map applied to queries and keys, (b, h, l, e) -> (b, h, l, e).
Position = Callable[[Array], Array]


class Parameter(nnx.Param):
    """A weight with its initialiser and a flag that says whether weight decay applies to it."""

    initialiser: initializers.Initialiser
    decay: bool


def parameter(shape: tuple[int, ...], initialiser: initializers.Initialiser, *, decay: bool = False) -> Parameter:
    """Create an uninitialised weight; :func:`initialise` fills it in."""
    return Parameter(jax.ShapeDtypeStruct(shape, jnp.float32), initialiser=initialiser, decay=decay)


def named_parameters(module: Module) -> dict[str, Parameter]:
    """Return the weights of ``module`` by canonical (PyTorch) name."""
    nodes = nnx.iter_graph(module)
    return {".".join(map(str, path)): node for path, node in nodes if isinstance(node, Parameter)}


def named_statistics(module: Module) -> dict[str, nnx.BatchStat]:
    """Return the running statistics of the batch norms of ``module`` by canonical (PyTorch) name."""
    nodes = nnx.iter_graph(module)
    return {".".join(map(str, path)): node for path, node in nodes if isinstance(node, nnx.BatchStat)}


def named_weights(module: Module) -> dict[str, nnx.Variable]:
    """Return all that a checkpoint keeps of ``module``: weights and running statistics by canonical name."""
    return {**named_parameters(module), **named_statistics(module)}


def set_training(module: Module, training: bool) -> None:
    """Let the batch norms of ``module`` use the statistics of the batch, or the running ones."""
    for _, node in nnx.iter_graph(module):
        if isinstance(node, BatchNorm2d):
            node.training = training


def initialise(module: Module, seed: int, start: str = "default") -> None:
    """Draw every weight of ``module`` from ``seed`` and the weight's name; ``start`` is ``model.init``."""
    for name, weight in named_parameters(module).items():
        weight.set_value(jnp.asarray(initializers.draw(name, weight.shape, weight.initialiser, seed, start)))


class Linear(Module):
    """Affine map x Wᵀ (+ b): (..., d_in) -> (..., d_out), W (d_out, d_in)."""

    def __init__(self, d_in: int, d_out: int, *, bias: bool):
        self.weight = parameter((d_out, d_in), initializers.uniform(d_in), decay=True)
        self.bias = parameter((d_out,), initializers.uniform(d_in)) if bias else None

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        """Map the last axis from d_in to d_out features."""
        return linear(x, self.weight[...], None if self.bias is None else self.bias[...])


class RMSNorm(Module):
    """x / sqrt(mean(x²) + eps) · w, the mean over the last axis (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, d: int, eps: float = EPS):
        self.eps = eps
        self.weight = parameter((d,), initializers.ones)

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        """Normalise the last axis."""
        return rms_norm(x, self.weight[...], self.eps)


class DepthwiseConv1d(Module):
    """Depthwise convolution along the length: (b, l, d) -> (b, l, d).

    Pads ``left`` zeros before the first frame and kernel − 1 − ``left`` after the last.
    """

    def __init__(self, d: int, kernel: int, *, left: int):
        self.left = left
        self.weight = parameter((d, 1, kernel), initializers.uniform(kernel), decay=True)
        self.bias = parameter((d,), initializers.uniform(kernel))

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Convolve every feature along the length; the type of ``x`` is kept."""
        return depthwise(x, self.weight[...], self.bias[...], self.left).astype(x.dtype)

    def start(self, batch: int) -> Float[Array, "b j d"]:
        """The kernel − 1 frames before the first, zeros; only a convolution that reads no later frame has steps."""
        d, _, kernel = self.weight.shape
        return zeros((batch, kernel - 1, d), self.weight[...])

    def step(
        self, x: Float[Array, "b d"], past: Float[Array, "b j d"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b j d"]]:
        """Convolve one frame, given the frames before it; return these for the next frame too."""
        frames = concatenate([past, x[:, None]], 1)  # (b, kernel, d)
        return einsum(frames, self.weight[...][:, 0], "b j d, d j -> b d") + self.bias[...], frames[:, 1:]


class DepthwiseConvSiLU1d(DepthwiseConv1d):
    """Depthwise convolution followed by SiLU: (b, l, d) -> (b, l, d)."""

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Convolve every feature along the length and apply SiLU; the type of ``x`` is kept."""
        return depthwise_silu(x, self.weight[...], self.bias[...], self.left).astype(x.dtype)

    def step(
        self, x: Float[Array, "b d"], past: Float[Array, "b j d"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b j d"]]:
        """Convolve one frame and apply SiLU, given the frames before it; return these for the next frame too."""
        y, past = super().step(x, past)
        return silu(y), past


class HalvingConv1d(Module):
    """Convolution of kernel 2 and stride 2 along the length: (b, l, d) -> (b, ⌊l/2⌋, d). Drops an odd last frame."""

    def __init__(self, d: int):
        self.weight = parameter((d, d, 2), initializers.uniform(2 * d), decay=True)
        self.bias = parameter((d,), initializers.uniform(2 * d))

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b m d"]:
        """Return m = ⌊l/2⌋ frames for l."""
        # The windows do not overlap, so the convolution is one matrix product over pairs of frames.
        b, l, d = x.shape
        pairs = x[:, : l // 2 * 2].reshape(b, l // 2, 2 * d)  # (b, m, 2d)
        return linear(pairs, self.weight[...].transpose(0, 2, 1).reshape(d, 2 * d), self.bias[...])


class DoublingConv1d(Module):
    """Transposed convolution of kernel 2 and stride 2 along the length: (b, l, d) -> (b, 2l, d)."""

    def __init__(self, d: int):
        self.weight = parameter((d, d, 2), initializers.uniform(2 * d), decay=True)
        self.bias = parameter((d,), initializers.uniform(2 * d))

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b m d"]:
        """Return m = 2l frames for l."""
        b, l, d = x.shape
        # Output frame 2t + j is W_jᵀ x_t: the weight (in, out, kernel) becomes (kernel·out, in).
        pairs = linear(x, self.weight[...].transpose(2, 1, 0).reshape(2 * d, d), None)  # (b, l, 2d)
        return pairs.reshape(b, 2 * l, d) + self.bias[...]


class Conv2d(Module):
    """Convolution with an odd kernel along two axes, zero-padded to their lengths: (b, i, h, w) -> (b, o, h, w)."""

    def __init__(self, d_in: int, d_out: int, kernel: int):
        self.weight = parameter((d_out, d_in, kernel, kernel), initializers.uniform(d_in * kernel**2), decay=True)
        self.bias = parameter((d_out,), initializers.uniform(d_in * kernel**2))

    def __call__(self, x: Float[Array, "b i h w"]) -> Float[Array, "b o h w"]:
        """Convolve along the last two axes."""
        return conv2d(x, self.weight[...], self.bias[...])


class DoublingConv2d(Module):
    """Transposed convolution of kernel 2 and stride 2 along two axes: (b, i, h, w) -> (b, o, 2h, 2w)."""

    def __init__(self, d_in: int, d_out: int):
        self.weight = parameter((d_in, d_out, 2, 2), initializers.uniform(4 * d_out), decay=True)
        self.bias = parameter((d_out,), initializers.uniform(4 * d_out))

    def __call__(self, x: Float[Array, "b i h w"]) -> Float[Array, "b o h2 w2"]:
        """Return twice the rows and columns."""
        # The windows do not overlap: output (2h + y, 2w + x) is W_yxᵀ applied to input (h, w).
        weight = rearrange(self.weight[...], "i o y x -> (o y x) i")
        y = linear(rearrange(x, "b i h w -> b h w i"), weight, None)
        return rearrange(y, "b h w (o y x) -> b o (h y) (w x)", y=2, x=2) + self.bias[..., None, None]


class BatchNorm2d(Module):
    """(x − μ) / sqrt(σ² + 1e-5) · w + b for each channel of (b, c, h, w) (Ioffe and Szegedy 2015, arXiv 1502.03167).

    In training μ and σ² are those of the batch, and the running statistics move a tenth of the way towards them, the
    variance without bias; otherwise μ and σ² are the running statistics.
    """

    def __init__(self, d: int):
        self.weight = parameter((d,), initializers.ones)
        self.bias = parameter((d,), initializers.zeros)
        self.running_mean = nnx.BatchStat(jnp.zeros(d))
        self.running_var = nnx.BatchStat(jnp.ones(d))
        self.training = False

    def __call__(self, x: Float[Array, "b c h w"]) -> Float[Array, "b c h w"]:
        """Normalise every channel; the type of ``x`` is kept."""
        statistics = self.running_mean[...], self.running_var[...]
        y, mean, variance = batch_norm(x, self.weight[...], self.bias[...], *statistics, self.training)
        if self.training:
            self.running_mean.set_value(mean)
            self.running_var.set_value(variance)
        return y.astype(x.dtype)


class ConvNormReLU2d(Module):
    """Convolution of kernel 3, batch norm and ReLU: (b, i, h, w) -> (b, o, h, w)."""

    def __init__(self, d_in: int, d_out: int):
        self.conv = Conv2d(d_in, d_out, 3)
        self.norm = BatchNorm2d(d_out)

    def __call__(self, x: Float[Array, "b i h w"]) -> Float[Array, "b o h w"]:
        """Apply the three layers."""
        return relu(self.norm(self.conv(x)))


class MultiHeadAttention(Module):
    """Multi-head attention, four projections without bias (Vaswani et al. 2017, arXiv 1706.03762, section 3.2.2).

    Queries come from ``x`` (b, l, d), keys and values from ``memory`` (b, m, d). ``position`` is applied to queries and
    keys, (b, h, l, e) with e = d/h, before their products.
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
        """Return one vector of d features for every query."""
        q, k, v = (
            rearrange(project, "b l (h e) -> b h l e", h=self.heads)
            for project in (self.q_proj(x), self.k_proj(memory), self.v_proj(memory))
        )
        if position is not None:
            q, k = position(q), position(k)
        return self.out_proj(rearrange(attention(q, k, v), "b h l e -> b l (h e)"))
