"""Composition of a song: tempo, key, chords, sections and the slots for sung phrases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twinsep.data.synth.effects import Real

#: Semitones of the scale degrees above the tonic.
MAJOR = (0, 2, 4, 5, 7, 9, 11)
MINOR = (0, 2, 3, 5, 7, 8, 10)
#: Chord degrees, one per bar.
PROGRESSIONS = (
    (0, 5, 3, 4),
    (0, 3, 4, 4),
    (5, 3, 0, 4),
    (0, 4, 5, 3),
    (0, 2, 3, 4),
    (5, 4, 3, 4),
    (0, 0, 3, 4),
    (1, 4, 0, 5),
    (0, 5, 1, 4),
    (3, 0, 4, 5),
)
#: Beats of a cell, the unit of form: half a bar of four beats.
CELL_BEATS = 2


@dataclass(frozen=True)
class Note:
    """One note: start and end in seconds, MIDI key, velocity 1…127."""

    start: float
    end: float
    key: int
    velocity: int


@dataclass(frozen=True)
class Slot:
    """Slot for one sung phrase: first beat, length in beats, and letter of its section."""

    beat: int
    beats: int
    section: str


@dataclass(frozen=True)
class Plan:
    """Plan of a song.

    ``tempo`` is in beats per minute, ``key`` in semitones above C, ``swing`` in beats. ``sections`` has one letter per
    cell: i(ntro), v(erse), b(reak), c(horus). ``chords`` has one degree per bar.
    """

    seconds: Real
    tempo: float
    key: int
    scale: tuple[int, ...]
    swing: float
    sections: str
    chords: tuple[int, ...]
    slots: tuple[Slot, ...]

    @property
    def beat(self) -> float:
        """Length of a beat in seconds."""
        return 60 / self.tempo

    @property
    def bar(self) -> float:
        """Length of a bar in seconds."""
        return 4 * self.beat

    @property
    def bars(self) -> int:
        """Number of bars."""
        return len(self.chords)

    def section(self, bar: int) -> str:
        """Return the section of the bar's first half."""
        return self.sections[min(2 * bar, len(self.sections) - 1)]

    def boundary(self, bar: int) -> bool:
        """Return True if another section follows the bar."""
        return bar + 1 < self.bars and self.section(bar + 1) != self.section(bar)

    def pitch(self, degree: int) -> int:
        """Return the semitones of a scale degree above the tonic, including octaves."""
        return 12 * (degree // 7) + self.scale[degree % 7]

    def chord_keys(self, bar: int, base: int, seventh: bool = False) -> list[int]:
        """Return the bar's chord as ascending MIDI keys within the octave above ``base``."""
        degrees = (0, 2, 4, 6) if seventh else (0, 2, 4)
        return sorted(base + (self.key + self.pitch(self.chords[bar] + d) - base) % 12 for d in degrees)


def compose(rng: np.random.Generator, seconds: Real) -> Plan:
    """Draw the plan of a song of ``seconds``; about a quarter of it is instrumental."""
    tempo = float(rng.uniform(78, 140))
    cells = max(3, int(np.ceil(seconds * tempo / 60 / CELL_BEATS)))
    sections = _form(rng, cells, seconds)
    verse, chorus = (PROGRESSIONS[i] for i in rng.integers(0, len(PROGRESSIONS), 2))
    bars = -(-cells // 2)
    chords = tuple((chorus if sections[2 * b] == "c" else verse)[b % 4] for b in range(bars))
    return Plan(
        seconds=seconds,
        tempo=tempo,
        key=int(rng.integers(0, 12)),
        scale=MAJOR if rng.random() < 0.6 else MINOR,
        swing=0.12 if rng.random() < 0.25 else 0.0,
        sections=sections,
        chords=chords,
        slots=_slots(rng, sections),
    )


def _form(rng: np.random.Generator, cells: int, seconds: Real) -> str:
    """Sections, one letter per cell: intro, verse, break, chorus; longer songs alternate verse and chorus."""
    quiet = max(2, round(cells * rng.uniform(0.2, 0.3)))
    breaks = max(1, round(seconds / 11))
    # At least one cell for every break; the other instrumental cells form the intro, unless the voice starts the song.
    intro = 0 if rng.random() < 0.15 else max(1, quiet - breaks * max(1, quiet // (breaks + 1)))
    gaps = [(quiet - intro) // breaks + (i < (quiet - intro) % breaks) for i in range(breaks)]
    sung = cells - intro - sum(gaps)
    edges = np.linspace(0, sung, breaks + 2) + rng.uniform(-0.4, 0.4, breaks + 2)
    cuts = [0, *np.clip(np.round(edges[1:-1]), 0, sung).astype(int).tolist(), sung]
    form = "i" * intro
    for index in range(breaks + 1):
        form += ("c" if index % 2 else "v") * (cuts[index + 1] - cuts[index])
        form += "b" * gaps[index] if index < breaks else ""
    return form


def _slots(rng: np.random.Generator, sections: str) -> tuple[Slot, ...]:
    """Split every sung stretch into phrases of 2…4 cells."""
    slots: list[Slot] = []
    cell = 0
    while cell < len(sections):
        section = sections[cell]
        if section in "ib":
            cell += 1
            continue
        left = next((i for i, s in enumerate(sections[cell:]) if s != section), len(sections) - cell)
        length = left if left < 4 else int(rng.choice([2, 2, 3, 4]))
        slots.append(Slot(CELL_BEATS * cell, CELL_BEATS * length, section))
        cell += length
    return tuple(slots)
