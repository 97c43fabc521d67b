"""Vocal stem: the phrases of a song, their singers, doubles, harmonies and effects."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from twinsep.data.synth import effects, singer
from twinsep.data.synth.analysis import Phrase
from twinsep.data.synth.composition import Note, Plan, Slot
from twinsep.data.synth.effects import SAMPLE_RATE, Real
from twinsep.data.synth.performance import LEAD_IN, perform
from twinsep.data.synth.singer import Singer


@dataclass(frozen=True)
class Line:
    """A repeatable line: its singer, its analysed words, and the scale degrees of its melody, one per syllable."""

    singer: Singer
    phrase: Phrase
    degrees: tuple[int, ...]


@dataclass(frozen=True)
class Backing:
    """Voices that join the lead: a double on each side, a harmony."""

    double: bool
    harmony: bool


def vocals(rng: np.random.Generator, plan: Plan, samples: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Draw the vocal stem with its effects, float32 (samples, 2) at an arbitrary level, and a record of what was drawn.

    Raises :class:`InputError` if a package of the data extra is missing.
    """
    out = np.zeros((samples, 2), np.float32)
    singers = [singer.draw(rng) for _ in range(1 + (rng.random() < 0.2))]
    backing = Backing(double=bool(rng.random() < 0.55), harmony=bool(rng.random() < 0.45))
    lines: list[Line] = []
    for slot in plan.slots:
        line = _line(rng, plan, slot, singers, lines)
        lines.append(line)
        notes = _notes(rng, plan, slot, line)
        first = slot.beat * plan.beat
        _sing(rng, out, first, line, notes, Backing(False, False) if slot.section == "v" else backing, plan)
    out, names = _effects(rng, out, plan)
    info = {
        "voices": [s.voice for s in singers],
        "manners": [s.manner for s in singers],
        "phrases": len(plan.slots),
        "double": backing.double,
        "harmony": backing.harmony,
        "vocal_effects": names,
    }
    return out, info


def _line(rng: np.random.Generator, plan: Plan, slot: Slot, singers: list[Singer], known: list[Line]) -> Line:
    """A new line, or an earlier one with its melody or another; repeats are also cheaper to make."""
    if known and rng.random() < 0.4:
        old = known[rng.integers(len(known))]
        # The words must fit: at most eight syllables per second.
        if len(old.degrees) <= 8 * slot.beats * plan.beat:
            return old if rng.random() < 0.4 else replace(old, degrees=_degrees(rng, plan, slot, len(old.degrees)))
    who = singers[rng.integers(len(singers))]
    phrase = singer.utter(rng, who, slot, plan)
    return Line(who, phrase, _degrees(rng, plan, slot, len(phrase.syllables)))


def _degrees(rng: np.random.Generator, plan: Plan, slot: Slot, count: int) -> tuple[int, ...]:
    """Random melody of ``count`` scale degrees in steps and small leaps, attracted by the notes of the chord."""
    chord = plan.chords[min(slot.beat // 4, plan.bars - 1)]
    current = int(rng.integers(2, 9))
    degrees = []
    for index in range(count):
        degrees.append(current)
        current = int(np.clip(current + rng.choice([-3, -2, -1, -1, 0, 1, 1, 2, 4]), 0, 11))
        if index % 2 and (current - chord) % 7 not in (0, 2, 4):
            current = int(np.clip(current + rng.choice([-1, 1]), 0, 11))
    return tuple(degrees)


def _notes(rng: np.random.Generator, plan: Plan, slot: Slot, line: Line) -> list[Note]:
    """One note per syllable, in seconds from the slot's first beat, on a grid of quarter beats if they fit."""
    count, who = len(line.degrees), line.singer
    lead = float(rng.choice([0, 0, 0.5, 1.0] if slot.beats > 4 else [0, 0, 0.5]))
    span = slot.beats - lead - float(rng.choice([0.25, 0.5, 1.0]))
    weights = rng.choice([0.6, 1, 1, 1.4], count)
    edges = lead + span * np.concatenate([[0], np.cumsum(weights)]) / weights.sum()
    snapped = np.round(edges * 4) / 4
    if np.diff(snapped).min() >= 0.25:
        edges = snapped
    if rng.random() < 0.3:  # the last note is cut short
        edges[-1] = edges[-2] + max(0.25, 0.5 * (edges[-1] - edges[-2]))
    notes = []
    for index, degree in enumerate(line.degrees):
        if who.manner == "spoken":
            key = who.low + 5 + int(rng.integers(-1, 2))
        else:
            key = who.low + plan.pitch(degree) + (plan.key - who.low) % 12
            key -= 12 * (key > who.high + 2)
        late = rng.normal(0, 0.01)
        start, end = edges[index] * plan.beat + late, edges[index + 1] * plan.beat - rng.uniform(0, 0.08)
        notes.append(Note(max(start, 0.0), max(end, start + 0.06), key, 100))
    return notes


def _sing(
    rng: np.random.Generator,
    out: np.ndarray,
    first: Real,
    line: Line,
    notes: list[Note],
    backing: Backing,
    plan: Plan,
) -> None:
    """Add the line at ``first`` seconds to ``out`` (samples, 2): lead, doubles left and right, harmony."""
    who = line.singer

    def put(voice: np.ndarray, level: Real, position: Real, late: Real = 0.0) -> None:
        start = round((first - LEAD_IN + late) * SAMPLE_RATE)
        voice = voice[max(0, -start) :]
        start = max(start, 0)
        length = min(len(voice), len(out) - start)
        if length > 0:
            out[start : start + length] += effects.pan(voice[:length], position) * np.float32(level)

    if who.manner == "choir":
        for side in (-1, 1):
            detune = tuple(float(d) for d in rng.normal(0, 0.13, 4))
            put(perform(rng, who, line.phrase, notes, detune=detune), 0.8, 0.7 * side, rng.uniform(0, 0.04))
    else:
        put(perform(rng, who, line.phrase, notes), 1.0, rng.normal(0, 0.05))
    if backing.double and who.manner != "choir":
        for side in (-1, 1):
            double = perform(rng, who, line.phrase, notes, detune=(side * rng.uniform(0.04, 0.12),))
            put(double, 0.35, side * rng.uniform(0.4, 0.9), rng.uniform(0.005, 0.03))
    if backing.harmony and who.manner != "spoken":
        third = [replace(n, key=n.key + (4 if (n.key + 4 - plan.key) % 12 in plan.scale else 3)) for n in notes]
        put(perform(rng, who, line.phrase, third), 0.4, rng.uniform(-0.6, 0.6), rng.uniform(0, 0.02))


def _effects(rng: np.random.Generator, x: np.ndarray, plan: Plan) -> tuple[np.ndarray, list[str]]:
    """Apply the effects of a mixing desk to the vocals (samples, 2); also return the names of the unusual ones."""
    names = []
    x = effects.compress(effects.high_pass(x, 80), 0.35)
    if rng.random() < 0.1:
        names.append("distortion")
        x = effects.low_pass(effects.saturate(x, rng.uniform(3, 10)), rng.uniform(4000, 9000))
    if rng.random() < 0.06:
        names.append("telephone")
        x = effects.low_pass(effects.high_pass(effects.high_pass(x, 500), 400), rng.uniform(2500, 4500))
    if rng.random() < 0.35:
        names.append("echo")
        x = effects.echo(x, plan.beat * rng.choice([0.5, 0.75, 1]), rng.uniform(-20, -13))
    wet, length = rng.uniform(-22, -10), rng.uniform(0.4, 2.2)
    x = effects.reverb(
        x, rng, seconds=length, wet=wet, bright=rng.uniform(3000, 8000), predelay=rng.uniform(0.005, 0.04)
    )
    return effects.high_pass(effects.saturate(x, rng.uniform(0.2, 1)), 90), names
