"""The operations that the two frameworks spell differently, without parameters: aliases and plain functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from torch_impl.kernels import cpu_kernels, published, standard_operations_only
from twinsep import stft

#: Number of bands and width in bins of each group of equally wide bands.
Groups = Sequence[tuple[int, int]]

EPS = 1e-6
#: Batch norm: weight of a batch in the running statistics, and what is added to the variance.
MOMENTUM, BATCH_NORM_EPS = 0.1, 1e-5
#: Widest attention head, in features, for which our CPU kernel is used; at 64 features PyTorch's is faster.
NARROW = 32
#: Widest Mamba layer, in features, that our CPU kernel computes as one operation; its channels are whole vectors.
NARROW_MAMBA, VECTOR = 64, 16

concatenate = torch.cat
cumsum = torch.cumsum
exp = torch.exp
flip = torch.flip
linear = F.linear
relu = F.relu
sigmoid = torch.sigmoid
silu = F.silu
split = torch.split
stack = torch.stack
tanh = torch.tanh
zeros_like = torch.zeros_like


def constant(array, like: Tensor) -> Tensor:
    """Convert a NumPy constant to a tensor with the dtype and device of ``like``."""
    if like.device.type != "cpu":
        return stft.constant(array, like, torch)  # kept on the device
    return torch.as_tensor(array.copy(), dtype=like.dtype)


def zeros(shape: Sequence[int], like: Tensor) -> Tensor:
    """Zeros with the dtype and device of ``like``."""
    return like.new_zeros(shape)


def take(x: Tensor, indices, axis: int) -> Tensor:
    """The entries of ``x`` at ``indices``, a NumPy array (n,), along an axis."""
    return torch.index_select(x, axis, torch.as_tensor(indices.copy(), device=x.device))


def flag(value: bool) -> bool:
    """A truth value in the state of a stream; here the host knows it."""
    return value


def negate(value: bool | Tensor) -> bool | Tensor:
    """The opposite of a flag."""
    return value.logical_not() if isinstance(value, Tensor) else not value


def choose(condition: bool | Tensor, if_true: Callable, if_false: Callable, *inputs):
    """Call ``if_true(*inputs)`` or ``if_false(*inputs)``; both return trees of the same shapes.

    A condition that the host does not know, in an exported program, selects from the results of both.
    """
    if not isinstance(condition, Tensor):
        return if_true(*inputs) if condition else if_false(*inputs)

    def select(x, y):
        if not isinstance(x, Tensor):
            return x
        # onnxruntime's Where takes no flags.
        return condition & x | ~condition & y if x.dtype == torch.bool else torch.where(condition, x, y)

    return tree_map(select, if_true(*inputs), if_false(*inputs))


def rematerialised(function, *inputs):
    """Call ``function(*inputs)`` and recompute its activations in the backward pass instead of saving them."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False)


def full_precision(function):
    """Make ``function`` compute in float32, or in float64 for float64 inputs, whatever the compute type."""

    @wraps(function)
    def wide(x: Tensor, *others):
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        with torch.autocast(x.device.type, enabled=False):
            return function(*(y.to(dtype) if isinstance(y, Tensor) else y for y in (x, *others)))

    return wide


class _Softplus(torch.autograd.Function):
    """Saves its output for the backward pass, which the consumer saves anyway; PyTorch's own saves its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return softplus(x) and save it."""
        y = F.softplus(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        """Return σ(x) · dy."""
        (y,) = ctx.saved_tensors
        return -torch.expm1(-y) * dy  # σ(x) = 1 − exp(−softplus(x))


def softplus(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """log(1 + exp(x)), with only the output saved for the backward pass."""
    return F.softplus(x) if standard_operations_only() else _Softplus.apply(x)


def rms_norm(x: Float[Tensor, "... d"], weight: Float[Tensor, "*w d"], eps: float = EPS) -> Float[Tensor, "... d"]:
    """x / sqrt(mean(x²) + eps) · weight, the mean over the last axis; ``weight`` broadcasts against ``x``."""
    kernels = cpu_kernels() if weight.ndim == 1 and _dense(x, weight) else None
    if kernels is not None:
        return kernels.rms_norm(x, weight, eps)
    # Always in float32: a mean of squares overflows float16.
    wide = x if x.dtype == torch.float64 else x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale * weight).to(x.dtype)


def silu_gate(a: Float[Tensor, "*s"], b: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Gate of SwiGLU, a ⊙ silu(b)."""
    kernels = cpu_kernels() if _dense(a, b) else None
    return a * silu(b) if kernels is None else kernels.silu_gate(a, b)


def _dense(x: Tensor, other: Tensor) -> bool:
    """Return True if our CPU kernels accept these two tensors."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and other.dtype == x.dtype


@full_precision
def depthwise(
    x: Float[Tensor, "b l d"], weight: Float[Tensor, "d 1 k"], bias: Float[Tensor, " d"], left: int
) -> Float[Tensor, "b l d"]:
    """Depthwise convolution bias + Σ_j weight_j ⊙ x_{t−left+j}, with zeros outside x."""
    padded = F.pad(x.mT, (left, weight.shape[2] - 1 - left))
    return F.conv1d(padded, weight, bias, groups=x.shape[2]).mT


def depthwise_silu(
    x: Float[Tensor, "b l d"], weight: Float[Tensor, "d 1 k"], bias: Float[Tensor, " d"], left: int
) -> Float[Tensor, "b l d"]:
    """silu(depthwise(x)), fused on a CPU with Numba and on CUDA with causal-conv1d."""
    kernel = published.causal_convolution_for(x, weight, left, _depthwise_silu) if x.device.type == "cuda" else None
    return _depthwise_silu(x, weight, bias, left) if kernel is None else kernel(x, weight, bias)


@full_precision
def _depthwise_silu(x: Tensor, weight: Tensor, bias: Tensor, left: int) -> Tensor:
    kernels = cpu_kernels() if x.device.type == "cpu" else None
    if kernels is not None:
        return kernels.depthwise_silu(x, weight, bias, left)
    return silu(depthwise(x, weight, bias, left))


def conv2d(
    x: Float[Tensor, "b i h w"], weight: Float[Tensor, "o i k k"], bias: Float[Tensor, " o"]
) -> Float[Tensor, "b o h w"]:
    """Convolution along two axes with an odd kernel k, zero-padded to their lengths, in the compute type."""
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)


@full_precision
def batch_norm(
    x: Float[Tensor, "b c h w"],
    weight: Float[Tensor, " c"],
    bias: Float[Tensor, " c"],
    mean: Float[Tensor, " c"],
    variance: Float[Tensor, " c"],
    training: bool,
) -> Float[Tensor, "b c h w"]:
    """Batch norm, in ``training`` by the statistics of the batch, which updates the running ones; else by these."""
    return F.batch_norm(x, mean, variance, weight, bias, training, MOMENTUM, BATCH_NORM_EPS)


def max_pool2d(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
    """Maximum over blocks of 2 × 2, h and w even; of equal maxima the first gets the gradient."""
    return F.max_pool2d(x, 2)


def fused_mamba(x: Float[Tensor, "b l d"], weights: Sequence[Tensor]) -> Float[Tensor, "b l d"] | None:
    """The layer ``Mamba`` with these weights as one operation, in a narrow model on a CPU; elsewhere None."""
    if torch.is_autocast_enabled(x.device.type) or not _dense(x, weights[0]):
        return None
    kernels, inputs = cpu_kernels(), [x, *weights]
    if kernels is None or x.shape[-1] > NARROW_MAMBA or len(weights[-2]) % VECTOR:
        return None
    return kernels.mamba(x, *weights, torch.is_grad_enabled() and any(y.requires_grad for y in inputs))[0]


def batched_linear(
    x: Float[Tensor, "k n i"], weight: Float[Tensor, "k o i"], bias: Float[Tensor, "k o"]
) -> Float[Tensor, "k n o"]:
    """One Linear per band, all bands in one batched product."""
    return torch.baddbmm(bias[:, None], x, weight.mT)


class _BandOutputs(torch.autograd.Function):
    """One node for all groups of bands, which share no feature, weight or output.

    Twenty nodes per product, and the splits and concatenations between them, would take as long as the products.
    """

    @staticmethod
    def parts(logits: Tensor, groups: Groups) -> Iterator[tuple[slice, slice, Tensor]]:
        """Per group its bands, its rows in the weight, and its logits (k, s, w, r, n) as a view of (s, r, f, n)."""
        band = row = bin = 0
        for bands, width in groups:
            rows = bands * width * logits.shape[0] * logits.shape[1]
            view = logits[:, :, bin : bin + bands * width].unflatten(2, (bands, width)).permute(2, 0, 3, 1, 4)
            yield slice(band, band + bands), slice(row, row + rows), view
            band, row, bin = band + bands, row + rows, bin + bands * width

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, groups: Groups, stems: int) -> Tensor:
        """Return logits (s, r, f, n), in which the values of one bin lie n apart, for the functions behind them."""
        ctx.save_for_backward(hidden, weight)
        ctx.groups = groups
        bins = sum(bands * width for bands, width in groups)
        logits = hidden.new_empty(stems, len(weight) // (stems * bins), bins, hidden.shape[1])
        for bands, rows, view in _BandOutputs.parts(logits, groups):
            k = bands.stop - bands.start
            y = torch.baddbmm(bias[rows].view(k, -1, 1), weight[rows].unflatten(0, (k, -1)), hidden[bands].mT)
            view.copy_(y.view(view.shape))  # (k, s·w·r, n)
        return logits

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dlogits: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of hidden, weight and bias."""
        hidden, weight = ctx.saved_tensors
        dhidden, dweight, dbias = torch.empty_like(hidden), torch.empty_like(weight), weight.new_empty(len(weight))
        for bands, rows, view in _BandOutputs.parts(dlogits, ctx.groups):
            k = bands.stop - bands.start
            dy = view.reshape(k, -1, hidden.shape[1])
            torch.bmm(dy, hidden[bands], out=dweight[rows].unflatten(0, (k, -1)))
            torch.bmm(dy.mT, weight[rows].unflatten(0, (k, -1)), out=dhidden[bands])
            torch.sum(dy, -1, out=dbias[rows].view(k, -1))
        return dhidden, dweight, dbias, None, None


def band_outputs(
    hidden: Float[Tensor, "k n d"], weight: Float[Tensor, "o d"], bias: Float[Tensor, " o"], groups: Groups, stems: int
) -> Float[Tensor, "s r f n"]:
    """One Linear from each band's features to r numbers per stem and bin; rows are packed by band, stem, bin and r."""
    if standard_operations_only():
        return _standard_band_outputs(hidden, weight, bias, groups, stems)
    return _BandOutputs.apply(*_in_compute_type(hidden, weight, bias), groups, stems)


def _standard_band_outputs(hidden: Tensor, weight: Tensor, bias: Tensor, groups: Groups, stems: int) -> Tensor:
    parts, band, row = [], 0, 0
    outputs = len(weight) // sum(bands * width for bands, width in groups)
    for bands, width in groups:
        rows = slice(row, row + outputs * bands * width)
        w, b = weight[rows].unflatten(0, (bands, -1)), bias[rows].view(bands, -1)
        y = batched_linear(hidden[band : band + bands], w, b)  # (k, n, s·w·r)
        y = y.unflatten(2, (stems, width, -1)).permute(2, 4, 0, 3, 1)  # (s, r, k, w, n)
        parts.append(y.flatten(2, 3))
        band, row = band + bands, rows.stop
    return torch.cat(parts, 2)


def _in_compute_type(*tensors: Tensor) -> Sequence[Tensor]:
    """Cast the inputs of a custom node as autocast casts those of a product."""
    kind = tensors[0].device.type
    return [x.to(torch.get_autocast_dtype(kind)) for x in tensors] if torch.is_autocast_enabled(kind) else tensors


def split_complex(x: Complex[Tensor, "*s"]) -> Float[Tensor, "*s two"]:
    """Split a complex array into its real and imaginary parts, on a new last axis."""
    return torch.view_as_real(x.contiguous())  # an array in another order is copied faster as complex numbers


def complex_of(real: Float[Tensor, "*s"], imaginary: Float[Tensor, "*s"]) -> Complex[Tensor, "*s"]:
    """real + i · imaginary, at least complex64: neither framework has a usable half-precision complex type."""
    if real.dtype != torch.float64:
        real, imaginary = real.float(), imaginary.float()
    return torch.complex(real, imaginary)


def polar(magnitude: Float[Tensor, "*s"], phase: Float[Tensor, "*s"]) -> Complex[Tensor, "*s"]:
    """magnitude · exp(i · phase), at least complex64."""
    if magnitude.dtype != torch.float64:
        magnitude, phase = magnitude.float(), phase.float()
    return torch.complex(magnitude * torch.cos(phase), magnitude * torch.sin(phase))


def pad_axis(x: Tensor, axis: int, right: int, value: float = 0.0) -> Tensor:
    """Append ``right`` entries of ``value`` along ``axis``, a negative index."""
    return F.pad(x, (0, 0) * (-1 - axis) + (0, right), value=value) if right else x


def attention(
    q: Float[Tensor, "b h l e"], k: Float[Tensor, "b h m e"], v: Float[Tensor, "b h m e"]
) -> Float[Tensor, "b h l e"]:
    """Attention softmax(q kᵀ / √e) v (Vaswani et al. 2017, arXiv 1706.03762, equation 1)."""
    narrow = q.shape[-1] <= NARROW and q.dtype in (torch.float32, torch.float64) and q.dtype == k.dtype == v.dtype
    kernels = cpu_kernels() if narrow and q.device.type == "cpu" else None
    if kernels is not None:
        return kernels.attention(*(x.transpose(1, 2) for x in (q, k, v)))[0].transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v)


def masked_attention(
    q: Float[Tensor, "*b l e"], k: Float[Tensor, "*b m e"], v: Float[Tensor, "*b m e"], bias: Float[Tensor, "*c _ m"]
) -> Float[Tensor, "*b l e"]:
    """Attention softmax(q kᵀ / √e + bias) v; every query must have a key with a finite bias, which broadcasts."""
    if standard_operations_only():  # the exporter to ONNX knows the operator in four dimensions only
        return torch.softmax(q @ k.mT / q.shape[-1] ** 0.5 + bias, -1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


@full_precision
def lstm(
    x: Float[Tensor, "b l d"],
    w_ih: Float[Tensor, "g d"],
    w_hh: Float[Tensor, "g h"],
    b_ih: Float[Tensor, " g"],
    b_hh: Float[Tensor, " g"],
) -> Float[Tensor, "b l h"]:
    """Hidden states of a one-layer LSTM that starts from zero; weights stack the gates in the order i, f, g, o."""
    start = x.new_zeros(1, x.shape[0], w_hh.shape[1])
    # has_biases, num_layers, dropout, train (required by cuDNN's backward pass), bidirectional, batch_first
    return torch.lstm(x, (start, start), (w_ih, w_hh, b_ih, b_hh), True, 1, 0.0, True, False, True)[0]


def lstm_step(
    x: Float[Tensor, "b d"],
    h: Float[Tensor, "b h"],
    c: Float[Tensor, "b h"],
    w_ih: Float[Tensor, "g d"],
    w_hh: Float[Tensor, "g h"],
    b_ih: Float[Tensor, " g"],
    b_hh: Float[Tensor, " g"],
) -> tuple[Float[Tensor, "b h"], Float[Tensor, "b h"]]:
    """One frame of :func:`lstm`: the next h and c."""
    return torch.lstm_cell(x, (h, c), w_ih, w_hh, b_ih, b_hh)
