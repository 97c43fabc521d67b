"""The layers whose spelling differs between frameworks; everything else in the twins reads alike.

No framework default is trusted: widths, eps, padding and initial weights all come from here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Complex, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torch_impl.kernels import cpu_kernels, published
from twinsep.model import initializers

EPS = 1e-6
#: Features of a head up to which our own kernel beats PyTorch's on a CPU (at 64 PyTorch's is faster).
NARROW = 32
Position = Callable[[Tensor], Tensor]

Module = nn.Module
ModuleList = nn.ModuleList
concatenate = torch.cat
cumsum = torch.cumsum
exp = torch.exp
flip = torch.flip
sigmoid = torch.sigmoid
silu = F.silu
split = torch.split
tanh = torch.tanh
zeros_like = torch.zeros_like


class Parameter(nn.Parameter):
    """A weight that knows how it starts and whether weight decay applies to it."""

    initialiser: initializers.Initialiser
    decay: bool


def parameter(shape: tuple[int, ...], initialiser: initializers.Initialiser, *, decay: bool = False) -> Parameter:
    """An uninitialised weight; :func:`initialise` fills it in."""
    weight = Parameter(torch.empty(shape))
    weight.initialiser, weight.decay = initialiser, decay
    return weight


def named_parameters(module: nn.Module) -> dict[str, Parameter]:
    """The weights by canonical name."""
    return dict(module.named_parameters())  # type: ignore[arg-type]


@torch.no_grad()
def initialise(module: nn.Module, seed: int) -> None:
    """Draw every weight from ``seed`` and its own name."""
    for name, weight in named_parameters(module).items():
        weight.copy_(torch.from_numpy(initializers.draw(name, weight.shape, weight.initialiser, seed)))


def constant(array, like: Tensor) -> Tensor:
    """A NumPy constant in the dtype and on the device of ``like``."""
    return torch.as_tensor(array.copy(), dtype=like.dtype, device=like.device)


def rematerialised(function, *inputs):
    """``function(*inputs)``, its activations recomputed in the backward pass instead of kept."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False)


class _Softplus(torch.autograd.Function):
    """Keeps what comes out for the backward pass, as what uses it keeps that too; PyTorch's own keeps what came in."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = F.softplus(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return -torch.expm1(-y) * dy  # σ(x) = 1 − exp(−softplus(x))


def softplus(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """log(1 + exp(x))."""
    return _Softplus.apply(x)


def full_precision(function):
    """``function`` with its tensors in float32 at least, whatever the compute type; the result is as wide."""

    @wraps(function)
    def wide(x: Tensor, *others):
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        with torch.autocast(x.device.type, enabled=False):
            return function(*(y.to(dtype) if isinstance(y, Tensor) else y for y in (x, *others)))

    return wide


class Linear(nn.Module):
    """x Wᵀ (+ b), W (out, in)."""

    def __init__(self, d_in: int, d_out: int, *, bias: bool):
        super().__init__()
        self.weight = parameter((d_out, d_in), initializers.uniform(d_in), decay=True)
        self.bias = parameter((d_out,), initializers.uniform(d_in)) if bias else None

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        return F.linear(x, self.weight, self.bias)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · w (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, d: int, eps: float = EPS):
        super().__init__()
        self.eps = eps
        self.weight = parameter((d,), initializers.ones)

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: Float[Tensor, "... d"], weight: Float[Tensor, "*w d"], eps: float = EPS) -> Float[Tensor, "... d"]:
    """x / sqrt(mean(x²) + eps) · weight over the last axis; ``weight`` broadcasts."""
    kernels = cpu_kernels() if weight.ndim == 1 and _dense(x, weight) else None
    if kernels is not None:
        return kernels.rms_norm(x, weight, eps)
    # In float32 whatever the compute type: a mean of squares overflows float16.
    wide = x if x.dtype == torch.float64 else x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * weight).to(x.dtype)


def silu_gate(a: Float[Tensor, "*s"], b: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """a ⊙ silu(b)."""
    kernels = cpu_kernels() if _dense(a, b) else None
    return a * silu(b) if kernels is None else kernels.silu_gate(a, b)


def _dense(x: Tensor, other: Tensor) -> bool:
    """Whether our own kernels for the CPU take these two."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and other.dtype == x.dtype


class DepthwiseConv1d(nn.Module):
    """Depthwise convolution over the length: (b, l, d) -> (b, l, d).

    ``left`` zeros are padded before the first frame, kernel − 1 − ``left`` after the last.
    """

    def __init__(self, d: int, kernel: int, *, left: int):
        super().__init__()
        self.left = left
        self.weight = parameter((d, 1, kernel), initializers.uniform(kernel), decay=True)
        self.bias = parameter((d,), initializers.uniform(kernel))

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        return depthwise(x, self.weight, self.bias, self.left).to(x.dtype)


class DepthwiseConvSiLU1d(DepthwiseConv1d):
    """The same, then SiLU."""

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        return depthwise_silu(x, self.weight, self.bias, self.left).to(x.dtype)


@full_precision
def depthwise(
    x: Float[Tensor, "b l d"], weight: Float[Tensor, "d 1 k"], bias: Float[Tensor, " d"], left: int
) -> Float[Tensor, "b l d"]:
    """bias + Σ_j weight_j ⊙ x_{t−left+j}, zeros outside x."""
    padded = F.pad(x.mT, (left, weight.shape[2] - 1 - left))
    return F.conv1d(padded, weight, bias, groups=x.shape[2]).mT


def depthwise_silu(
    x: Float[Tensor, "b l d"], weight: Float[Tensor, "d 1 k"], bias: Float[Tensor, " d"], left: int
) -> Float[Tensor, "b l d"]:
    """silu of :func:`depthwise`, fused where there is a kernel for it."""
    kernel = published.causal_convolution_for(x, weight, left, _depthwise_silu) if x.device.type == "cuda" else None
    return _depthwise_silu(x, weight, bias, left) if kernel is None else kernel(x, weight, bias)


@full_precision
def _depthwise_silu(x: Tensor, weight: Tensor, bias: Tensor, left: int) -> Tensor:
    kernels = cpu_kernels() if x.device.type == "cpu" else None
    if kernels is not None:
        return kernels.depthwise_silu(x, weight, bias, left)
    return silu(depthwise(x, weight, bias, left))


class HalvingConv1d(nn.Module):
    """Convolution of kernel 2 and stride 2 over the length, an odd last frame dropped: (b, l, d) -> (b, l/2, d)."""

    def __init__(self, d: int):
        super().__init__()
        self.weight = parameter((d, d, 2), initializers.uniform(2 * d), decay=True)
        self.bias = parameter((d,), initializers.uniform(2 * d))

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b m d"]:
        # Without overlap the convolution is one matrix product over pairs of frames.
        b, l, d = x.shape
        pairs = x[:, : l // 2 * 2].reshape(b, l // 2, 2 * d)
        return F.linear(pairs, self.weight.permute(0, 2, 1).reshape(d, 2 * d), self.bias)


class DoublingConv1d(nn.Module):
    """Transposed convolution of kernel 2 and stride 2 over the length: (b, l, d) -> (b, 2l, d)."""

    def __init__(self, d: int):
        super().__init__()
        self.weight = parameter((d, d, 2), initializers.uniform(2 * d), decay=True)
        self.bias = parameter((d,), initializers.uniform(2 * d))

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b m d"]:
        b, l, d = x.shape
        # weight (in, out, kernel) -> (kernel·out, in): frame 2t+j of the output is W_jᵀ x_t.
        pairs = F.linear(x, self.weight.permute(2, 1, 0).reshape(2 * d, d))
        return pairs.reshape(b, 2 * l, d) + self.bias


def batched_linear(
    x: Float[Tensor, "k n i"], weight: Float[Tensor, "k o i"], bias: Float[Tensor, "k o"]
) -> Float[Tensor, "k n o"]:
    """One Linear a band, all bands at once."""
    return torch.baddbmm(bias[:, None], x, weight.mT)


def split_complex(x: Complex[Tensor, "*s"]) -> Float[Tensor, "*s two"]:
    """Real and imaginary parts on a new last axis."""
    return torch.view_as_real(x)


def polar(magnitude: Float[Tensor, "*s"], phase: Float[Tensor, "*s"]) -> Complex[Tensor, "*s"]:
    """magnitude · exp(i · phase), in float32 at least: no framework has a complex half type to rely on."""
    if magnitude.dtype != torch.float64:
        magnitude, phase = magnitude.float(), phase.float()
    return torch.complex(magnitude * torch.cos(phase), magnitude * torch.sin(phase))


def pad_axis(x: Tensor, axis: int, right: int, value: float = 0.0) -> Tensor:
    """``right`` entries of ``value`` appended to ``axis`` (negative, counted from the end)."""
    return F.pad(x, (0, 0) * (-1 - axis) + (0, right), value=value) if right else x


class MultiHeadAttention(nn.Module):
    """softmax(q kᵀ / √(D/H)) v in H heads, four projections without bias (Vaswani et al. 2017, eq. 1).

    ``position`` is applied to queries and keys, (b, h, l, e) -> (b, h, l, e), before they meet.
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
        q, k, v = (
            rearrange(project, "b l (h e) -> b h l e", h=self.heads)
            for project in (self.q_proj(x), self.k_proj(memory), self.v_proj(memory))
        )
        if position is not None:
            q, k = position(q), position(k)
        return self.out_proj(rearrange(attention(q, k, v), "b h l e -> b l (h e)"))


def attention(
    q: Float[Tensor, "b h l e"], k: Float[Tensor, "b h m e"], v: Float[Tensor, "b h m e"]
) -> Float[Tensor, "b h l e"]:
    """softmax(q kᵀ / √e) v (Vaswani et al. 2017, arXiv 1706.03762, eq. 1)."""
    narrow = q.shape[-1] <= NARROW and q.dtype in (torch.float32, torch.float64) and q.dtype == k.dtype == v.dtype
    kernels = cpu_kernels() if narrow and q.device.type == "cpu" else None
    if kernels is not None:
        return kernels.attention(*(x.transpose(1, 2) for x in (q, k, v)))[0].transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v)


@full_precision
def lstm(
    x: Float[Tensor, "b l d"],
    w_ih: Float[Tensor, "g d"],
    w_hh: Float[Tensor, "g h"],
    b_ih: Float[Tensor, " g"],
    b_hh: Float[Tensor, " g"],
) -> Float[Tensor, "b l h"]:
    """The hidden states of one LSTM from zero, its weights stacked in the order of gates i, f, g, o."""
    start = x.new_zeros(1, x.shape[0], w_hh.shape[1])
    # biases, one layer, no dropout, in training mode (cuDNN's backward asks for it), one direction, batch first
    return torch.lstm(x, (start, start), (w_ih, w_hh, b_ih, b_hh), True, 1, 0.0, True, False, True)[0]
