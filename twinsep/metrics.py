"""Metrics of separation: SI-SDR, uSDR, framewise and chunked SDR, leakage into silence, bleedless and fullness.

All take waveforms (..., C, S) with full scale ±1, of one array-API namespace, and return dB, except bleedless and
fullness; leading axes are examples.
Three rules hold for every metric, so that tables have neither gaps nor infinite means:

- A metric is NaN where it is undefined: if the reference has no energy, or the passage to measure does not exist. This
  never depends on the estimate alone, so that muting a stem cannot remove its score (museval's silent frames are the
  exception, see :func:`framewise_sdr`).
- Ratios are clipped to ±``CAP_DB`` (100 dB; 16-bit audio has 96 dB): a perfect estimate scores 100, never inf.
- :func:`aggregate` skips NaN and reports how many values remain.

Float32 suffices: for a two-minute stereo track every SDR is within 2e-6 dB of the float64 result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device
from jaxtyping import Float

from twinsep.errors import InputError
from twinsep.stft import constant

#: Largest absolute value of any metric, in dB.
CAP_DB = 100.0
#: ε of the Music Demixing Challenge's SDR, an energy.
_MDX_EPS = 1e-7
#: Log mel spectrum of :func:`bleedless_fullness`: STFT, bands, least magnitude, range in dB, frames in a part.
_MEL_N_FFT, _MEL_HOP, _MEL_BANDS, _MEL_FLOOR, _MEL_RANGE_DB, _MEL_FRAMES = 4096, 1024, 512, 1e-10, 80.0, 512
#: Blocks of mel filters that are multiplied with one range of bins.
_MEL_BLOCKS = 16
#: Rms in dB of full scale below which :func:`leakage` takes a frame as silent.
SILENCE_DBFS = -60.0


def si_sdr(estimate: Any, reference: Any) -> Any:
    """Scale-invariant SDR in dB, (..., C, S) → (...,): Le Roux et al. 2019 (arXiv 1811.02508, equation 5).

    10·log10(‖s‖²/‖x̂ − s‖²), s = ⟨x̂,x⟩x/‖x‖²; the channels form one vector with its mean removed.
    NaN if the reference is constant; −``CAP_DB`` if only the estimate is.
    Raises :class:`InputError` for shapes that differ.
    """
    xp = _namespace(estimate, reference)
    estimate, reference = (xp.reshape(x, (*x.shape[:-2], -1)) for x in (estimate, reference))
    estimate, reference = (x - xp.mean(x, axis=-1, keepdims=True) for x in (estimate, reference))
    power = xp.sum(reference**2, axis=-1, keepdims=True)
    scale = xp.sum(estimate * reference, axis=-1, keepdims=True) / xp.where(power > 0, power, 1.0)
    wanted = scale * reference
    ratio = _decibels(xp.sum(wanted**2, axis=-1), xp.sum((estimate - wanted) ** 2, axis=-1), xp)
    return xp.where(power[..., 0] > 0, ratio, math.nan)


def usdr(estimate: Any, reference: Any) -> Any:
    """SDR of the whole track in dB, (..., C, S) → (...,): Mitsufuji et al. 2022 (arXiv 2108.13559, equation 1).

    10·log10((Σ x² + 1e-7)/(Σ (x − x̂)² + 1e-7)) over channels and samples, the "uSDR" of the Music and Sound Demixing
    Challenges, except that a silent reference is NaN. A perfect estimate scores less than ``CAP_DB`` if Σ x² < 1,000 (a
    few quiet seconds). Raises :class:`InputError` for shapes that differ.
    """
    xp = _namespace(estimate, reference)
    power, error = _energy(reference, xp), _energy(reference - estimate, xp)
    return xp.where(power > 0, _decibels(power + _MDX_EPS, error + _MDX_EPS, xp), math.nan)


def framewise_sdr(
    estimate: Any, reference: Any, *, sample_rate: int, window_seconds: float = 1.0, hop_seconds: float = 1.0
) -> Any:
    """museval's SDR (BSS Eval v4, images) of each frame in dB, (..., C, S) → (..., frames).

    BSS Eval separates spatial, interference and artefact errors by 512-tap projections, but its SDR divides by their
    sum, which is x̂ − x: 10·log10(Σ x²/Σ (x̂ − x)²), without any filter (Stöter, Liutkus and Ito 2018, arXiv
    1804.06267). Frames are museval's: all full windows, without the rest; one frame if the signal is no longer than a
    window. As in museval, a frame is NaN if the channels of the reference or of the estimate sum to 0 in every sample.
    (museval then drops the frame for *all* sources; here other sources keep it.)

    Raises :class:`InputError` for shapes that differ, and for a window or hop shorter than one sample.
    """
    xp = _namespace(estimate, reference)
    window, hop = round(window_seconds * sample_rate), round(hop_seconds * sample_rate)
    if min(window, hop) < 1:
        raise InputError(f"a window of {window_seconds} s and a hop of {hop_seconds} s must hold at least one sample")
    x, y = (_frames(z, window, hop, xp) for z in (reference, estimate))
    audible = xp.any(xp.sum(x, axis=-3) != 0, axis=-1) & xp.any(xp.sum(y, axis=-3) != 0, axis=-1)
    power, error = (xp.sum(xp.sum(z**2, axis=-1), axis=-2) for z in (x, y - x))
    return xp.where(audible, _decibels(power, error, xp), math.nan)


def csdr(estimate: Any, reference: Any, *, sample_rate: int) -> Any:
    """Chunked SDR in dB, (..., C, S) → (...,): the median of :func:`framewise_sdr` over 1-s frames.

    Skips NaN frames; NaN if all frames are. Its median over tracks is the "median of medians" of SiSEC 2018.
    Raises :class:`InputError` for shapes that differ.
    """
    frames = framewise_sdr(estimate, reference, sample_rate=sample_rate)
    xp = array_namespace(frames)
    valid = ~xp.isnan(frames)
    ordered = xp.sort(xp.where(valid, frames, 2 * CAP_DB), axis=-1)  # sort undefined frames to the end
    count = xp.sum(xp.astype(valid, frames.dtype), axis=-1, keepdims=True)
    index = constant(np.arange(frames.shape[-1]), frames, xp)
    # Half of each of the two middle frames, which coincide for an odd count. Selected by comparison, as a traced number
    # cannot be an index.
    halves = (xp.astype(index == xp.floor(middle), frames.dtype) / 2 for middle in ((count - 1) / 2, count / 2))
    return xp.where(count[..., 0] > 0, xp.sum(ordered * sum(halves), axis=-1), math.nan)


def leakage(
    estimate: Any,
    reference: Any,
    mixture: Any,
    *,
    sample_rate: int,
    frame_seconds: float = 0.1,
    silence_dbfs: float = SILENCE_DBFS,
) -> Any:
    """Leakage into silence in dB, (..., C, S) → (...,): energy of the estimate over the mixture's; lower is better.

    10·log10(Σ x̂²/Σ m²) over all frames in which the rms of the reference is below ``silence_dbfs``: −20 dB means that
    1 % of the energy to be removed remains. museval ignores these frames. A frame of 100 ms is two analysis windows,
    long enough that a neighbouring onset does not dominate it and short enough for rests between phrases. −60 dB of
    full scale is above the dither and bleed of studio stems, and inaudible in a song.

    NaN if the mixture has no energy in frames with a silent reference; −``CAP_DB`` if the estimate has none.
    Raises :class:`InputError` for shapes that differ, and for a frame shorter than one sample.
    """
    xp = _namespace(estimate, reference, mixture)
    size = round(frame_seconds * sample_rate)
    if size < 1:
        raise InputError(f"a frame of {frame_seconds} s at {sample_rate} Hz holds no sample")
    frames = (_frames(x, size, size, xp) for x in (estimate, reference, mixture))
    leaked, wanted, mixed = (xp.mean(xp.mean(x**2, axis=-1), axis=-2) for x in frames)
    silent = xp.astype(wanted < 10 ** (silence_dbfs / 10), wanted.dtype)
    leaked, mixed = xp.sum(leaked * silent, axis=-1), xp.sum(mixed * silent, axis=-1)
    return xp.where(mixed > 0, _decibels(leaked, xp.where(mixed > 0, mixed, 1.0), xp), math.nan)


def bleedless_fullness(estimate: Any, reference: Any, *, sample_rate: int) -> tuple[Any, Any]:
    """Bleedless and fullness, 0 to 100 (best): waveforms (..., C, S) → two arrays (...,).

    Bleedless falls with what the estimate adds to the reference, fullness with what it lacks. The field's leaderboards
    use this pair; Music-Source-Separation-Training (ZFTurbo, ``bleed_full`` in its metrics.py) defines it. D is the
    difference of the log mel spectra of estimate and reference in dB, over 512 mel bands (:func:`mel_filters`) of the
    magnitudes of a 4,096-point STFT with a Hann window and hop 1,024, each clipped 80 dB below its maximum. Bleedless
    is 100/(1 + mean of the positive D), fullness 100/(1 − mean of the negative D).

    NaN if the reference has no energy. Raises :class:`InputError` for shapes that differ.
    """
    xp = _namespace(estimate, reference)
    levels = [_mel_levels(x, sample_rate, xp) for x in (estimate, reference)]
    difference = levels[0] - levels[1]
    scores = []
    for part in (difference, -difference):
        positive = xp.astype(part > 0, part.dtype)
        count = xp.sum(positive, axis=(-3, -2, -1))
        mean = xp.sum(part * positive, axis=(-3, -2, -1)) / xp.where(count > 0, count, 1.0)
        scores.append(xp.where(_energy(reference, xp) > 0, 100 / (1 + mean), math.nan))
    return scores[0], scores[1]


def _mel_levels(x: Any, sample_rate: int, xp: Any) -> Any:
    """Log mel spectrum in dB: (..., C, S) → (..., C, frames, bands)."""
    margin = xp.zeros((*x.shape[:-1], _MEL_N_FFT // 2), dtype=x.dtype, device=device(x))
    padded = xp.concat([margin, x, margin], axis=-1)  # centred frames
    window = constant(np.hanning(_MEL_N_FFT + 1)[:-1], x, xp)
    # Filters are narrow: some at a time are multiplied with the bins that they cover.
    blocks = []
    for block in np.split(mel_filters(_MEL_BANDS, _MEL_N_FFT, sample_rate), _MEL_BLOCKS):
        covered = np.flatnonzero(block.any(0))
        bins = slice(covered[0], covered[-1] + 1) if covered.size else slice(1)
        blocks.append((bins, constant(block[:, bins].T, x, xp)))
    count = 1 + x.shape[-1] // _MEL_HOP
    parts = []
    for first in range(0, count, _MEL_FRAMES):  # in parts, which bounds the memory for a long song
        last = min(count, first + _MEL_FRAMES)
        part = padded[..., first * _MEL_HOP : (last - 1) * _MEL_HOP + _MEL_N_FFT]
        magnitudes = xp.abs(xp.fft.rfft(_frames(part, _MEL_N_FFT, _MEL_HOP, xp) * window))
        parts.append(xp.concat([magnitudes[..., bins] @ filters for bins, filters in blocks], axis=-1))
    mel = xp.concat(parts, axis=-2)
    level = 20 * xp.log10(xp.where(mel > _MEL_FLOOR, mel, _MEL_FLOOR))
    floor = xp.max(level, axis=(-3, -2, -1), keepdims=True) - _MEL_RANGE_DB
    return xp.where(level > floor, level, floor)


@lru_cache(maxsize=4)
def mel_filters(bands: int, n_fft: int, sample_rate: int) -> Float[np.ndarray, "bands f"]:
    """Triangular filters on Slaney's mel scale from 0 Hz to half the sample rate, each of area 1 over frequency in Hz.

    The scale is linear to 1 kHz, f = 200·m/3, and logarithmic above, f = 1000·6.4^((m − 15)/27) (Slaney 1998, Auditory
    Toolbox). Neighbouring filters overlap by half; between bins, a narrow filter can be empty.
    """
    edges = np.linspace(0, 15 + 27 * np.log(sample_rate / 2000) / np.log(6.4), bands + 2)
    hz = np.where(edges < 15, 200 / 3 * edges, 1000 * 6.4 ** ((edges - 15) / 27))
    frequency = np.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    rising = (frequency - hz[:-2, None]) / np.diff(hz)[:-1, None]
    falling = (hz[2:, None] - frequency) / np.diff(hz)[1:, None]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (hz[2:] - hz[:-2]))[:, None]


def aggregate(values: Iterable[float]) -> dict[str, float | int]:
    """Return "median", "mean" and number "n" of the values that are not NaN; NaN, NaN and 0 if there are none.

    Raises ValueError for ±inf, which no metric here returns and whose mean is meaningless.
    """
    array = np.asarray([float(value) for value in values], dtype=np.float64)
    valid = array[~np.isnan(array)]
    if np.isinf(valid).any():
        raise ValueError(f"cannot aggregate infinite values; clip metrics to ±{CAP_DB:g} dB first")
    if not valid.size:
        return {"median": math.nan, "mean": math.nan, "n": 0}
    return {"median": float(np.median(valid)), "mean": float(np.mean(valid)), "n": int(valid.size)}


def _namespace(*signals: Any) -> Any:
    """Return the namespace of the signals; raises :class:`InputError` unless they have one shape (..., C, S)."""
    shapes = [tuple(x.shape) for x in signals]
    if len(set(shapes)) != 1 or len(shapes[0]) < 2 or shapes[0][-1] < 1:
        raise InputError(f"signals to compare must have one shape (..., channels, samples), not {shapes}")
    return array_namespace(*signals)


def _energy(x: Any, xp: Any) -> Any:
    """Σ x² over channels and samples: (..., C, S) → (...,)."""
    return xp.sum(xp.sum(x**2, axis=-1), axis=-1)


def _frames(x: Any, window: int, hop: int, xp: Any) -> Any:
    """(..., C, S) → (..., C, frames, window): all full windows, or the whole of a shorter signal."""
    window = min(window, x.shape[-1])
    count = 1 + (x.shape[-1] - window) // hop
    return xp.stack([x[..., i * hop : i * hop + window] for i in range(count)], axis=-2)


def _decibels(numerator: Any, denominator: Any, xp: Any) -> Any:
    """10·log10(a/b) clipped to ±``CAP_DB``, for energies a, b ≥ 0; −``CAP_DB`` for 0/0."""
    low, high = 10 ** (-CAP_DB / 10), 10 ** (CAP_DB / 10)
    # Compare products: a quotient would divide by zero, of which frameworks warn.
    above, below = numerator > high * denominator, numerator <= low * denominator
    safe = xp.where(above | below, 1.0, numerator) / xp.where(above | below, 1.0, denominator)
    return xp.where(below, -CAP_DB, xp.where(above, CAP_DB, 10 * xp.log10(safe)))
