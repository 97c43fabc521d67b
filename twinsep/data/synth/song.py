"""One generated song from one seed: arrangement, levels, and stems that add up exactly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from twinsep.config import SOURCES
from twinsep.data.synth import effects, instruments, parts
from twinsep.data.synth.composition import Plan, compose
from twinsep.data.synth.effects import SAMPLE_RATE, Real, gain
from twinsep.data.synth.instruments import Bend, play
from twinsep.data.synth.vocals import vocals
from twinsep.errors import InputError

#: Raised whenever a seed would give another song.
VERSION = 2
#: Largest peak of a song, full scale being 1.
PEAK = 0.96
#: Shortest song in seconds.
SHORTEST = 2.0
# Range of the vocals' level relative to the accompaniment in dB, and of the panning of chords, pads and leads (0 is the
# centre, 1 a side). Much music has a loud, central voice, and a model can learn that within minutes: with −8 … −3 dB
# and central instruments it had learned only one gain per band after 1000 steps.
_VOCALS_DB = (-6.0, -1.0)
_ASIDE = (0.4, 0.95)
# General-MIDI programs of each role.
_COMPING = (0, 1, 2, 4, 5, 16, 18, 24, 25, 26, 27, 28, 29, 30, 6, 7, 11, 88, 90)
_PADS = (48, 49, 50, 51, 89, 91, 92, 94, 19)
_LEADS = (56, 57, 61, 62, 64, 65, 66, 68, 71, 73, 80, 81, 84, 87, 29, 30, 40, 21, 11, 104)
# Programs with glides and vibrato: strings, brass, reeds, flutes, synthesiser leads, also "voices".
_GLIDING = (40, 41, 42, 56, 57, 64, 65, 66, 68, 71, 73, 75, 78, 79, 80, 81, 82, 84, 85, 29, 110)
_GUITARS_WITH_FUZZ = (29, 30)
_DRUM_KITS = (0, 0, 8, 16, 25)
_BASSES = (32, 33, 33, 34, 35, 36, 38, 39)


@dataclass(frozen=True)
class Song:
    """A song as int16 (samples, 2) at 44.1 kHz: ``stems`` by source and ``mixture``, their exact sum.

    ``info`` holds what was drawn, in JSON types.
    """

    stems: dict[str, np.ndarray]
    mixture: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)


def song(seed: int, seconds: Real) -> Song:
    """Generate the song of ``seed``, ``seconds`` long; it is identical to the bit on one machine, whatever ran before.

    Raises :class:`InputError` for a length below SHORTEST seconds or a missing package.
    """
    if seconds < SHORTEST:
        raise InputError(f"a generated song lasts at least {SHORTEST:g} s, not {seconds:g}")
    rng = np.random.default_rng([VERSION, seed])
    samples = round(seconds * SAMPLE_RATE)
    plan = compose(rng, seconds)
    drums, bass, (other, programs) = _drums(rng, plan, samples), _bass(rng, plan, samples), _other(rng, plan, samples)
    voice, voice_info = vocals(rng, plan, samples)
    stems = {
        "drums": _level(drums, -21 + rng.normal(0, 2)),
        "bass": _level(bass, -22 + rng.normal(0, 2)),
        "other": _level(other, -20 + rng.normal(0, 2)),
    }
    accompaniment = stems["drums"] + stems["bass"] + stems["other"]
    ratio = float(rng.uniform(*_VOCALS_DB))
    stems["vocals"] = voice * np.float32(effects.active_rms(accompaniment) * gain(ratio) / effects.active_rms(voice))
    cutoff = None
    if rng.random() < 0.5:  # like a lossy codec, equal for all stems so that the cut-off gives no cue
        cutoff = float(rng.uniform(12_000, 20_000))
        stems = {name: effects.brickwall(x, cutoff) for name, x in stems.items()}
    info = {
        "seed": seed,
        "tempo": plan.tempo,
        "sections": plan.sections,
        "programs": programs,
        **voice_info,
        "low_pass_hz": cutoff,
        "vocals_db": ratio,
    }
    return mix_down(stems, rng.uniform(0.6, PEAK), info)


def mix_down(stems: dict[str, np.ndarray], peak: Real, info: dict[str, Any]) -> Song:
    """Scale float stems (samples, 2) together to ``peak`` (full scale 1), round them, and sum them as integers."""
    stems = {name: stems[name] for name in SOURCES}
    loudest = max(float(np.abs(x).max()) for x in (*stems.values(), sum(stems.values())))
    scale = peak * 32767 / max(loudest, 1e-9)
    whole = {name: np.round(x * scale).astype(np.int16) for name, x in stems.items()}
    total = sum(x.astype(np.int32) for x in whole.values())
    return Song(whole, np.asarray(total).astype(np.int16), info)


def _level(x: np.ndarray, decibels: Real) -> np.ndarray:
    """Scale ``x`` to an active level of ``decibels`` re full scale."""
    return (x * (gain(decibels) / effects.active_rms(x))).astype(np.float32)


def _drums(rng: np.random.Generator, plan: Plan, samples: int) -> np.ndarray:
    """Drum stem (samples, 2)."""
    notes = parts.drums(rng, plan)
    kit = play(notes, int(rng.choice(_DRUM_KITS)), samples, drums=True)
    kit = kit / effects.active_rms(kit)
    if rng.random() < 0.7:
        kit = kit + instruments.cymbal_air(rng, notes, samples) * gain(rng.uniform(-28, -14))
    bright = rng.uniform(5000, 12_000)
    kit = effects.reverb(kit, rng, seconds=rng.uniform(0.25, 0.9), wet=rng.uniform(-22, -11), bright=bright)
    return effects.saturate(kit, rng.uniform(0.3, 1.5))


def _bass(rng: np.random.Generator, plan: Plan, samples: int) -> np.ndarray:
    """Bass stem (samples, 2), nearly mono."""
    bend = Bend(rng.uniform(4, 6), rng.uniform(0, 0.2), rng.uniform(0.01, 0.08)) if rng.random() < 0.3 else None
    sound = play(parts.bass(rng, plan), int(rng.choice(_BASSES)), samples, bend=bend)
    sound = effects.saturate(sound, rng.uniform(0.2, 3))
    return (0.9 * sound.mean(1, keepdims=True) + 0.1 * sound).astype(np.float32)


def _other(rng: np.random.Generator, plan: Plan, samples: int) -> tuple[np.ndarray, list[int]]:
    """Stem of the other instruments (samples, 2), and their programs.

    Up to five parts: two comping parts, a pad, a riff and a gliding lead.
    """
    out = np.zeros((samples, 2), np.float32)
    programs: list[int] = []

    def add(notes: list, program: int, level: Real, bend: Bend | None = None) -> None:
        if not notes:
            return
        sound = play(notes, program, samples, position=rng.choice((-1, 1)) * rng.uniform(*_ASIDE), bend=bend)
        if program in _GUITARS_WITH_FUZZ:
            sound = effects.saturate(sound, rng.uniform(2, 5))
        sound = sound / effects.active_rms(sound)
        if rng.random() < 0.2:  # the soundfont is dull: add overtones up to 20 kHz
            sound = effects.exciter(sound, rng.uniform(2000, 4500), rng.uniform(0.2, 1.0))
        if rng.random() < 0.15:
            sound = sound + instruments.breath(rng, sound, rng.uniform(1500, 6000)) * gain(rng.uniform(-30, -16))
        programs.append(program)
        out[:] += (sound * gain(level + rng.normal(0, 2))).astype(np.float32)

    styles = rng.choice(parts.STYLES, 2)
    first, second = (int(p) for p in rng.choice(_COMPING, 2, replace=False))
    add(parts.comping(rng, plan, str(styles[0])), first, 0)
    if rng.random() < 0.7:
        add(parts.comping(rng, plan, str(styles[1]), base=60, skip="i"), second, -2)
    if rng.random() < 0.7:
        add(parts.comping(rng, plan, "block", base=60, skip=str(rng.choice(["", "v"]))), int(rng.choice(_PADS)), -5)
    if rng.random() < 0.4:
        program = int(rng.choice(_LEADS))
        add(parts.lead(rng, plan, 55 if program in (57, 66) else 67), program, -4)
    if rng.random() < 0.25:
        bend = Bend(rng.uniform(4.5, 6.8), rng.uniform(0.1, 0.7), rng.uniform(0.02, 0.1))
        add(parts.lead(rng, plan, int(rng.integers(48, 70)), legato=True), int(rng.choice(_GLIDING)), -3, bend)
    if rng.random() < 0.1:
        out += instruments.hiss(rng, samples) * np.float32(effects.active_rms(out) * gain(rng.uniform(-42, -24)))
    wet, length = rng.uniform(-20, -10), rng.uniform(0.5, 2.0)
    wide = effects.reverb(out, rng, seconds=length, wet=wet, bright=rng.uniform(3000, 10_000))
    return effects.high_pass(wide, 60), programs
