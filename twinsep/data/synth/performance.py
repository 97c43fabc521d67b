"""Singing of a spoken phrase: vowels stretched to notes, pitch from melody, glides and vibrato."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d

from twinsep.data.synth.analysis import FRAME, Phrase
from twinsep.data.synth.composition import Note
from twinsep.data.synth.effects import smooth_noise
from twinsep.data.synth.singer import Singer
from twinsep.data.synth.vocoder import STEP, synthesise

#: Seconds between the start of a performance and its first note, for the first consonants.
LEAD_IN = 0.4
# Longest consonants before a vowel and at the end of a phrase, in seconds.
_LONGEST_ONSET = 0.22
_LONGEST_CODA = 0.3


def perform(
    rng: np.random.Generator, singer: Singer, phrase: Phrase, notes: list[Note], *, detune: tuple[float, ...] = (0.0,)
) -> np.ndarray:
    """Sing ``notes``, one per syllable of ``phrase``; returns float32 (samples,) at 44.1 kHz.

    Note times are in seconds from :data:`LEAD_IN` after the first sample. Each entry of ``detune`` adds a voice in
    unison, off by that number of semitones.
    """
    coda = min(max(phrase.coda - phrase.syllables[-1].end, 0), _LONGEST_CODA)
    frames = int((LEAD_IN + notes[-1].end + coda + 0.1) / STEP) + 1
    times = np.arange(frames) * STEP - LEAD_IN
    target, source = _anchors(phrase, notes, coda)
    position = np.interp(times, target, source) + 0.006 * smooth_noise(rng, frames, 0.97)
    exact = np.clip(position / FRAME, 0, len(phrase.f0) - 1.001)
    frame = exact.astype(int)
    share = (exact - frame).astype(np.float32)[:, None]
    cepstra = phrase.cepstra[frame] * (1 - share) + phrase.cepstra[frame + 1] * share
    voiced = (phrase.f0 > 0)[np.round(exact).astype(int)] | _in_vowel(phrase, notes, times, position)

    vibrato, wave = _vibrato(rng, singer, notes, times)
    cepstra[:, 0] += _loudness(phrase, notes, times, coda, phrase.loudness[frame], voiced)
    cepstra[:, 0] += (0.06 * vibrato * np.sin(wave + 1)).astype(np.float32)
    # A mouth is never still, so formants wander by one or two decibels.
    cepstra[:, 1:13] += (0.05 * smooth_noise(rng, (frames, 12), 0.97)).astype(np.float32)
    pitches = []
    for offset in detune:
        keys = _keys(rng, singer, phrase, notes, times, exact) + singer.vibrato_depth * vibrato * np.sin(wave) + offset
        pitches.append(np.where(voiced, 440 * 2 ** ((keys - 69) / 12), 0.0))
    return synthesise(rng, pitches, cepstra, phrase.buzz[frame], singer.source)


def _onset(phrase: Phrase, notes: list[Note], index: int) -> float:
    """Seconds of the consonants before note ``index``: as spoken, unless the note before leaves less room."""
    syllable = phrase.syllables[index]
    room = 0.45 * (notes[index].start - notes[index - 1].start) if index else LEAD_IN - 0.1
    return min(syllable.vowel - syllable.onset, room, _LONGEST_ONSET)


def _anchors(phrase: Phrase, notes: list[Note], coda: float) -> tuple[np.ndarray, np.ndarray]:
    """Corresponding times (n,) in the song and in the utterance, in seconds, both non-decreasing."""
    pairs: list[tuple[float, float]] = []
    for index, (syllable, note) in enumerate(zip(phrase.syllables, notes, strict=True)):
        pairs += [(note.start - _onset(phrase, notes, index), syllable.onset), (note.start, syllable.vowel)]
        end = note.end
        if index + 1 < len(notes):
            following = notes[index + 1].start - _onset(phrase, notes, index + 1)
            end = min(end, following) if notes[index + 1].start - note.end > 0.12 else following
        end = max(end, note.start + 0.05)
        spoken = syllable.end - syllable.vowel
        if end - note.start > spoken:  # only the middle of a vowel stretches, not its transitions
            edge = 0.3 * spoken
            pairs += [(note.start + edge, syllable.vowel + edge), (end - edge, syllable.end - edge)]
        pairs.append((end, syllable.end))
    pairs.append((notes[-1].end + max(coda, 0.01), phrase.coda))
    target, source = np.array(sorted(pairs)).T
    return np.maximum.accumulate(target + 1e-6 * np.arange(len(target))), np.maximum.accumulate(source)


def _in_vowel(phrase: Phrase, notes: list[Note], times: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Boolean (frames,), True where a vowel is held: voiced, whatever the pitch tracker found."""
    mask = np.zeros(len(times), bool)
    for syllable, note in zip(phrase.syllables, notes, strict=True):
        inside = (times >= note.start) & (times < note.end)
        mask |= inside & (position >= syllable.vowel) & (position <= syllable.end)
    return mask


def _vibrato(
    rng: np.random.Generator, singer: Singer, notes: list[Note], times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Amount 0…1 of vibrato (frames,), which grows on long notes, and its phase (frames,) in radians."""
    share = np.zeros(len(times))
    for note in notes:
        inside = (times >= note.start) & (times < note.end)
        long = 1.0 if note.end - note.start > 0.4 else 0.3
        share[inside] = np.clip((times[inside] - note.start - 0.22) / 0.3, 0, 1) * long
    rate = singer.vibrato_rate * (1 + 0.06 * smooth_noise(rng, len(times), 0.97))
    return share, 2 * np.pi * np.cumsum(rate) * STEP


def _keys(
    rng: np.random.Generator, singer: Singer, phrase: Phrase, notes: list[Note], times: np.ndarray, exact: np.ndarray
) -> np.ndarray:
    """Fractional MIDI keys (frames,) without vibrato: melody with portamento, drift, jitter and an initial scoop."""
    starts = np.array([note.start for note in notes]) - 0.03
    index = np.clip(np.searchsorted(starts, times, side="right") - 1, 0, None)
    keys = np.array([note.key for note in notes], float)[index]
    if singer.manner == "spoken":
        sounding = np.flatnonzero(phrase.f0 > 0)
        if len(sounding):
            spoken = 12 * np.log2(phrase.f0[sounding])
            keys = keys + 1.5 * (np.interp(exact, sounding, spoken) - np.median(spoken))
    keys = gaussian_filter1d(keys, singer.portamento / STEP, mode="nearest")
    drift = 0.12 * smooth_noise(rng, len(times), 0.98) + 0.02 * rng.standard_normal(len(times))
    scoop = rng.uniform(0, 1.2) * np.exp(-np.maximum(times - notes[0].start, 0) / 0.09)
    return keys + drift - scoop


def _loudness(
    phrase: Phrase, notes: list[Note], times: np.ndarray, coda: float, loudness: np.ndarray, voiced: np.ndarray
) -> np.ndarray:
    """Natural log gain (frames,): notes swell and fade, and vowels become about equally loud."""
    gain = np.zeros(len(times))
    for index, note in enumerate(notes):
        onset, length = note.start - _onset(phrase, notes, index), note.end - note.start
        tail = coda if index + 1 == len(notes) else 0.05
        corners = [onset - 0.01, onset, note.start + 0.02, note.start + 0.4 * length]
        corners += [max(note.end - 0.05, note.start + 0.4 * length), note.end + max(tail, 0.03)]
        gain = np.maximum(gain, np.interp(times, corners, [0, 0.8, 1, 0.95, 0.8, 0]))
    reference = np.percentile(loudness[voiced], 70) if voiced.any() else loudness.max(initial=0.0)
    excess = np.where(voiced, np.clip(loudness - reference, -4, 3), 0)
    return (np.log(gain + 1e-5) - 0.275 * excess - 0.5 * reference).astype(np.float32)
