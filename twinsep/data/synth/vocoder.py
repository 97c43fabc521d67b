"""Vocoder: synthesise sound from frames of pitch and cepstrum, by pulses and noise through minimum-phase filters.

The excitation is made in the time domain (band-limited pulses at exact times, and noise that swells with them), cut
into overlapping Hann frames, filtered in the frequency domain and overlap-added. This costs about a quarter of WORLD's
own synthesis and gives control of the noise above the formants.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft

from twinsep.data.synth.analysis import HERTZ, N_FFT
from twinsep.data.synth.effects import SAMPLE_RATE

#: Hop between synthesis frames, in samples.
HOP = 256
#: Length of a synthesis frame, in samples.
WINDOW = 4 * HOP
#: Hop between synthesis frames, in seconds.
STEP = HOP / SAMPLE_RATE
_TAPS = 16  # length in samples of the windowed sinc that places a pulse between samples
# Share of noise in a voice's amplitude, (BINS,): breath begins at 1 kHz; above 4 kHz no overtone is clean.
_BREATH_RAMP = np.clip((HERTZ - 1000) / 4000, 0, 1).astype(np.float32)
_HIGH_RAMP = np.clip((HERTZ - 4000) / 9000, 0, 0.9).astype(np.float32)
_BUZZ_RAMP = np.clip((HERTZ - 1500) / 2500, 0, 0.95).astype(np.float32)


@dataclass(frozen=True)
class Excitation:
    """Sound of the vocal folds, each value 0…1.

    ``breath`` is the share of noise (1 whispers), ``haze`` the noise among the highest overtones, and ``rough`` the
    weakening of every other pulse, as in growls.
    """

    breath: float = 0.1
    haze: float = 0.5
    rough: float = 0.0


def synthesise(
    rng: np.random.Generator,
    pitches: list[np.ndarray],
    cepstra: np.ndarray,
    buzz: np.ndarray,
    source: Excitation,
) -> np.ndarray:
    """Synthesise voices in unison that share a vocal tract; returns float32 (frames · HOP,).

    ``pitches`` holds one array (frames,) per voice in Hz, 0 where unvoiced. ``cepstra`` (frames, COEFFICIENTS) and
    ``buzz`` (frames,) are as in :class:`twinsep.data.synth.analysis.Phrase`, with one frame every HOP samples.
    """
    frames = len(cepstra)
    length = frames * HOP
    pulses = np.zeros(length, np.float32)
    swell = np.zeros(length, np.float32)
    for pitch in pitches:
        train, phase, voiced = _pulse_train(rng, pitch, length, source.rough)
        pulses += train
        # Breath comes in puffs while the folds vibrate, steadily while they are apart.
        swell += np.where(voiced, 1 + 0.5 * np.cos(2 * np.pi * phase), 1).astype(np.float32)
    count = len(pitches)
    noise = rng.standard_normal(length, dtype=np.float32) * swell / count
    voiced_frames = (pitches[0] > 0).astype(np.float32)[:, None]
    share = np.maximum(source.breath * _BREATH_RAMP, source.haze * _HIGH_RAMP)
    share = np.maximum(np.broadcast_to(share, (frames, len(share))), buzz[:, None].astype(np.float32) * _BUZZ_RAMP)
    noise_gain = 1 - voiced_frames * (1 - share)
    pulse_gain = np.sqrt(np.maximum(1 - share**2, 0)) * np.float32(1 / np.sqrt(count))
    if source.breath >= 1:  # a whisper has no pulses
        noise_gain, pulse_gain = np.ones_like(share), np.zeros_like(share)
    spectrum = _frames(pulses) * pulse_gain + _frames(noise) * noise_gain
    spectrum *= np.exp(fft.rfft(cepstra.astype(np.float32), N_FFT, axis=1))
    return _overlap_add(fft.irfft(spectrum, N_FFT, axis=1), length)


def _pulse_train(
    rng: np.random.Generator, pitch: np.ndarray, length: int, rough: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pulses of unit power, phase in periods, and True where voiced; each (length,)."""
    centres = np.arange(len(pitch)) * HOP
    sounding = np.flatnonzero(pitch > 0)
    samples = np.arange(length)
    voiced = (pitch > 0)[np.minimum((samples + HOP // 2) // HOP, len(pitch) - 1)]
    if not len(sounding):
        return np.zeros(length, np.float32), np.zeros(length), voiced
    hertz = np.interp(samples, centres[sounding], pitch[sounding])
    phase = np.cumsum(hertz / SAMPLE_RATE) + rng.random()
    whole = np.floor(phase)
    at = np.flatnonzero((whole[1:] > whole[:-1]) & voiced[1:]) + 1
    increment = hertz[at] / SAMPLE_RATE
    when = at - (phase[at] - whole[at]) / increment
    size = np.sqrt(1 / increment) * (1 + 0.03 * rng.standard_normal(len(at)))
    weak = (whole[at] % 2 == 1) * rough + rough * 0.3 * rng.standard_normal(len(at))
    size *= np.maximum(1 - weak, 0.05)
    offsets = np.arange(_TAPS) - _TAPS // 2 + 1
    base = np.floor(when).astype(int)
    distance = base[:, None] + offsets - when[:, None]
    taps = np.sinc(distance) * np.cos(np.pi * distance / _TAPS) ** 2 * size[:, None]
    index = np.clip(base[:, None] + offsets, 0, length - 1)
    train = np.bincount(index.ravel(), taps.ravel(), minlength=length)
    return train.astype(np.float32), phase, voiced


def _frames(x: np.ndarray) -> np.ndarray:
    """Signal (frames · HOP,) → spectra (frames, BINS) of Hann windows centred on each frame's first sample."""
    padded = np.pad(x, (WINDOW // 2, WINDOW))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[: len(x) : HOP]
    # Hann windows a quarter of their length apart add up to 2.
    hann = (0.5 * np.hanning(WINDOW + 1)[:-1]).astype(np.float32)
    return fft.rfft(windows * hann, N_FFT, axis=1)


def _overlap_add(blocks: np.ndarray, length: int) -> np.ndarray:
    """Add blocks (frames, N_FFT) that are HOP apart; returns (length,), shifted back by half a window."""
    frames, parts = len(blocks), N_FFT // HOP
    out = np.zeros((frames + parts, HOP), np.float32)
    for part in range(parts):
        out[part : part + frames] += blocks[:, part * HOP : (part + 1) * HOP]
    return out.ravel()[WINDOW // 2 : WINDOW // 2 + length]
