"""Singers: random voices, and the lines that they speak before these are sung."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from twinsep.data.synth.analysis import Phrase, Timbre, analyse
from twinsep.data.synth.composition import Plan, Slot
from twinsep.data.synth.espeak import speak
from twinsep.data.synth.lexicon import FEMALE, MALE, VOCALISES, WORDS
from twinsep.data.synth.vocoder import Excitation

Manner = Literal["sung", "belted", "spoken", "whispered", "choir"]
# Probability of each manner.
_MANNERS: dict[Manner, float] = {"sung": 0.62, "belted": 0.13, "spoken": 0.13, "whispered": 0.03, "choir": 0.09}


@dataclass(frozen=True)
class Singer:
    """One voice: ``low`` is its lowest MIDI key, vibrato is in Hz and semitones, portamento in seconds."""

    language: str
    voice: str
    female: bool
    manner: Manner
    timbre: Timbre
    source: Excitation
    low: int
    vibrato_rate: float
    vibrato_depth: float
    portamento: float
    words_per_minute: int

    @property
    def high(self) -> int:
        """Highest comfortable MIDI key."""
        return self.low + 15


def draw(rng: np.random.Generator) -> Singer:
    """Draw a random singer."""
    language = str(rng.choice(list(WORDS), p=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1]))
    female = bool(rng.random() < 0.5)
    manner: Manner = rng.choice(list(_MANNERS), p=list(_MANNERS.values())).item()
    belted = manner == "belted"
    resonances = [
        (float(np.exp(rng.uniform(np.log(250), np.log(6000)))), float(rng.normal(0, 3)), float(rng.uniform(0.2, 0.6)))
        for _ in range(3)
    ]
    if belted or rng.random() < 0.3:  # the singer's formant
        resonances.append((float(rng.uniform(2500, 3400)), float(rng.uniform(2, 6)), 0.25))
    return Singer(
        language=language,
        voice=f"{language}+{rng.choice(FEMALE if female else MALE)}",
        female=female,
        manner=manner,
        timbre=Timbre(float(rng.uniform(0.88, 1.16)), float(rng.uniform(-2, 1.5)) + belted, tuple(resonances)),
        source=_source(rng, manner),
        # Belting is a fourth higher than singing, speech a third lower.
        low=(57 if female else 46) + int(rng.integers(-3, 5)) + {"belted": 5, "spoken": -4}.get(manner, 0),
        vibrato_rate=float(rng.uniform(4.5, 6.8)),
        # A third of the singers use hardly any vibrato.
        vibrato_depth=float(rng.uniform(0.15, 0.75)) if rng.random() < 0.67 else float(rng.uniform(0, 0.08)),
        portamento=float(rng.uniform(0.008, 0.06)),
        words_per_minute=int(rng.integers(115, 160)),
    )


def _source(rng: np.random.Generator, manner: Manner) -> Excitation:
    """Random excitation that suits the manner of singing."""
    if manner == "whispered":
        return Excitation(breath=1.0)
    breath = float(rng.choice([0.05, 0.12, 0.25, 0.5], p=[0.35, 0.35, 0.2, 0.1]))
    growls = rng.random() < (0.5 if manner == "belted" else 0.1)
    rough = float(rng.uniform(0.25, 0.7)) if growls else 0.0
    return Excitation(breath=breath, haze=float(rng.uniform(0.2, 1)), rough=rough)


def utter(rng: np.random.Generator, singer: Singer, slot: Slot, plan: Plan) -> Phrase:
    """Draw words for the length of ``slot``, speak them with the singer's voice and analyse them.

    Raises :class:`InputError` if a package of the data extra is missing.
    """
    seconds = slot.beats * plan.beat
    per_second = 4.0 if singer.manner == "spoken" else float(rng.uniform(1.4, 2.8))
    count = max(1, round(seconds * per_second / 1.5))
    vocalise = singer.manner != "spoken" and rng.random() < 0.12
    pool = [str(rng.choice(VOCALISES))] * 2 + [str(rng.choice(VOCALISES))] if vocalise else list(WORDS[singer.language])
    spoken = singer.manner == "spoken"
    while True:
        text = " ".join(str(word) for word in rng.choice(pool, count))
        utterance = speak(
            text,
            singer.voice,
            rate=singer.words_per_minute + 25 * spoken,
            pitch=45 if singer.female else 40,
            pitch_range=60 if spoken else 20,
        )
        phrase = analyse(utterance, singer.timbre)
        if phrase is not None:
            return phrase
