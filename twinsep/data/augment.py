"""Augmentation of training segments; every random number comes from the generator passed in.

All draws are made whatever the probabilities are, so that two experiments that differ in one augmentation see the same
songs. Stems are float32 (sources, C, S) with C = 2 and full scale ±1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.fft
from jaxtyping import Float32

from twinsep.config import DataConfig

#: Range of the random low-pass's cut-off in Hz. Compressed music has nothing above about 16 kHz; a network trained on
#: full-band songs alone would take that for a cue.
CUTOFF_HZ = (11_000.0, 20_000.0)
#: Width of the low-pass's transition above the cut-off, in Hz.
EDGE_HZ = 500.0
#: One step of 16-bit sound, full scale being 1.
STEP = 2.0**-15


def vary(
    stems: Float32[np.ndarray, "n 2 s"], data: DataConfig, rng: np.random.Generator
) -> Float32[np.ndarray, "n 2 s"]:
    """Vary each source separately: gain uniform in ±``gain_db`` dB, random channel swap, random sign.

    The channels of ``stems`` are swapped in place; the result is a new array.
    """
    count = len(stems)
    gain = 10 ** (rng.uniform(-1, 1, count) * data.gain_db / 20)
    swapped = rng.random(count) < data.channel_swap
    sign = np.where(rng.random(count) < data.polarity, -1, 1)
    stems[swapped] = stems[swapped, ::-1]
    return stems * (gain * sign).astype(np.float32)[:, None, None]


def silent_target(data: DataConfig, targets: Sequence[str], rng: np.random.Generator) -> str | None:
    """Draw a target to silence with probability ``silent_target``, otherwise return None.

    The other sources stay, so that the model has something to remove where it should return silence.
    """
    silent = rng.random() < data.silent_target
    target = targets[int(rng.integers(len(targets)))]
    return target if silent else None


def random_low_pass(
    stems: Float32[np.ndarray, "n 2 s"], data: DataConfig, sample_rate: int, rng: np.random.Generator
) -> Float32[np.ndarray, "n 2 s"]:
    """Low-pass all sources alike with probability ``data.low_pass``, at a cut-off uniform in CUTOFF_HZ."""
    filtered, cutoff = rng.random() < data.low_pass, rng.uniform(*CUTOFF_HZ)
    return low_pass(stems, cutoff, sample_rate) if filtered else stems


def low_pass(
    stems: Float32[np.ndarray, "*channels s"], cutoff: float, sample_rate: int
) -> Float32[np.ndarray, "*channels s"]:
    """Zero-phase low-pass: gain 1 up to ``cutoff`` Hz, a half cosine down to 0 over EDGE_HZ, 0 above."""
    return _filter(stems, sample_rate, lambda frequency: _slope(frequency - cutoff))


def band_stop(
    stems: Float32[np.ndarray, "*channels s"], low: float, high: float, sample_rate: int
) -> Float32[np.ndarray, "*channels s"]:
    """Zero-phase band-stop: gain 0 from ``low`` to ``high`` Hz, half cosines to 1 over EDGE_HZ on either side."""
    return _filter(stems, sample_rate, lambda frequency: 1 - _slope(frequency - high) * _slope(low - frequency))


def _slope(above: np.ndarray) -> np.ndarray:
    """Gain of a low-pass by the distance above its cut-off in Hz."""
    return 0.5 + 0.5 * np.cos(np.pi * np.clip(above / EDGE_HZ, 0, 1))


def _filter(stems: np.ndarray, sample_rate: int, response: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Multiply the spectrum of the last axis by ``response``, a function of the frequency in Hz."""
    length = stems.shape[-1]
    # 20 ms of padding, so that the end does not ring into the start.
    padded = scipy.fft.next_fast_len(length + sample_rate // 50, real=True)
    frequency = np.arange(padded // 2 + 1) * (sample_rate / padded)
    spectrum = scipy.fft.rfft(stems, padded) * response(frequency).astype(np.float32)
    return scipy.fft.irfft(spectrum, padded, overwrite_x=True)[..., :length]


def dither(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Triangular float32 noise within ±STEP, so that no stem is digital silence, whose logarithm would diverge."""
    bits = rng.integers(0, 2**32, shape, np.uint32)  # two uniform 16-bit halves
    difference = (bits & 0xFFFF).astype(np.float32) - (bits >> 16).astype(np.float32)
    return difference * np.float32(STEP / 2**16)


def corrupt(
    mixture: Float32[np.ndarray, "2 s"], data: DataConfig, sample_rate: int, rng: np.random.Generator
) -> Float32[np.ndarray, "2 s"]:
    """Silence a span and a frequency range of the mixture, and add noise, so that a model does not rely on any detail.

    Span and range are uniform up to ``data.time_mask`` s and ``data.frequency_mask`` Hz (SpecAugment: Park et al. 2019,
    arXiv 1904.08779), the noise is Gaussian with rms ``data.noise``.
    """
    length = mixture.shape[-1]
    span = round(rng.uniform(0, data.time_mask) * sample_rate)
    start = int(rng.integers(max(1, length - span + 1)))
    width = rng.uniform(0, data.frequency_mask)
    lowest = rng.uniform(0, max(0.0, sample_rate / 2 - width))
    if width:
        mixture = band_stop(mixture, lowest, lowest + width, sample_rate)
    if data.noise:
        mixture = mixture + np.float32(data.noise) * rng.standard_normal(mixture.shape, np.float32)
    if span:
        mixture = mixture.copy()
        mixture[:, start : start + span] = 0
    return mixture
