"""Augmentation of training segments; every random number comes from the generator passed in.

All draws are made whatever the probabilities are, so that two experiments that differ in one augmentation see the same
songs. Stems are float32 (sources, C, S) with C = 2 and full scale ±1.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    length = stems.shape[-1]
    # 20 ms of padding, so that the end does not ring into the start.
    padded = scipy.fft.next_fast_len(length + sample_rate // 50, real=True)
    frequency = np.arange(padded // 2 + 1) * (sample_rate / padded)
    response = 0.5 + 0.5 * np.cos(np.pi * np.clip((frequency - cutoff) / EDGE_HZ, 0, 1))
    spectrum = scipy.fft.rfft(stems, padded) * response.astype(np.float32)
    return scipy.fft.irfft(spectrum, padded, overwrite_x=True)[..., :length]


def dither(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Triangular float32 noise within ±STEP, so that no stem is digital silence, whose logarithm would diverge."""
    bits = rng.integers(0, 2**32, shape, np.uint32)  # two uniform 16-bit halves
    difference = (bits & 0xFFFF).astype(np.float32) - (bits >> 16).astype(np.float32)
    return difference * np.float32(STEP / 2**16)
