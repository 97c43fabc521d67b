"""Analysis of spoken utterances: syllables, pitch, and a spectral envelope that can be stretched in time.

Envelopes come from WORLD's CheapTrick (Morise 2015, doi 10.1016/j.specom.2014.09.003) at espeak's 22.05 kHz, are
extended to 44.1 kHz and stored as 128 cepstral coefficients per frame. These are easy to interpolate, and one real
Fourier transform turns them into a minimum-phase filter (Oppenheim and Schafer, Discrete-Time Signal Processing,
chapter 12).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import fft
from scipy.ndimage import uniform_filter1d

from twinsep.data.synth.effects import SAMPLE_RATE
from twinsep.data.synth.espeak import Utterance
from twinsep.errors import InputError

#: Hop between analysis frames in seconds.
FRAME = 0.005
#: Length of the Fourier transform in samples at 44.1 kHz.
N_FFT = 2048
BINS = N_FFT // 2 + 1
#: Cepstral coefficients per frame.
COEFFICIENTS = 128
#: Frequency of each bin in Hz, (BINS,).
HERTZ = np.arange(BINS, dtype=np.float32) * np.float32(SAMPLE_RATE / N_FFT)
# Crossfade in Hz from espeak's spectrum to a smooth continuation. Sibilants are good up to the end; vowels have a hole
# above 4 kHz and then a narrow formant near 8 kHz, which no mouth makes.
_JOIN_UNVOICED = (6500.0, 9200.0)
_JOIN_VOICED = (3800.0, 5500.0)
# Band in Hz whose mean level the continuation starts from, and its fall in dB per octave below and above 9 kHz.
_ANCHOR_UNVOICED, _FALL_UNVOICED = (6500.0, 9200.0), (12.0, 30.0)
_ANCHOR_VOICED, _FALL_VOICED = (1800.0, 4200.0), (10.0, 32.0)
_FILL = 1200.0  # width in Hz over which a formant fills the holes beside it
_VOWELS = frozenset("aeiouAEIOU@03VyY&W")
_BUZZ = frozenset("zvZD")
# Tapers the last coefficients, because truncation would ring along the frequency axis.
_LIFTER = np.minimum(1, (COEFFICIENTS - np.arange(COEFFICIENTS)) / 40).astype(np.float32)


@dataclass(frozen=True)
class Timbre:
    """Timbre of a singer: factor ``warp`` on the formants, ``tilt`` in dB per octave, resonances (Hz, dB, octaves)."""

    warp: float = 1.0
    tilt: float = 0.0
    resonances: tuple[tuple[float, float, float], ...] = field(default=())

    def log_gain(self) -> np.ndarray:
        """Return the change of the natural log power, (BINS,)."""
        octaves = np.log2(np.maximum(HERTZ, 60) / 1000)
        # Only up to 8 kHz: a bright singer has bright formants, not bright hiss.
        decibels = self.tilt * np.clip(octaves, -2.5, 3)
        for hertz, level, width in self.resonances:
            decibels = decibels + level * np.exp(-0.5 * ((octaves - np.log2(hertz / 1000)) / width) ** 2)
        return (decibels * (np.log(10) / 10)).astype(np.float32)


@dataclass(frozen=True)
class Syllable:
    """Times of a syllable, in seconds from the start of the utterance: its consonants, its vowel, the vowel's end."""

    onset: float
    vowel: float
    end: float


@dataclass(frozen=True)
class Phrase:
    """Analysed utterance, one frame every :data:`FRAME` seconds.

    ``cepstra`` (frames, COEFFICIENTS): causal cepstrum of the log amplitude. ``f0`` (frames,): pitch in Hz, 0 if
    unvoiced. ``loudness`` (frames,): natural log power. ``buzz`` (frames,): 1 in voiced fricatives, else 0. ``coda``:
    end of the last syllable's closing consonants, in seconds.
    """

    cepstra: np.ndarray
    f0: np.ndarray
    loudness: np.ndarray
    buzz: np.ndarray
    syllables: tuple[Syllable, ...]
    coda: float


def analyse(utterance: Utterance, timbre: Timbre) -> Phrase | None:
    """Analyse ``utterance`` and apply ``timbre``; returns None if it has no vowel.

    Raises :class:`InputError` if the package pyworld-prebuilt is missing.
    """
    try:
        import pyworld
    except ImportError as error:
        raise InputError("generated songs need the package pyworld-prebuilt; pip install 'twinsep[data]'") from error
    found = _syllables(utterance)
    if found is None:
        return None
    syllables, coda, buzzing = found
    # WORLD cannot analyse digital silence.
    x = utterance.samples + 1e-5 * np.random.default_rng(0).standard_normal(len(utterance.samples))
    rate = utterance.rate
    f0, times = pyworld.dio(x, rate, f0_floor=60.0, f0_ceil=500.0, frame_period=1000 * FRAME, speed=2)
    f0 = pyworld.stonemask(x, f0, times, rate)
    power = pyworld.cheaptrick(x, f0, times, rate, fft_size=N_FFT // 2)
    # A formant synthesiser leaves deeper holes between formants than a vocal tract does.
    power += 0.06 * uniform_filter1d(power, round(_FILL / rate * (N_FFT // 2)), axis=1, mode="nearest")
    log_power = _extend(np.log(power + 1e-12).astype(np.float32), f0 > 0, rate)
    log_power = _warp(log_power, timbre.warp) + timbre.log_gain()
    buzz = np.zeros(len(f0), np.float32)
    for start, end in buzzing:
        buzz[int(start / FRAME) : int(end / FRAME) + 1] = 1
    loudness = np.log(np.exp(log_power).sum(1) + 1e-12)
    return Phrase(to_cepstra(log_power), f0, loudness, buzz, syllables, coda)


def to_cepstra(log_power: np.ndarray) -> np.ndarray:
    """Natural log power (frames, BINS) → causal cepstrum of the log amplitude (frames, COEFFICIENTS)."""
    # The real cepstrum of log amplitude is half that of log power; folding to causal doubles all but the first.
    cepstra = fft.irfft(log_power.astype(np.float32), N_FFT, axis=1)[:, :COEFFICIENTS] * _LIFTER
    cepstra[:, 0] *= 0.5
    return np.ascontiguousarray(cepstra)


def _extend(log_power: np.ndarray, voiced: np.ndarray, rate: int) -> np.ndarray:
    """Natural log power (frames, bins up to ``rate`` / 2 Hz) → (frames, BINS), extended to 22.05 kHz."""
    full = np.pad(log_power, ((0, 0), (0, BINS - log_power.shape[1])), mode="edge")
    known = np.arange(log_power.shape[1]) * (rate / (2 * (log_power.shape[1] - 1)))
    out = np.empty_like(full)
    for rows, join, anchor, fall in (
        (voiced, _JOIN_VOICED, _ANCHOR_VOICED, _FALL_VOICED),
        (~voiced, _JOIN_UNVOICED, _ANCHOR_UNVOICED, _FALL_UNVOICED),
    ):
        level = log_power[rows][:, (known >= anchor[0]) & (known < anchor[1])].mean(1, keepdims=True)
        decibels = -fall[0] * np.log2(np.clip(HERTZ, anchor[0], 9000) / np.sqrt(anchor[0] * anchor[1]))
        decibels -= fall[1] * np.log2(np.maximum(HERTZ, 9000) / 9000)
        weight = np.clip((HERTZ - join[0]) / (join[1] - join[0]), 0, 1)
        out[rows] = full[rows] * (1 - weight) + (level + decibels * (np.log(10) / 10)) * weight
    return np.maximum(out, -30)


def _warp(log_power: np.ndarray, factor: float) -> np.ndarray:
    """Scale the frequency axis of natural log power (frames, BINS) by ``factor``."""
    source = np.clip(np.arange(BINS) / factor, 0, BINS - 1)
    low = source.astype(int)
    share = (source - low).astype(np.float32)
    return log_power[:, low] * (1 - share) + log_power[:, np.minimum(low + 1, BINS - 1)] * share


def _syllables(utterance: Utterance) -> tuple[tuple[Syllable, ...], float, list[tuple[float, float]]] | None:
    """Syllables, the end of the coda, and (start, end) of each voiced fricative, in seconds; None without a vowel."""
    phonemes = [(when, label.lstrip("',%=_|\"-")) for when, label in utterance.phonemes if label.strip("_:;|")]
    vowels = [i for i, (_, label) in enumerate(phonemes) if label[:1] in _VOWELS and label]
    if not vowels:
        return None
    duration = len(utterance.samples) / utterance.rate
    times = [when for when, _ in phonemes]
    times.append(max(min(duration - 0.02, times[-1] + 0.25), times[-1]))
    syllables = []
    for index, position in enumerate(vowels):
        onset = vowels[index - 1] + 1 if index else 0
        syllables.append(Syllable(times[onset], times[position], times[position + 1]))
    buzzing = [(times[i], times[i + 1]) for i, (_, label) in enumerate(phonemes) if label[:1] in _BUZZ]
    return tuple(syllables), times[-1], buzzing
