"""The layers: modules with parameters, built from the operations in :mod:`torch_impl.ops`.

Nothing relies on a framework's defaults: widths, eps, padding and initial weights are set here. Weights have PyTorch's
names and layouts in both twins, so that checkpoints need no conversion.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from torch_impl.ops import (
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
from twinsep.checkpoints.native import STATISTICS
from twinsep.model import initializers

Module = nn.Module
ModuleList = nn.ModuleList
#: A map applied to queries and keys, (b, h, l, e) -> (b, h, l, e).
Position = Callable[[Tensor], Tensor]


class Parameter(nn.Parameter):
    """A weight with its initialiser and a flag that says whether weight decay applies to it."""

    #: None for a weight that another package has drawn.
    initialiser: initializers.Initialiser | None
    decay: bool


def parameter(shape: tuple[int, ...], initialiser: initializers.Initialiser, *, decay: bool = False) -> Parameter:
    """Create an uninitialised weight; :func:`initialise` fills it in."""
    weight = Parameter(torch.empty(shape))
    weight.initialiser, weight.decay = initialiser, decay
    return weight


def named_parameters(module: Module) -> dict[str, Parameter]:
    """Return the weights of ``module`` by canonical (PyTorch) name."""
    return dict(module.named_parameters())  # type: ignore[arg-type]


def named_statistics(module: Module) -> dict[str, Tensor]:
    """Return the running statistics of the batch norms of ``module`` by canonical (PyTorch) name."""
    # Without the counters of batches, which nothing reads.
    return {name: x for name, x in module.named_buffers() if name.endswith(STATISTICS)}


def named_weights(module: Module) -> dict[str, Tensor]:
    """Return all that a checkpoint keeps of ``module``: weights and running statistics by canonical name."""
    return {**named_parameters(module), **named_statistics(module)}


def set_training(module: Module, training: bool) -> None:
    """Let the batch norms of ``module`` use the statistics of the batch, or the running ones."""
    module.train(training)


@torch.no_grad()
def initialise(module: Module, seed: int, start: str = "default") -> None:
    """Draw every weight of ``module`` from ``seed`` and the weight's name; ``start`` is ``model.init``."""
    for name, weight in named_parameters(module).items():
        if weight.initialiser is not None:  # weights of other packages stay as they are
            weight.copy_(torch.from_numpy(initializers.draw(name, weight.shape, weight.initialiser, seed, start)))


class Linear(Module):
    """Affine map x Wᵀ (+ b): (..., d_in) -> (..., d_out), W (d_out, d_in)."""

    def __init__(self, d_in: int, d_out: int, *, bias: bool):
        super().__init__()
        self.weight = parameter((d_out, d_in), initializers.uniform(d_in), decay=True)
        self.bias = parameter((d_out,), initializers.uniform(d_in)) if bias else None

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        """Map the last axis from d_in to d_out features."""
        return linear(x, self.weight, self.bias)


class RMSNorm(Module):
    """x / sqrt(mean(x²) + eps) · w, the mean over the last axis (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, d: int, eps: float = EPS):
        super().__init__()
        self.eps = eps
        self.weight = parameter((d,), initializers.ones)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Normalise the last axis."""
        return rms_norm(x, self.weight, self.eps)


class DepthwiseConv1d(Module):
    """Depthwise convolution along the length: (b, l, d) -> (b, l, d).

    Pads ``left`` zeros before the first frame and kernel − 1 − ``left`` after the last.
    """

    def __init__(self, d: int, kernel: int, *, left: int):
        super().__init__()
        self.left = left
        self.weight = parameter((d, 1, kernel), initializers.uniform(kernel), decay=True)
        self.bias = parameter((d,), initializers.uniform(kernel))

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Convolve every feature along the length; the type of ``x`` is kept."""
        return depthwise(x, self.weight, self.bias, self.left).to(x.dtype)

    def start(self, batch: int) -> Float[Tensor, "b j d"]:
        """The kernel − 1 frames before the first, zeros; only a convolution that reads no later frame has steps."""
        d, _, kernel = self.weight.shape
        return zeros((batch, kernel - 1, d), self.weight)

    def step(
        self, x: Float[Tensor, "b d"], past: Float[Tensor, "b j d"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b j d"]]:
        """Convolve one frame, given the frames before it; return these for the next frame too."""
        frames = concatenate([past, x[:, None]], 1)  # (b, kernel, d)
        return einsum(frames, self.weight[:, 0], "b j d, d j -> b d") + self.bias, frames[:, 1:]


class DepthwiseConvSiLU1d(DepthwiseConv1d):
    """Depthwise convolution followed by SiLU: (b, l, d) -> (b, l, d)."""

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Convolve every feature along the length and apply SiLU; the type of ``x`` is kept."""
        return depthwise_silu(x, self.weight, self.bias, self.left).to(x.dtype)

    def step(
        self, x: Float[Tensor, "b d"], past: Float[Tensor, "b j d"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b j d"]]:
        """Convolve one frame and apply SiLU, given the frames before it; return these for the next frame too."""
        y, past = super().step(x, past)
        return silu(y), past


class HalvingConv1d(Module):
    """Convolution of kernel 2 and stride 2 along the length: (b, l, d) -> (b, ⌊l/2⌋, d). Drops an odd last frame."""

    def __init__(self, d: int):
        super().__init__()
        self.weight = parameter((d, d, 2), initializers.uniform(2 * d), decay=True)
        self.bias = parameter((d,), initializers.uniform(2 * d))

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b m d"]:
        """Return m = ⌊l/2⌋ frames for l."""
        # The windows do not overlap, so the convolution is one matrix product over pairs of frames.
        b, l, d = x.shape
        pairs = x[:, : l // 2 * 2].reshape(b, l // 2, 2 * d)  # (b, m, 2d)
        return linear(pairs, self.weight.permute(0, 2, 1).reshape(d, 2 * d), self.bias)


class DoublingConv1d(Module):
    """Transposed convolution of kernel 2 and stride 2 along the length: (b, l, d) -> (b, 2l, d)."""

    def __init__(self, d: int):
        super().__init__()
        self.weight = parameter((d, d, 2), initializers.uniform(2 * d), decay=True)
        self.bias = parameter((d,), initializers.uniform(2 * d))

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b m d"]:
        """Return m = 2l frames for l."""
        b, l, d = x.shape
        # Output frame 2t + j is W_jᵀ x_t: the weight (in, out, kernel) becomes (kernel·out, in).
        pairs = linear(x, self.weight.permute(2, 1, 0).reshape(2 * d, d))  # (b, l, 2d)
        return pairs.reshape(b, 2 * l, d) + self.bias


class Conv2d(Module):
    """Convolution with an odd kernel along two axes, zero-padded to their lengths: (b, i, h, w) -> (b, o, h, w)."""

    def __init__(self, d_in: int, d_out: int, kernel: int):
        super().__init__()
        self.weight = parameter((d_out, d_in, kernel, kernel), initializers.uniform(d_in * kernel**2), decay=True)
        self.bias = parameter((d_out,), initializers.uniform(d_in * kernel**2))

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        """Convolve along the last two axes."""
        return conv2d(x, self.weight, self.bias)


class DoublingConv2d(Module):
    """Transposed convolution of kernel 2 and stride 2 along two axes: (b, i, h, w) -> (b, o, 2h, 2w)."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.weight = parameter((d_in, d_out, 2, 2), initializers.uniform(4 * d_out), decay=True)
        self.bias = parameter((d_out,), initializers.uniform(4 * d_out))

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h2 w2"]:
        """Return twice the rows and columns."""
        # The windows do not overlap: output (2h + y, 2w + x) is W_yxᵀ applied to input (h, w).
        weight = rearrange(self.weight, "i o y x -> (o y x) i")
        y = linear(rearrange(x, "b i h w -> b h w i"), weight)
        return rearrange(y, "b h w (o y x) -> b o (h y) (w x)", y=2, x=2) + self.bias[:, None, None]


class BatchNorm2d(Module):
    """(x − μ) / sqrt(σ² + 1e-5) · w + b for each channel of (b, c, h, w) (Ioffe and Szegedy 2015, arXiv 1502.03167).

    In training μ and σ² are those of the batch, and the running statistics move a tenth of the way towards them, the
    variance without bias; otherwise μ and σ² are the running statistics.
    """

    def __init__(self, d: int):
        super().__init__()
        self.weight = parameter((d,), initializers.ones)
        self.bias = parameter((d,), initializers.zeros)
        self.register_buffer("running_mean", torch.zeros(d))
        self.register_buffer("running_var", torch.ones(d))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Normalise every channel; the type of ``x`` is kept."""
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return batch_norm(x, self.weight, self.bias, mean, variance, self.training).to(x.dtype)


class ConvNormReLU2d(Module):
    """Convolution of kernel 3, batch norm and ReLU: (b, i, h, w) -> (b, o, h, w)."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.conv = Conv2d(d_in, d_out, 3)
        self.norm = BatchNorm2d(d_out)

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        """Apply the three layers."""
        return relu(self.norm(self.conv(x)))


class MultiHeadAttention(Module):
    """Multi-head attention, four projections without bias (Vaswani et al. 2017, arXiv 1706.03762, section 3.2.2).

    Queries come from ``x`` (b, l, d), keys and values from ``memory`` (b, m, d). ``position`` is applied to queries and
    keys, (b, h, l, e) with e = d/h, before their products.
    """

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = Linear(d, d, bias=False)
        self.k_proj = Linear(d, d, bias=False)
        self.v_proj = Linear(d, d, bias=False)
        self.out_proj = Linear(d, d, bias=False)

    def forward(
        self, x: Float[Tensor, "b l d"], memory: Float[Tensor, "b m d"], position: Position | None = None
    ) -> Float[Tensor, "b l d"]:
        """Return one vector of d features for every query."""
        q, k, v = (
            rearrange(project, "b l (h e) -> b h l e", h=self.heads)
            for project in (self.q_proj(x), self.k_proj(memory), self.v_proj(memory))
        )
        if position is not None:
            q, k = position(q), position(k)
        return self.out_proj(rearrange(attention(q, k, v), "b h l e -> b l (h e)"))
