"""Singing of spoken phrases: a melody in a song's key, vowels stretched to its notes, glides and vibrato.

The vowels keep their natural movement, so that a long note is no frozen spectrum; consonants keep their length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d

from twinsep.data.recordings.speech import FRAME, Speech, world
from twinsep.data.synth.composition import MAJOR, MINOR
from twinsep.data.synth.effects import SAMPLE_RATE, smooth_noise

#: Shortest note in seconds.
SHORTEST = 0.16
# Krumhansl and Kessler's profiles of the pitch classes from the tonic on (1982, doi 10.1037/0033-295X.89.4.334).
_PROFILES = (
    (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88),
    (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17),
)
_PENTATONIC: dict[tuple[int, ...], tuple[int, ...]] = {MAJOR: (0, 2, 4, 7, 9), MINOR: (0, 3, 5, 7, 10)}
_TAIL = 0.4  # seconds after the last note


class Key(NamedTuple):
    """A key: ``tonic`` in semitones above C, and the scale's semitones above it."""

    tonic: int
    scale: tuple[int, ...]


@dataclass(frozen=True)
class SungSyllable:
    """A syllable, frames [lo, hi) of the speech, with its start in seconds and its notes (MIDI key, seconds)."""

    lo: int
    hi: int
    start: float
    notes: tuple[tuple[int, float], ...]

    @property
    def seconds(self) -> float:
        """Length of all its notes."""
        return sum(seconds for _, seconds in self.notes)


@dataclass(frozen=True)
class Manner:
    """How a phrase is sung: ``formants`` is a factor on their frequencies; vibrato in semitones and Hz.

    ``glide`` is in seconds, ``scoop`` and ``detune`` in semitones.
    """

    formants: float
    vibrato_depth: float
    vibrato_rate: float
    glide: float
    scoop: float
    detune: float = 0.0


def find_key(song: Float[np.ndarray, "s 2"]) -> Key:
    """The key whose profile correlates best with the pitch classes of a song at 44.1 kHz, 60 to 2,000 Hz."""
    window = 16_384
    mono = song.mean(1)
    mono = np.pad(mono, (0, max(0, window - len(mono))))
    starts = range(0, len(mono) - window + 1, window // 2)
    spectrum = np.sum([np.abs(np.fft.rfft(mono[n : n + window] * np.hanning(window))) for n in starts], 0)
    hertz = np.fft.rfftfreq(window, 1 / SAMPLE_RATE)
    heard = (hertz > 60) & (hertz < 2000)
    classes = np.round(12 * np.log2(hertz[heard] / 440) + 69).astype(int) % 12
    chroma = np.bincount(classes, np.log1p(spectrum[heard]), 12) / np.bincount(classes, minlength=12)
    chroma -= chroma.mean()
    best = max(
        (float(np.sum(chroma * np.roll(np.array(p) - np.mean(p), tonic)) / np.std(p)), tonic, minor)
        for minor, p in enumerate(_PROFILES)
        for tonic in range(12)
    )
    return Key(best[1], MINOR if best[2] else MAJOR)


def melody(rng: np.random.Generator, count: int, key: Key, centre: float) -> list[int]:
    """Draw ``count`` MIDI keys that walk through the key in steps and small leaps, near the MIDI key ``centre``."""
    scale = key.scale if rng.random() < 0.5 else _PENTATONIC[key.scale]
    keys = [k for k in range(128) if (k - key.tonic) % 12 in scale and centre - 7 <= k <= centre + 9]
    at = int(np.argmin(np.abs(np.array(keys) - centre))) + int(rng.integers(-1, 2))
    found = []
    for _ in range(count):
        at = int(np.clip(at, 0, len(keys) - 1))
        found.append(keys[at])
        at += int(rng.choice([-3, -2, -1, -1, 0, 0, 1, 1, 2, 3]))
    return found


def set_to_music(
    rng: np.random.Generator, speech: Speech, key: Key, beat: float, centre: float
) -> tuple[SungSyllable, ...]:
    """Give each syllable a note of a fraction of a ``beat`` (seconds) to two, a long one sometimes two notes."""
    count, start, sung = len(speech.syllables), 0.05, []
    keys = melody(rng, 2 * count, key, centre)
    for index, (lo, hi) in enumerate(speech.syllables):
        length = beat * float(rng.choice([0.25, 0.5, 0.5, 0.5, 1, 1, 1.5, 2]))
        length = max(length, SHORTEST, 0.7 * (hi - lo) * FRAME)
        if index == count - 1:
            length = max(length, beat * float(rng.choice([1, 1.5, 2, 3])))
        first, second = keys[2 * index : 2 * index + 2]
        halves = length > 0.55 and rng.random() < 0.3
        notes = ((first, length / 2), (second, length / 2)) if halves else ((first, length),)
        sung.append(SungSyllable(lo, hi, start, notes))
        start += length
    return tuple(sung)


def draw_manner(rng: np.random.Generator, formants: float, detune: float = 0.0) -> Manner:
    """Draw how a phrase is sung."""
    return Manner(
        formants=formants,
        vibrato_depth=float(rng.uniform(0.15, 0.6)) if rng.random() < 0.75 else float(rng.uniform(0, 0.08)),
        vibrato_rate=float(rng.uniform(4.8, 6.6)),
        glide=float(rng.uniform(0.022, 0.045)),
        scoop=float(rng.uniform(0, 1.2)) * (rng.random() < 0.6),
        detune=detune,
    )


def sing(
    rng: np.random.Generator, speech: Speech, syllables: tuple[SungSyllable, ...], manner: Manner
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " t"]]:
    """Sing the syllables: sound (samples,) at 44.1 kHz, and its pitch (frames,) in Hz, 0 where unvoiced."""
    frames = round((max(s.start + s.seconds for s in syllables) + _TAIL) / FRAME)
    position, keys, elapsed = _timeline(speech, syllables, frames)
    live = position >= 0
    source = np.clip(np.round(position).astype(int), 0, len(speech.f0) - 1)
    voiced = live & speech.voiced[source]
    keys = _pitch(rng, speech, manner, keys, elapsed, source, voiced)
    f0 = np.where(voiced, 440 * 2 ** ((keys - 69) / 12), 0.0)
    # A held vowel moves to and fro in the spoken one, or its formants would freeze.
    moved = position + 2.5 * smooth_noise(rng, frames, 0.97) * (voiced & (elapsed > 0.12))
    log_power = _warp(_interpolate(speech.log_power, moved), manner.formants)
    log_power += _effort(keys, elapsed, voiced, log_power.shape[1])
    log_power[~live] -= 20
    # A singer has less breath in the voice than a speaker.
    noise = np.where(voiced[:, None], _interpolate(speech.aperiodicity, position) ** 1.25, 1.0)
    sound = _synthesise(f0, log_power, noise)
    loud = gaussian_filter1d(live.astype(float), 2)
    envelope = np.interp(np.arange(len(sound)) / (SAMPLE_RATE * FRAME), np.arange(frames), loud)
    return sound * envelope, f0


def _timeline(
    speech: Speech, syllables: tuple[SungSyllable, ...], frames: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each frame's position in the speech (−1: none), MIDI key, and seconds since its note began; (frames,) each."""
    position, keys, elapsed = np.full(frames, -1.0), np.zeros(frames), np.zeros(frames)
    for syllable in syllables:
        path = _stretch(speech, syllable.lo, syllable.hi, round(syllable.seconds / FRAME))
        start = round(syllable.start / FRAME)
        end = min(start + len(path), frames)
        position[start:end] = path[: end - start]
        at = start
        for key, seconds in syllable.notes:
            until = end if (key, seconds) == syllable.notes[-1] else min(round(at + seconds / FRAME), end)
            keys[at:until] = key
            elapsed[at:until] = np.arange(max(until - at, 0)) * FRAME
            at = until
    sounding = np.flatnonzero(position >= 0)
    return position, np.interp(np.arange(frames), sounding, keys[sounding]), elapsed


def _stretch(speech: Speech, lo: int, hi: int, target: int) -> np.ndarray:
    """Positions in the speech for a syllable of about ``target`` frames; steady voiced frames take what is added."""
    spoken = hi - lo
    if target < spoken:
        durations = np.full(spoken, max(target / spoken, 0.4))
    else:
        voiced = speech.voiced[lo:hi]
        steps = np.abs(np.diff(speech.log_power[lo : hi + 1, 5:400:5], axis=0)).mean(1)
        change = gaussian_filter1d(np.pad(steps, (0, spoken - len(steps)), mode="edge"), 2)
        usual = float(np.median(change[voiced])) if voiced.any() else 1.0
        elastic = np.where(voiced, (0.15 + change / max(usual, 1e-6)) ** -1.5, 0.02)
        durations = 1 + (target - spoken) * elastic / elastic.sum()
    ends = np.cumsum(durations)
    count = max(1, round(float(ends[-1])))
    return lo + np.interp(np.arange(count) + 0.5, np.concatenate([[0], ends]), np.arange(spoken + 1)) - 0.5


def _pitch(
    rng: np.random.Generator,
    speech: Speech,
    manner: Manner,
    keys: np.ndarray,
    elapsed: np.ndarray,
    source: np.ndarray,
    voiced: np.ndarray,
) -> np.ndarray:
    """The melody (frames,) in MIDI keys with glides, a scoop, vibrato, drift and part of the spoken intonation."""
    frames = len(keys)
    keys = gaussian_filter1d(keys, manner.glide / FRAME) - manner.scoop * np.exp(-elapsed / 0.06)
    depth = manner.vibrato_depth * np.clip((elapsed - 0.2) / 0.35, 0, 1)
    rate = manner.vibrato_rate * (1 + 0.05 * smooth_noise(rng, frames, 0.99))
    keys = keys + depth * np.sin(2 * np.pi * np.cumsum(rate) * FRAME + rng.uniform(0, 2 * np.pi))
    keys += 0.10 * smooth_noise(rng, frames, 0.985) + 0.03 * smooth_noise(rng, frames, 0.5) + manner.detune
    spoken = np.log2(np.maximum(speech.f0[source], 1))
    steady = gaussian_filter1d(np.where(voiced, spoken, np.median(spoken[voiced]) if voiced.any() else 0), 15)
    return keys + np.where(voiced, np.clip(1.2 * (spoken - steady), -0.4, 0.4), 0)


def _effort(keys: np.ndarray, elapsed: np.ndarray, voiced: np.ndarray, bins: int) -> np.ndarray:
    """Change of the log power (frames, bins): high notes are louder and brighter, and a note swells."""
    if not voiced.any():
        return np.zeros((len(keys), bins), np.float32)
    effort = 0.12 * (keys - np.median(keys[voiced])) + 0.5 * np.sin(np.pi * np.clip(elapsed / 0.8, 0, 1))
    octaves = np.clip(np.log2(np.maximum(np.linspace(0, SAMPLE_RATE / 2, bins), 100) / 500), 0, 3)
    return (np.where(voiced, effort, 0)[:, None] * (0.18 + 0.23 * octaves)).astype(np.float32)


def _interpolate(frames: Float[np.ndarray, "t f"], position: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n f"]:
    """Frames at fractional positions, which are clipped to the first and last frame."""
    position = np.clip(position, 0, len(frames) - 1)
    low = position.astype(int)
    share = (position - low)[:, None].astype(np.float32)
    return frames[low] * (1 - share) + frames[np.minimum(low + 1, len(frames) - 1)] * share


def _warp(log_power: Float[np.ndarray, "t f"], factor: float) -> Float[np.ndarray, "t f"]:
    """Move the formants up by ``factor``."""
    bins = log_power.shape[1]
    return _interpolate(np.ascontiguousarray(log_power.T), np.minimum(np.arange(bins) / factor, bins - 1)).T.copy()


def _synthesise(f0: np.ndarray, log_power: np.ndarray, aperiodicity: np.ndarray) -> np.ndarray:
    power = np.exp(log_power.astype(np.float64))
    parameters = (np.ascontiguousarray(x, np.float64) for x in (f0, power, aperiodicity))
    return world().synthesize(*parameters, SAMPLE_RATE, 1000 * FRAME)
