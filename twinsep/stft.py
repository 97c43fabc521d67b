"""The short-time Fourier transform and its inverse, once, on any array-API namespace.

Both work on NumPy, PyTorch (under autograd) and JAX (inside ``jit`` and ``grad``), float32 giving
complex64 and float64 complex128. Definition (``torch.stft``'s with ``center=True``, by our own code):
periodic Hann window w[n] = sin²(πn/n_fft), centred frames over reflect padding of n_fft/2 samples,
not normalised,

    X[f, t] = Σ_n w[n] · x[t·hop + n − n_fft/2] · exp(−2πi·f·n/n_fft),   t = 0 … ⌊S/hop⌋

and the least-squares inverse of Griffin and Lim (1984, IEEE TASSP 32(2), equation 6).

Frames are cut and added by whole hop-sized blocks: a frame is ⌈n_fft/hop⌉ neighbouring blocks. A
gather would say the same, but its backward pass is a scatter, many times slower on a CPU.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_jax_array
from jaxtyping import Complex, Float


def stft(x: Float[Any, "*batch s"], *, n_fft: int, hop: int) -> Complex[Any, "*batch f t"]:
    """Spectra of signals: (..., S) → (..., F, T), F = n_fft/2 + 1, T = 1 + ⌊S/hop⌋.

    ``n_fft`` (even) and ``hop`` are in samples. Signals shorter than n_fft/2 + 1 samples, too short
    to reflect, are first zero-padded on the right to that, which then is S.
    Raises TypeError unless ``x`` is float32 or float64, ValueError for an odd n_fft or a hop below 1.
    """
    xp = array_namespace(x)
    _check(n_fft, hop)
    if x.dtype not in (xp.float32, xp.float64):
        raise TypeError(f"stft takes float32 or float64 signals, not {x.dtype}")
    x = _reflect(x, n_fft // 2, xp)
    frames = 1 + (x.shape[-1] - n_fft) // hop
    windowed = _cut(x, frames, n_fft, hop, xp) * constant(hann(n_fft), x, xp)
    return xp.matrix_transpose(xp.fft.rfft(windowed, axis=-1))


def istft(spectra: Complex[Any, "*batch f t"], *, n_fft: int, hop: int, length: int) -> Float[Any, "*batch {length}"]:
    """Signals of spectra: (..., F, T) → (..., length), the inverse of :func:`stft`.

    x[s] = Σ_t w·irfft(X_t) / Σ_t w², the imaginary parts of bins 0 and n_fft/2 ignored; the first
    n_fft/2 samples are dropped and the next ``length`` kept, the tail past (T−1)·hop included.
    There only the falling half of the last windows remains: with hop = n_fft/2 its last w² is
    1e-12 and float32 rounding shows; with hop ≤ n_fft/4 no w² is below 1/4.

    Raises ValueError for a hop over n_fft/2 (samples no window covers), a bin count that is not
    n_fft/2 + 1, or a ``length`` beyond the last window.
    """
    xp = array_namespace(spectra)
    _check(n_fft, hop)
    bins, frames = spectra.shape[-2:]
    if hop > n_fft // 2 or bins != n_fft // 2 + 1:
        raise ValueError(f"no inverse: n_fft {n_fft} needs {n_fft // 2 + 1} bins and a hop up to half of it")
    if not 0 <= length <= (frames - 1) * hop + n_fft // 2:
        raise ValueError(f"{frames} frames hold {(frames - 1) * hop + n_fft // 2} samples, not {length}")
    segments = xp.fft.irfft(_real_ends(xp.matrix_transpose(spectra), xp), n=n_fft, axis=-1)
    signal = _overlap_add(segments * constant(hann(n_fft), segments, xp), hop, xp)
    signal = signal[..., n_fft // 2 : n_fft // 2 + length]
    return signal / constant(_envelope(n_fft, hop, frames, length), signal, xp)


def constant(values: np.ndarray, like: Any, xp: Any) -> Any:
    """``values`` as an array of the namespace ``xp``, in the dtype and on the device of ``like``.

    JAX places constants by itself; a device read from a traced or sharded array is none for them.
    """
    if is_jax_array(like):
        return xp.asarray(values, dtype=like.dtype)
    return xp.asarray(np.array(values), dtype=like.dtype, device=device(like))


@lru_cache(maxsize=32)
def hann(n_fft: int) -> np.ndarray:
    """Periodic Hann window, (n_fft,) float64, read-only. A symmetric one would cost 3e-3 of the signal."""
    window = np.sin(np.pi * np.arange(n_fft) / n_fft) ** 2
    window.flags.writeable = False
    return window


@lru_cache(maxsize=32)
def _envelope(n_fft: int, hop: int, frames: int, length: int) -> np.ndarray:
    """Σ_t w²[s − t·hop] over the samples that :func:`istft` keeps: (length,) float64, read-only."""
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
    """(..., S) → (..., S + 2·pad): mirrored about the first and the last sample, neither repeated."""
    if x.shape[-1] < pad + 1:
        x = xp.concat([x, _zeros(x, (*x.shape[:-1], pad + 1 - x.shape[-1]), xp)], axis=-1)
    head, tail = x[..., 1 : pad + 1], x[..., -pad - 1 : -1]
    return xp.concat([xp.flip(head, axis=-1), x, xp.flip(tail, axis=-1)], axis=-1)


def _cut(x: Any, frames: int, n_fft: int, hop: int, xp: Any) -> Any:
    """(..., S) → (..., T, n_fft): frame t begins at sample t·hop. A hop over n_fft skips samples."""
    per_frame = -(-n_fft // hop)
    blocks = frames - 1 + per_frame
    missing = blocks * hop - x.shape[-1]
    if missing > 0:  # samples of the last blocks that no frame will keep
        x = xp.concat([x, _zeros(x, (*x.shape[:-1], missing), xp)], axis=-1)
    x = xp.reshape(x[..., : blocks * hop], (*x.shape[:-1], blocks, hop))
    return xp.concat([x[..., j : j + frames, :] for j in range(per_frame)], axis=-1)[..., :n_fft]


def _overlap_add(segments: Any, hop: int, xp: Any) -> Any:
    """(..., T, n_fft) → (..., (T − 1 + ⌈n_fft/hop⌉)·hop): the sum of all frames, each in its place.

    Block j of frame t belongs to block t + j of the signal. With one column of zeros for each block
    of a frame, appended to T, the flattened (j, t) grid read back one column narrower has shifted
    row j by j places: the sum over rows is the signal, without a loop or a scatter.
    """
    *batch, frames, n_fft = segments.shape
    per_frame = -(-n_fft // hop)
    blocks = frames - 1 + per_frame
    if per_frame * hop > n_fft:
        gap = _zeros(segments, (*batch, frames, per_frame * hop - n_fft), xp)
        segments = xp.concat([segments, gap], axis=-1)
    grid = xp.moveaxis(xp.reshape(segments, (*batch, frames, per_frame, hop)), -2, -3)
    grid = xp.concat([grid, _zeros(segments, (*batch, per_frame, per_frame, hop), xp)], axis=-2)
    grid = xp.reshape(grid, (*batch, per_frame * (frames + per_frame), hop))[..., : per_frame * blocks, :]
    total = xp.sum(xp.reshape(grid, (*batch, per_frame, blocks, hop)), axis=-3)
    return xp.reshape(total, (*batch, blocks * hop))


def _real_ends(spectra: Any, xp: Any) -> Any:
    """(..., T, F) with bins 0 and F − 1 made real.

    NumPy, PyTorch and JAX ignore those imaginary parts on a CPU; no GPU library promises to.
    """
    first, last = (xp.astype(xp.real(spectra[..., k : k + 1]), spectra.dtype) for k in (0, spectra.shape[-1] - 1))
    return xp.concat([first, spectra[..., 1:-1], last], axis=-1)
