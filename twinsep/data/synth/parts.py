"""Instrumental parts: notes for drums, bass, comping, pad and lead. Times are in seconds unless stated otherwise."""

from __future__ import annotations

import numpy as np

from twinsep.data.synth.composition import Note, Plan
from twinsep.data.synth.effects import Real

#: Keys of the General-MIDI drum map.
KICK, RIM, SNARE, HAT, OPEN_HAT, CRASH, RIDE, SHAKER, TAMBOURINE = 36, 37, 38, 42, 46, 49, 51, 70, 54
# Patterns of kicks, in beats of a bar.
_KICKS = ((0, 2), (0, 1.5, 2), (0, 0.75, 2, 2.5), (0, 1, 2, 3))
# Toms of a fill, one per quarter beat.
_FILL = (38, 50, 47, 45)
# Notes (beat, length in beats, semitones above the root) of a bar.
_BASS_LINES: tuple[tuple[tuple[float, float, int], ...], ...] = (
    tuple((i * 0.5, 0.45, 0) for i in range(8)),
    ((0, 1.4, 0), (1.5, 0.45, 0), (2, 1.4, 7), (3.5, 0.4, 0)),
    ((0, 0.7, 0), (0.75, 0.7, 0), (1.5, 0.45, 12), (2, 0.9, 0), (3, 0.4, 7), (3.5, 0.4, 10)),
    ((0, 3.8, 0),),
)
#: Styles of :func:`comping`.
STYLES = ("block", "eighth", "arpeggio", "strum")


class Player:
    """Collects the notes of a part, with the small random errors of a human in time and velocity."""

    def __init__(self, rng: np.random.Generator, plan: Plan) -> None:
        self.rng, self.plan = rng, plan
        self.notes: list[Note] = []

    def add(self, start: Real, length: Real, key: int, velocity: Real, slack: Real = 0.006) -> None:
        """Add a note; ``start``, ``length`` and the standard deviation ``slack`` of its start are in seconds."""
        begin = max(0.0, float(start + self.rng.normal(0, slack)))
        loud = int(np.clip(velocity + self.rng.normal(0, 8), 1, 127))
        if begin < self.plan.seconds:
            self.notes.append(Note(begin, begin + max(length, 0.02), key, loud))


def drums(rng: np.random.Generator, plan: Plan) -> list[Note]:
    """Draw kick, snare and hats, with fills before a new section; keys are those of the General-MIDI drum map."""
    player = Player(rng, plan)
    kicks = _KICKS[rng.integers(len(_KICKS))]
    hat = int(rng.choice([HAT, HAT, RIDE, OPEN_HAT, SHAKER, TAMBOURINE]))
    density = int(rng.choice([1, 2, 2, 4], p=[0.2, 0.4, 0.25, 0.15]))
    snare = int(rng.choice([38, 40, 39, RIM]))
    ghost, light_intro = rng.random() < 0.4, rng.random() < 0.4
    for bar in range(plan.bars):
        start, section = bar * plan.bar, plan.section(bar)
        if section == "i" and light_intro:
            for q in range(4):
                player.add(start + q * plan.beat, 0.1, hat, 75)
            continue
        fill = plan.boundary(bar) or bar % 8 == 7
        for downbeat in kicks:
            player.add(start + downbeat * plan.beat, 0.2, KICK, 112)
        for backbeat in (1,) if fill else (1, 3):
            player.add(start + backbeat * plan.beat, 0.2, snare, 108)
        if ghost:
            player.add(start + 2.75 * plan.beat, 0.1, SNARE, 45)
        _hats(player, start, OPEN_HAT if section == "c" and rng.random() < 0.3 else hat, density, fill)
        if bar and plan.boundary(bar - 1):
            player.add(start, 1.5, CRASH, 105)
    return player.notes


def _hats(player: Player, start: Real, key: int, density: int, fill: bool) -> None:
    beat = player.plan.beat
    for q in range(4 * density):
        position = q / density + (player.plan.swing if q % 2 and density > 1 else 0)
        if not (fill and position >= 3):
            player.add(start + position * beat, 0.1, key, 80 if q % density == 0 else 60)
    for q, tom in enumerate(_FILL if fill else ()):
        player.add(start + (3 + q / 4) * beat, 0.2, tom if player.rng.random() < 0.7 else SNARE, 100)


def bass(rng: np.random.Generator, plan: Plan) -> list[Note]:
    """Draw a bass line of roots and fifths between MIDI keys 28 and 52."""
    player = Player(rng, plan)
    line = int(rng.integers(len(_BASS_LINES)))
    rest = rng.random() < 0.3
    for bar in range(plan.bars):
        section = plan.section(bar)
        if section == "i" and rest:
            continue
        root = 28 + (plan.key + plan.pitch(plan.chords[bar]) - 28) % 12
        for q, length, interval in _BASS_LINES[(line + (section == "c")) % len(_BASS_LINES)]:
            player.add(bar * plan.bar + q * plan.beat, length * plan.beat, root + interval, 100)
    return player.notes


def comping(rng: np.random.Generator, plan: Plan, style: str, *, base: int = 48, skip: str = "") -> list[Note]:
    """Draw chords above MIDI key ``base`` in one of :data:`STYLES`, silent in the sections ``skip``."""
    player = Player(rng, plan)
    for bar in range(plan.bars):
        if plan.section(bar) not in skip:
            _COMPING[style](player, bar * plan.bar, plan.chord_keys(bar, base, seventh=rng.random() < 0.2))
    return player.notes


def _block(player: Player, start: Real, chord: list[int]) -> None:
    for key in chord:
        player.add(start, player.plan.bar * 0.97, key, 78, slack=0.01)


def _eighth(player: Player, start: Real, chord: list[int]) -> None:
    beat = player.plan.beat
    for q in range(8):
        if player.rng.random() < 0.85:
            for key in chord:
                player.add(start + q * beat / 2, 0.35 * beat, key, 66 if q % 2 else 80)


def _arpeggio(player: Player, start: Real, chord: list[int]) -> None:
    beat, count = player.plan.beat, 16 if player.plan.tempo < 100 else 8
    keys = sorted([*chord, chord[0] + 12])
    for q in range(count):
        step = 4 / count
        player.add(start + q * step * beat, 1.2 * step * beat, keys[(0, 1, 2, 3, 2, 1, 2, 1)[q % 8]] + 12, 76)


def _strum(player: Player, start: Real, chord: list[int]) -> None:
    beat = player.plan.beat
    for q in (0, 1, 1.5, 2.5, 3, 3.5):
        for index, key in enumerate([*chord, chord[0] + 12]):
            player.add(start + q * beat + index * 0.012, 0.8 * beat, key, 82, slack=0.004)


_COMPING = {"block": _block, "eighth": _eighth, "arpeggio": _arpeggio, "strum": _strum}


def lead(rng: np.random.Generator, plan: Plan, base: int = 67, *, legato: bool = False) -> list[Note]:
    """Draw a riff above MIDI key ``base``, mostly where nobody sings; ``legato`` ties its notes, one at a time."""
    player = Player(rng, plan)
    # A legato line has few long notes; a riff has many.
    slots = 4 if legato else 8
    riff = [int(d) for d in rng.integers(0, 8, slots)]
    for bar in range(plan.bars):
        section = plan.section(bar)
        if section in "ib" or rng.random() < (0.45 if section == "c" else 0.25):
            for q, degree in enumerate(riff):
                if rng.random() < 0.8:
                    key = base + (plan.key + plan.pitch(degree) - base) % 12 + (12 if degree >= 6 else 0)
                    length = plan.bar / slots * (1.02 if legato else float(rng.choice([0.9, 1.8])))
                    player.add(bar * plan.bar + q * plan.bar / slots, length, key, 90)
    return player.notes
