"""Audio effects: filters, dynamics, reverberation.

Signals are float32 (samples, 2) at 44.1 kHz unless stated otherwise.

Nothing here calls BLAS, because its results depend on the number of threads and a generated song must not.
"""

from __future__ import annotations

import numpy as np
from scipy import fft
from scipy.signal import butter, lfilter, sosfilt

#: Sample rate of generated songs in Hz.
SAMPLE_RATE = 44_100
#: A real number, spelled out because run-time type checkers do not accept an int as a float.
Real = float | int


def gain(decibels: Real) -> float:
    """Convert a level in dB to an amplitude factor."""
    return float(10 ** (decibels / 20))


def high_pass(x: np.ndarray, hertz: Real) -> np.ndarray:
    """Butterworth high-pass at ``hertz``, 12 dB per octave, along the first axis."""
    return _filter(x, hertz, "highpass")


def low_pass(x: np.ndarray, hertz: Real) -> np.ndarray:
    """Butterworth low-pass at ``hertz``, 12 dB per octave, along the first axis."""
    return _filter(x, hertz, "lowpass")


def _filter(x: np.ndarray, hertz: Real, kind: str, order: int = 2) -> np.ndarray:
    return sosfilt(butter(order, hertz, kind, fs=SAMPLE_RATE, output="sos"), x, axis=0).astype(np.float32)


def brickwall(x: np.ndarray, hertz: Real, width: Real = 600.0) -> np.ndarray:
    """Remove everything above ``hertz`` with a transition of ``width`` Hz, as lossy codecs do."""
    size = fft.next_fast_len(len(x), real=True)
    spectrum = fft.rfft(x.astype(np.float32), size, axis=0)
    frequency = np.arange(len(spectrum)) * (SAMPLE_RATE / size)
    ramp = np.clip((hertz + width / 2 - frequency) / width, 0, 1)
    spectrum *= (0.5 - 0.5 * np.cos(np.pi * ramp)).astype(np.float32)[:, None]
    return fft.irfft(spectrum, size, axis=0)[: len(x)].astype(np.float32)


def reverb(
    x: np.ndarray,
    rng: np.random.Generator,
    *,
    seconds: Real,
    wet: Real,
    bright: Real = 5000.0,
    predelay: Real = 0.015,
) -> np.ndarray:
    """Add reverberation from decaying stereo noise.

    ``seconds`` is the time to fall by 60 dB, ``wet`` the level in dB, ``bright`` the cut-off of a low-pass in Hz, and
    ``predelay`` is in seconds.
    """
    length = int(seconds * SAMPLE_RATE)
    decay = np.exp(-6.9 * np.arange(length, dtype=np.float32) / length)
    response = rng.standard_normal((length, 2), dtype=np.float32) * decay[:, None]
    response = high_pass(_filter(response, bright, "lowpass", 1), 180)
    response /= np.sqrt((response**2).sum(0, keepdims=True))
    response = np.concatenate([np.zeros((int(predelay * SAMPLE_RATE), 2), np.float32), response])
    size = fft.next_fast_len(len(x) + len(response), real=True)
    spectrum = fft.rfft(x.astype(np.float32), size, axis=0) * fft.rfft(response, size, axis=0)
    return (x + gain(wet) * fft.irfft(spectrum, size, axis=0)[: len(x)]).astype(np.float32)


def saturate(x: np.ndarray, drive: Real) -> np.ndarray:
    """Clip softly; ``drive`` 0.2 is hardly audible, 2 is warm, 8 is fuzz."""
    level = rms(x) + 1e-9
    return (np.tanh(x / level * (0.25 * drive)) * (level / (0.25 * drive))).astype(np.float32)


def exciter(x: np.ndarray, hertz: Real, amount: Real) -> np.ndarray:
    """Add ``amount`` times overtones of the band above ``hertz``, as studio enhancers do for dull samples."""
    upper = high_pass(x, hertz)
    level = rms(upper) + 1e-9
    bent = np.abs(upper) + 0.5 * np.tanh(3 * upper / level) * level
    return (x + amount * high_pass(bent, 1.5 * hertz)).astype(np.float32)


def compress(x: np.ndarray, amount: Real) -> np.ndarray:
    """Compress the dynamics towards the mean level; ``amount`` 0 does nothing, 1 flattens it."""
    power = lfilter([0.002], [1, -0.998], (x**2).mean(1))
    level = np.sqrt(power + 1e-12)
    return (x * np.clip((active_rms(x) / np.maximum(level, 1e-4)) ** amount, 0.3, 2.2)[:, None]).astype(np.float32)


def pan(x: np.ndarray, position: Real) -> np.ndarray:
    """Pan mono (samples,) to stereo (samples, 2) at equal power; ``position`` −1 is left, 1 is right."""
    angle = (float(np.clip(position, -1, 1)) + 1) * np.pi / 4
    return np.stack([x * np.cos(angle), x * np.sin(angle)], 1).astype(np.float32)


def echo(x: np.ndarray, seconds: Real, level: Real, repeats: int = 2) -> np.ndarray:
    """Add echoes ``seconds`` apart that alternate sides; the first is at ``level`` dB, each next one 6 dB lower."""
    out = x.copy()
    step = int(seconds * SAMPLE_RATE)
    for index in range(1, repeats + 1):
        if step * index < len(x):
            side = x[:, ::-1] if index % 2 else x
            out[step * index :] += side[: len(x) - step * index] * np.float32(gain(level - 6 * (index - 1)))
    return out


def smooth_noise(rng: np.random.Generator, shape: int | tuple[int, ...], pole: Real) -> np.ndarray:
    """Draw noise of unit variance, filtered along the first axis by one real pole (0 gives white noise)."""
    white = rng.standard_normal(shape)
    return lfilter([np.sqrt(1 - pole**2)], [1, -pole], white, axis=0)


def rms(x: np.ndarray) -> float:
    """Return the root mean square of all samples."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) if x.size else 0.0


def active(x: np.ndarray) -> np.ndarray:
    """Return a boolean per whole tenth of a second of ``x``: True if it is within 30 dB of the loudest."""
    power = _tenths(x)
    return power > max(power.max(initial=0.0) * 1e-3, 1e-12)


def active_rms(x: np.ndarray) -> float:
    """Return the root mean square over the active tenths of a second; tiny but never 0 for silence."""
    power = _tenths(x)[active(x)]
    return max(float(np.sqrt(power.mean())), 1e-9) if len(power) else 1e-9


def _tenths(x: np.ndarray) -> np.ndarray:
    """Mean power of each whole tenth of a second, (tenths,)."""
    hop = SAMPLE_RATE // 10
    blocks = x[: len(x) // hop * hop].astype(np.float32, copy=False).reshape(len(x) // hop, -1)
    return np.einsum("ij,ij->i", blocks, blocks) / max(blocks.shape[1], 1)
