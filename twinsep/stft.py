"""Short-time Fourier transform and its inverse, on any array-API namespace.

Both work on NumPy, PyTorch (with autograd) and JAX (inside ``jit`` and ``grad``), from float32 to complex64 and from
float64 to complex128. The definition is that of ``torch.stft`` with ``center=True``: periodic Hann window
w[n] = sin²(πn/n_fft), centred frames over reflection padding of n_fft/2 samples, no normalisation,

    X[f, t] = Σ_n w[n] · x[t·hop + n − n_fft/2] · exp(−2πi·f·n/n_fft),   t = 0 … ⌊S/hop⌋

and the inverse is the least-squares one (Griffin and Lim 1984, IEEE TASSP 32(2), equation 6).

Frames are cut and added in hop-sized blocks: a frame is ⌈n_fft/hop⌉ neighbouring blocks. A gather would do the same,
but its backward pass is a scatter, many times slower on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_jax_array, is_torch_array
from jaxtyping import Complex, Float


def stft(x: Float[Any, "*batch s"], *, n_fft: int, hop: int) -> Complex[Any, "*batch f t"]:
    """Transform signals (..., S) to spectra (..., F, T), F = n_fft/2 + 1, T = 1 + ⌊S/hop⌋.

    ``n_fft`` (even) and ``hop`` are in samples. Signals too short to reflect are first zero-padded on the right to
    S = n_fft/2 + 1 samples. Raises TypeError unless ``x`` is float32 or float64, ValueError for an odd ``n_fft`` or a
    ``hop`` below 1.
    """
    xp = array_namespace(x)
    _check(n_fft, hop)
    if x.dtype not in (xp.float32, xp.float64):
        raise TypeError(f"stft takes float32 or float64 signals, not {x.dtype}")
    x = _reflect(x, n_fft // 2, xp)
    frames = 1 + (x.shape[-1] - n_fft) // hop
    windowed = _cut(x, frames, n_fft, hop, xp) * constant(hann(n_fft), x, xp)
    spectra = _rfft_in_torch()(windowed) if is_torch_array(windowed) else xp.fft.rfft(windowed, axis=-1)
    return xp.matrix_transpose(spectra)


def istft(spectra: Complex[Any, "*batch f t"], *, n_fft: int, hop: int, length: int) -> Float[Any, "*batch {length}"]:
    """Transform spectra (..., F, T) to signals (..., length), the inverse of :func:`stft`.

    x[s] = Σ_t w·irfft(X_t) / Σ_t w², ignoring the imaginary parts of bins 0 and n_fft/2. Returns the ``length`` samples
    after the first n_fft/2, including a tail after sample (T−1)·hop. Only the falling half of the last windows covers
    this tail: with hop = n_fft/2, Σ w² falls to 1e-12 and float32 rounding errors show; with hop ≤ n_fft/4 it stays
    above 1/4.

    Raises ValueError for a ``hop`` above n_fft/2 (no window covers some samples), a number of bins other than
    n_fft/2 + 1, or a ``length`` beyond the last window.
    """
    xp = array_namespace(spectra)
    _check(n_fft, hop)
    bins, frames = spectra.shape[-2:]
    if hop > n_fft // 2 or bins != n_fft // 2 + 1:
        raise ValueError(f"no inverse: n_fft {n_fft} needs {n_fft // 2 + 1} bins and a hop of at most {n_fft // 2}")
    if not 0 <= length <= (frames - 1) * hop + n_fft // 2:
        raise ValueError(f"{frames} frames hold {(frames - 1) * hop + n_fft // 2} samples, not {length}")
    segments = xp.fft.irfft(_real_ends(xp.matrix_transpose(spectra), xp), n=n_fft, axis=-1)  # (..., T, n_fft)
    signal = _overlap_add(segments * constant(hann(n_fft), segments, xp), hop, xp)
    signal = signal[..., n_fft // 2 : n_fft // 2 + length]
    return signal / constant(_envelope(n_fft, hop, frames, length), signal, xp)


def causal_stft(x: Float[Any, "*batch s"], *, n_fft: int, hop: int) -> Complex[Any, "*batch f t"]:
    """Transform signals (..., S) to spectra (..., F, T) whose frame t ends with sample (t + 1)·hop − 1.

    Samples before the first and after the last are zeros, T = ⌊(S − 1 + n_fft)/hop⌋: every frame that a sample is in.
    Frame t of a stream is therefore known when t + 1 blocks of ``hop`` samples have come. Window and normalisation are
    those of :func:`stft`, and so are the errors raised.
    """
    xp = array_namespace(x)
    _check(n_fft, hop)
    if x.dtype not in (xp.float32, xp.float64):
        raise TypeError(f"stft takes float32 or float64 signals, not {x.dtype}")
    frames = (x.shape[-1] - 1 + n_fft) // hop
    before, after = (_zeros(x, (*x.shape[:-1], n), xp) for n in (n_fft - hop, frames * hop - x.shape[-1]))
    x = xp.concat([before, x, after], axis=-1)
    return xp.matrix_transpose(frame_spectra(_cut(x, frames, n_fft, hop, xp)))


def causal_istft(
    spectra: Complex[Any, "*batch f t"], *, n_fft: int, hop: int, length: int
) -> Float[Any, "*batch {length}"]:
    """Transform spectra (..., F, T) to signals (..., length), the inverse of :func:`causal_stft`.

    Every sample is in as many windows as any other, so that Σ w² has the period ``hop`` (:func:`causal_envelope`).
    Raises ValueError as :func:`istft` does.
    """
    xp = array_namespace(spectra)
    _check(n_fft, hop)
    bins, frames = spectra.shape[-2:]
    if hop > n_fft // 2 or bins != n_fft // 2 + 1:
        raise ValueError(f"no inverse: n_fft {n_fft} needs {n_fft // 2 + 1} bins and a hop of at most {n_fft // 2}")
    if not 0 <= length <= (frames + 1) * hop - n_fft:
        raise ValueError(f"{frames} frames hold {(frames + 1) * hop - n_fft} samples, not {length}")
    segments = windowed_frames(xp.matrix_transpose(spectra), n_fft=n_fft)  # (..., T, n_fft)
    signal = _overlap_add(segments, hop, xp)[..., n_fft - hop : n_fft - hop + length]
    first = (hop - n_fft) % hop  # of the period, for the first sample after n_fft − hop
    envelope = np.resize(np.roll(causal_envelope(n_fft, hop), first), length)
    return signal / constant(envelope, signal, xp)


def frame_spectra(frames: Float[Any, "*batch n"]) -> Complex[Any, "*batch f"]:
    """Spectra (..., F) of frames (..., n_fft) of a signal, windowed here."""
    xp = array_namespace(frames)
    windowed = frames * constant(hann(frames.shape[-1]), frames, xp)
    return _rfft_in_torch()(windowed) if is_torch_array(windowed) else xp.fft.rfft(windowed, axis=-1)


def windowed_frames(spectra: Complex[Any, "*batch f"], *, n_fft: int) -> Float[Any, "*batch {n_fft}"]:
    """Frames (..., n_fft) of the spectra (..., F), windowed again, to be overlapped and added."""
    xp = array_namespace(spectra)
    segments = xp.fft.irfft(_real_ends(spectra, xp), n=n_fft, axis=-1)
    return segments * constant(hann(n_fft), segments, xp)


@lru_cache(maxsize=32)
def causal_envelope(n_fft: int, hop: int) -> np.ndarray:
    """Σ_i w²[j + i·hop] for j = 0 … hop − 1: (hop,) float64, read-only. At least 1/2 for a hop of at most n_fft/2."""
    squares = np.zeros(-(-n_fft // hop) * hop)
    squares[:n_fft] = hann(n_fft) ** 2
    envelope = squares.reshape(-1, hop).sum(0)
    envelope.flags.writeable = False
    return envelope


def constant(values: np.ndarray, like: Any, xp: Any) -> Any:
    """Convert ``values`` to an array of the namespace ``xp``, with the dtype and device of ``like``.

    JAX chooses the device of constants itself; a traced or sharded array has no device for them. PyTorch keeps those
    that it copied to another device.
    """
    if is_jax_array(like):
        return xp.asarray(values, dtype=like.dtype)
    if is_torch_array(like) and like.device.type != "cpu":
        content = np.ascontiguousarray(values).tobytes()
        return _on_device(content, values.dtype.str, values.shape, like.dtype, like.device)
    return xp.asarray(np.array(values), dtype=like.dtype, device=device(like))


@lru_cache(maxsize=256)
def _on_device(content: bytes, kind: str, shape: tuple[int, ...], dtype: Any, where: Any) -> Any:
    """A tensor on a device."""
    import torch

    with torch.inference_mode(False):
        return torch.asarray(np.frombuffer(bytearray(content), kind).reshape(shape), dtype=dtype, device=where)


@lru_cache(maxsize=32)
def hann(n_fft: int) -> np.ndarray:
    """Periodic Hann window, (n_fft,) float64, read-only. A symmetric one gives a relative error of 3e-3."""
    window = np.sin(np.pi * np.arange(n_fft) / n_fft) ** 2
    window.flags.writeable = False
    return window


@lru_cache(maxsize=32)
def _envelope(n_fft: int, hop: int, frames: int, length: int) -> np.ndarray:
    """Σ_t w²[s − t·hop] for the samples that :func:`istft` returns: (length,) float64, read-only."""
    squares = np.broadcast_to(hann(n_fft) ** 2, (frames, n_fft))
    envelope = _overlap_add(squares, hop, np)[n_fft // 2 : n_fft // 2 + length]
    envelope.flags.writeable = False
    return envelope


def _check(n_fft: int, hop: int) -> None:
    if n_fft < 2 or n_fft % 2 or hop < 1:
        raise ValueError(f"an STFT needs an even n_fft and a hop of at least 1, not {n_fft} and {hop}")


def _zeros(like: Any, shape: tuple[int, ...], xp: Any) -> Any:
    return xp.zeros(shape, dtype=like.dtype, device=None if is_jax_array(like) else device(like))


def _reflect(x: Any, pad: int, xp: Any) -> Any:
    """(..., S) → (..., S + 2·pad): reflection at the first and the last sample, without repeating them."""
    if x.shape[-1] < pad + 1:
        x = xp.concat([x, _zeros(x, (*x.shape[:-1], pad + 1 - x.shape[-1]), xp)], axis=-1)
    head, tail = x[..., 1 : pad + 1], x[..., -pad - 1 : -1]
    return xp.concat([xp.flip(head, axis=-1), x, xp.flip(tail, axis=-1)], axis=-1)


def _cut(x: Any, frames: int, n_fft: int, hop: int, xp: Any) -> Any:
    """(..., S) → (..., T, n_fft): frame t begins at sample t·hop. A hop above n_fft skips samples."""
    per_frame = -(-n_fft // hop)
    blocks = frames - 1 + per_frame
    missing = blocks * hop - x.shape[-1]
    if missing > 0:  # samples of the last blocks, which no frame uses
        x = xp.concat([x, _zeros(x, (*x.shape[:-1], missing), xp)], axis=-1)
    x = xp.reshape(x[..., : blocks * hop], (*x.shape[:-1], blocks, hop))  # (..., blocks, hop)
    return xp.concat([x[..., j : j + frames, :] for j in range(per_frame)], axis=-1)[..., :n_fft]


def _overlap_add(segments: Any, hop: int, xp: Any) -> Any:
    """(..., T, n_fft) → (..., (T − 1 + ⌈n_fft/hop⌉)·hop): overlap-add of all frames.

    Block j of frame t is added to block t + j of the signal. Arrange the blocks as a grid (j, t), append ⌈n_fft/hop⌉
    columns of zeros, flatten it and reshape it to rows one column shorter: row j is then shifted right by j columns,
    and the sum over rows is the signal, without a loop or a scatter.
    """
    *batch, frames, n_fft = segments.shape
    per_frame = -(-n_fft // hop)
    blocks = frames - 1 + per_frame
    if per_frame * hop > n_fft:
        gap = _zeros(segments, (*batch, frames, per_frame * hop - n_fft), xp)
        segments = xp.concat([segments, gap], axis=-1)
    grid = xp.moveaxis(xp.reshape(segments, (*batch, frames, per_frame, hop)), -2, -3)  # (..., j, t, hop)
    grid = xp.concat([grid, _zeros(segments, (*batch, per_frame, per_frame, hop), xp)], axis=-2)
    grid = xp.reshape(grid, (*batch, per_frame * (frames + per_frame), hop))[..., : per_frame * blocks, :]
    total = xp.sum(xp.reshape(grid, (*batch, per_frame, blocks, hop)), axis=-3)
    return xp.reshape(total, (*batch, blocks * hop))


@cache
def _rfft_in_torch() -> Callable[[Any], Any]:
    """Return ``torch.fft.rfft`` over the last axis, of even length, with its gradient by one ``irfft``.

    PyTorch's own gradient pads the spectra and transforms them as complex numbers, which takes five times as long.
    """
    import torch

    class RFFT(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.n_fft = x.shape[-1]
            return torch.fft.rfft(x)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, gradient: Any) -> Any:
            # irfft adds to every bin but the first and the last its conjugate at the negative frequency.
            halved = gradient * 0.5
            for end in (0, -1):
                halved[..., end] = gradient[..., end].real
            return torch.fft.irfft(halved, n=ctx.n_fft, norm="forward")

    return RFFT.apply


def _real_ends(spectra: Any, xp: Any) -> Any:
    """Set the imaginary parts of bins 0 and F − 1 of (..., T, F) to 0.

    On a CPU, NumPy, PyTorch and JAX ignore them; GPU libraries do not guarantee that.
    """
    first, last = (xp.astype(xp.real(spectra[..., k : k + 1]), spectra.dtype) for k in (0, spectra.shape[-1] - 1))
    return xp.concat([first, spectra[..., 1:-1], last], axis=-1)
