"""What is reported of a separation: SI-SDR, uSDR, framewise and chunked SDR, leakage into silence.

All take waveforms (..., C, S) at full scale ±1 of one array-API namespace, give dB, and treat the
leading axes as examples. Three rules hold for every number here, so that no table has a hole or a
poisoned mean:

- A metric that is undefined is NaN: one whose reference has no energy, or a passage that does not
  exist. It never depends on the estimate alone, so that muting a stem cannot make its score vanish
  (the frames that museval drops are the exception, named where they are dropped).
- A ratio is held within ±``CAP_DB`` (100 dB, past the 96 dB of 16-bit audio): a perfect estimate
  scores 100 and a hopeless one −100, never ±inf.
- :func:`aggregate` skips NaN and says how many values were left.

Float32 is enough: over a two-minute stereo track every SDR here is within 2e-6 dB of float64's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from twinsep.errors import InputError
from twinsep.stft import constant

#: Largest absolute value of any metric, dB.
CAP_DB = 100.0
#: The ε of the Music Demixing Challenge's SDR, an energy.
_MDX_EPS = 1e-7
#: Frames below this rms, in dB of full scale, are silence to :func:`leakage`.
SILENCE_DBFS = -60.0


def si_sdr(estimate: Any, reference: Any) -> Any:
    """Scale-invariant SDR in dB, (..., C, S) → (...,): Le Roux et al. 2019 (arXiv 1811.02508, equation 5).

    Channels are one vector with its mean removed; with s = ⟨x̂,x⟩x/‖x‖², 10·log10(‖s‖²/‖x̂ − s‖²).
    NaN where the reference is constant; −``CAP_DB`` where the estimate is and the reference is not.
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

    10·log10((Σ x² + 1e-7)/(Σ (x − x̂)² + 1e-7)) over channels and samples: the "uSDR" of the Music and
    Sound Demixing Challenges. Theirs gives a silent reference a number; here it is NaN. A perfect
    estimate of less than 1,000 units of energy (a few quiet seconds) stays below ``CAP_DB``.
    Raises :class:`InputError` for shapes that differ.
    """
    xp = _namespace(estimate, reference)
    power, error = _energy(reference, xp), _energy(reference - estimate, xp)
    return xp.where(power > 0, _decibels(power + _MDX_EPS, error + _MDX_EPS, xp), math.nan)


def framewise_sdr(
    estimate: Any, reference: Any, *, sample_rate: int, window_seconds: float = 1.0, hop_seconds: float = 1.0
) -> Any:
    """museval's SDR (BSS Eval v4, images) of each frame in dB, (..., C, S) → (..., frames).

    BSS Eval's error terms are spatial, interference and artefact distortion, told apart by 512-tap
    projections, but its SDR divides by their sum, which is x̂ − x: 10·log10(Σ x²/Σ (x̂ − x)²), no
    filter needed (Stöter, Liutkus and Ito 2018, arXiv 1804.06267). Frames are museval's: every full
    window, the rest dropped; one frame when the signal is no longer than a window. NaN, as there,
    where the channels of reference or of estimate sum to 0 in every sample of the frame. museval
    drops a frame for *all* its sources when one is silent; give it sources that are not.

    Raises :class:`InputError` for shapes that differ or a window or hop below one sample.
    """
    xp = _namespace(estimate, reference)
    window, hop = round(window_seconds * sample_rate), round(hop_seconds * sample_rate)
    if min(window, hop) < 1:
        raise InputError(f"a window of {window_seconds} s and a hop of {hop_seconds} s must hold at least a sample")
    x, y = (_frames(z, window, hop, xp) for z in (reference, estimate))
    sounds = xp.any(xp.sum(x, axis=-3) != 0, axis=-1) & xp.any(xp.sum(y, axis=-3) != 0, axis=-1)
    power, error = (xp.sum(xp.sum(z**2, axis=-1), axis=-2) for z in (x, y - x))
    return xp.where(sounds, _decibels(power, error, xp), math.nan)


def csdr(estimate: Any, reference: Any, *, sample_rate: int) -> Any:
    """Chunked SDR in dB, (..., C, S) → (...,): the median of :func:`framewise_sdr` over 1-s frames.

    NaN frames are skipped, and a track of nothing else is NaN. The median over tracks of this is
    the "median of medians" of SiSEC 2018. Raises :class:`InputError` for shapes that differ.
    """
    frames = framewise_sdr(estimate, reference, sample_rate=sample_rate)
    xp = array_namespace(frames)
    valid = ~xp.isnan(frames)
    ordered = xp.sort(xp.where(valid, frames, 2 * CAP_DB), axis=-1)  # undefined frames go to the end
    count = xp.sum(xp.astype(valid, frames.dtype), axis=-1, keepdims=True)
    place = constant(np.arange(frames.shape[-1]), frames, xp)
    # The two middle ones, the same one for an odd count: nothing here may index by a traced number.
    halves = (xp.astype(place == xp.floor(middle), frames.dtype) / 2 for middle in ((count - 1) / 2, count / 2))
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
    """Energy of the estimate where its reference is silent, in dB of the mixture's there: (...,); lower is better.

    10·log10(Σ x̂²/Σ m²) over all frames whose reference has an rms below ``silence_dbfs``: −20 dB says
    that a hundredth of the sound that should have gone is left. museval cannot see these passages.
    Frames are 100 ms: two analysis windows, so that the smear of a neighbouring onset does not decide
    a frame, and short enough to fit the rests between phrases. −60 dB of full scale lies above the
    dither and bleed of studio stems and is inaudible under a song.

    NaN where no frame has a silent reference under a mixture with energy; −``CAP_DB`` for an estimate
    that is silent there. Raises :class:`InputError` for shapes that differ or a frame below one sample.
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


def aggregate(values: Iterable[float]) -> dict[str, float | int]:
    """``{"median", "mean", "n"}`` of the values that are not NaN; n counts those, and none give NaN and 0.

    Raises ValueError for ±inf: no metric here gives it, and a mean of it says nothing.
    """
    array = np.asarray([float(value) for value in values], dtype=np.float64)
    kept = array[~np.isnan(array)]
    if np.isinf(kept).any():
        raise ValueError(f"cannot aggregate infinite values; hold metrics within ±{CAP_DB:g} dB first")
    if not kept.size:
        return {"median": math.nan, "mean": math.nan, "n": 0}
    return {"median": float(np.median(kept)), "mean": float(np.mean(kept)), "n": int(kept.size)}


def _namespace(*signals: Any) -> Any:
    """The signals' namespace, once their shapes are known to be one (..., C, S)."""
    shapes = [tuple(x.shape) for x in signals]
    if len(set(shapes)) != 1 or len(shapes[0]) < 2 or shapes[0][-1] < 1:
        raise InputError(f"signals to compare must have one shape (..., channels, samples), not {shapes}")
    return array_namespace(*signals)


def _energy(x: Any, xp: Any) -> Any:
    """Σ x² over channels and samples: (..., C, S) → (...,)."""
    return xp.sum(xp.sum(x**2, axis=-1), axis=-1)


def _frames(x: Any, window: int, hop: int, xp: Any) -> Any:
    """(..., C, S) → (..., C, frames, window): every full window, or all of a signal no longer than one."""
    window = min(window, x.shape[-1])
    count = 1 + (x.shape[-1] - window) // hop
    return xp.stack([x[..., i * hop : i * hop + window] for i in range(count)], axis=-2)


def _decibels(numerator: Any, denominator: Any, xp: Any) -> Any:
    """10·log10(a/b) held within ±``CAP_DB``, for energies a, b ≥ 0; 0/0 is the lower end."""
    low, high = 10 ** (-CAP_DB / 10), 10 ** (CAP_DB / 10)
    # Compared as products: nothing is divided by a zero, and no framework has to warn of it.
    above, below = numerator > high * denominator, numerator <= low * denominator
    safe = xp.where(above | below, 1.0, numerator) / xp.where(above | below, 1.0, denominator)
    return xp.where(below, -CAP_DB, xp.where(above, CAP_DB, 10 * xp.log10(safe)))
