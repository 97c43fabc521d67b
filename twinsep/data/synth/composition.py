"""What is played: tempo, key, chords, sections and the places where somebody sings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from twinsep.data.synth.effects import Real

MAJOR = (0, 2, 4, 5, 7, 9, 11)
MINOR = (0, 2, 3, 5, 7, 8, 10)
#: Chord degrees, one a bar.
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
#: The unit of form: half a bar of four beats.
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
    """Room for one sung phrase: first beat and length in beats, and the section it stands in."""

    beat: int
    beats: int
    section: str


@dataclass(frozen=True)
class Plan:
    """The frame of a song. ``sections`` has one letter a cell: i(ntro), v(erse), b(reak), c(horus)."""

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
        """Seconds of a beat."""
        return 60 / self.tempo

    @property
    def bar(self) -> float:
        """Seconds of a bar."""
        return 4 * self.beat

    @property
    def bars(self) -> int:
        return len(self.chords)

    def section(self, bar: int) -> str:
        """Section of the bar's first half."""
        return self.sections[min(2 * bar, len(self.sections) - 1)]

    def boundary(self, bar: int) -> bool:
        """Whether another section follows the bar."""
        return bar + 1 < self.bars and self.section(bar + 1) != self.section(bar)

    def pitch(self, degree: int) -> int:
        """Semitones of a scale degree above the tonic, octaves included."""
        return 12 * (degree // 7) + self.scale[degree % 7]

    def chord_keys(self, bar: int, base: int, seventh: bool = False) -> list[int]:
        """The bar's chord in the octave above MIDI key ``base``, ascending."""
        degrees = (0, 2, 4, 6) if seventh else (0, 2, 4)
        return sorted(base + (self.key + self.pitch(self.chords[bar] + d) - base) % 12 for d in degrees)


def compose(rng: np.random.Generator, seconds: Real) -> Plan:
    """Draws the frame of a song of ``seconds``: a quarter of it is left to the instruments alone."""
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
    """Intro, verse, break, chorus; longer songs alternate. One letter a cell."""
    quiet = max(2, round(cells * rng.uniform(0.2, 0.3)))
    breaks = max(1, round(seconds / 11))
    # At least one cell for every break; the rest of the silence opens the song, unless the voice does.
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
    """Splits every sung stretch into phrases of 2…4 cells, each with its own gap for breath."""
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
