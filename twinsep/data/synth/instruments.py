"""Instruments: render notes with a General-MIDI soundfont, and add the high-frequency noise that its samples lack.

The soundfont is ``TimGM6mb.sf2`` (GPL-2), read from the installed package ``pretty_midi``. ``midirenderer`` (MIT, a
wrapper of rustysynth) plays standard MIDI files with it at 48 kHz, including pitch wheel and pan.
"""

from __future__ import annotations

import functools
import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from twinsep.data.synth.composition import Note
from twinsep.data.synth.effects import SAMPLE_RATE, Real, active_rms, high_pass, pan, smooth_noise
from twinsep.errors import InputError

_TICKS = 960  # per beat, which lasts half a second at MIDI's default tempo
_BEND_RATE = 100.0  # pitch-wheel messages per second
_DRUM_CHANNEL = 9


@dataclass(frozen=True)
class Bend:
    """Pitch bend of a part: ``rate`` (Hz) and ``depth`` (semitones) of its vibrato, ``glide`` (s) from note to note."""

    rate: float
    depth: float
    glide: float


def play(
    notes: list[Note],
    program: int,
    samples: int,
    *,
    drums: bool = False,
    position: Real = 0.0,
    bend: Bend | None = None,
) -> np.ndarray:
    """Render ``notes`` on General-MIDI ``program`` as float32 (samples, 2); ``position`` is −1 (left) … 1 (right).

    Raises :class:`InputError` if the packages of the data extra are missing.
    """
    try:
        import midirenderer
    except ImportError as error:
        raise InputError("generated songs need the package midirenderer; pip install 'twinsep[data]'") from error
    end = samples / SAMPLE_RATE
    channel = _DRUM_CHANNEL if drums else 0
    controls = ((7, 127), (10, int(np.clip(64 + 63 * position, 0, 127))), (91, 0), (93, 0))
    messages = [(0.0, bytes((0xB0 | channel, number, value))) for number, value in controls]
    messages.append((0.0, bytes((0xC0 | channel, program))))
    for note in notes:
        messages.append((note.start, bytes((0x90 | channel, note.key, note.velocity))))
        messages.append((min(note.end, end), bytes((0x80 | channel, note.key, 0))))
    if bend is not None:
        messages += _bend_messages(notes, end, channel, bend)
    wave = midirenderer.render_wave_from(_soundfont(), _midi_file(messages, end + 0.1))
    sound, rate = soundfile.read(io.BytesIO(wave), dtype="float32", always_2d=True)
    sound = soxr.resample(sound, rate, SAMPLE_RATE)[:samples]
    return np.pad(sound, ((0, samples - len(sound)), (0, 0)))


@functools.cache
def _soundfont() -> bytes:
    """Content of the soundfont. Raises :class:`InputError` if it is missing."""
    found = importlib.util.find_spec("pretty_midi")
    path = Path(found.origin).with_name("TimGM6mb.sf2") if found and found.origin else None
    if path is None or not path.is_file():
        raise InputError("generated songs need the soundfont of the package pretty_midi; pip install 'twinsep[data]'")
    return path.read_bytes()


def _midi_file(messages: list[tuple[float, bytes]], seconds: Real) -> bytes:
    """Standard MIDI file of format 0 that lasts ``seconds``; at equal times note-offs precede note-ons."""
    track = bytearray()
    now = 0
    for when, message in sorted(messages, key=lambda m: (round(m[0] * 2 * _TICKS), m[1][0] & 0xF0 == 0x90, m[1])):
        tick = round(when * 2 * _TICKS)
        track += _variable_length(tick - now) + message
        now = tick
    track += _variable_length(max(round(seconds * 2 * _TICKS) - now, 0)) + b"\xff\x2f\x00"
    header = b"MThd" + (6).to_bytes(4, "big") + b"".join(v.to_bytes(2, "big") for v in (0, 1, _TICKS))
    return header + b"MTrk" + len(track).to_bytes(4, "big") + bytes(track)


def _variable_length(value: int) -> bytes:
    """MIDI's variable-length encoding of a number."""
    out = [value & 0x7F]
    while value := value >> 7:
        out.append(value & 0x7F | 0x80)
    return bytes(reversed(out))


def bend_curve(notes: list[Note], times: np.ndarray, bend: Bend) -> np.ndarray:
    """Return the deviation in semitones (n,) from the written key at ``times`` (n,) in seconds: glides and vibrato."""
    curve = np.zeros(len(times))
    ordered = sorted(notes, key=lambda n: n.start)
    for index, note in enumerate(ordered):
        until = ordered[index + 1].start if index + 1 < len(ordered) else times[-1] + 1
        inside = (times >= note.start) & (times < until)
        age = times[inside] - note.start
        vibrato = bend.depth * np.clip((age - 0.15) / 0.3, 0, 1) * np.sin(2 * np.pi * bend.rate * age)
        jump = ordered[index - 1].key - note.key if index and note.start - ordered[index - 1].end < 0.1 else -1.0
        curve[inside] = vibrato + np.clip(jump, -7, 7) * np.exp(-age / max(bend.glide, 1e-3))
    return curve


def _bend_messages(notes: list[Note], end: Real, channel: int, bend: Bend) -> list[tuple[float, bytes]]:
    # Registered parameter 0 sets the range of the wheel to 12 semitones instead of 2.
    messages = [(0.0, bytes((0xB0 | channel, number, value))) for number, value in ((101, 0), (100, 0), (6, 12))]
    # Messages at equal times are sorted by their bytes, but the parameter's number must precede its value.
    messages = [(0.001 * i, message) for i, (_, message) in enumerate(messages)]
    times = np.arange(0.005, end, 1 / _BEND_RATE)
    wheel = np.clip(np.round(8192 + bend_curve(notes, times, bend) * 8192 / 12), 0, 16383).astype(int)
    messages += [(t, bytes((0xE0 | channel, w & 0x7F, w >> 7))) for t, w in zip(times, wheel.tolist(), strict=True)]
    return messages


def cymbal_air(rng: np.random.Generator, notes: list[Note], samples: int) -> np.ndarray:
    """Draw bursts of high-frequency noise for hats, cymbals and snare: float32 (samples, 2), unit active level."""
    decays = {38: 0.09, 40: 0.08, 39: 0.1, 42: 0.035, 46: 0.22, 49: 0.9, 51: 0.3, 70: 0.05, 54: 0.08}
    scale = rng.uniform(0.6, 1.8)
    out = np.zeros(samples, np.float32)
    for note in notes:
        start, decay = int(note.start * SAMPLE_RATE), decays.get(note.key, 0.0) * scale
        length = min(int(5 * decay * SAMPLE_RATE), samples - start)
        if length > 0:
            fall = np.exp(-np.arange(length, dtype=np.float32) / (decay * SAMPLE_RATE)) * (note.velocity / 100)
            out[start : start + length] += rng.standard_normal(length, dtype=np.float32) * fall
    if not out.any():
        return pan(out, 0.0)
    bright = high_pass(high_pass(out, rng.uniform(4000, 8000)), 4000)
    return pan(bright / active_rms(bright), rng.uniform(-0.4, 0.4))


def breath(rng: np.random.Generator, sound: np.ndarray, hertz: Real) -> np.ndarray:
    """Draw noise above ``hertz`` that follows the loudness of ``sound``, (samples, 2), like bow or breath noise."""
    hop = 441  # 10 ms
    frames = np.abs(sound[: len(sound) // hop * hop]).reshape(-1, hop, 2).mean((1, 2))
    envelope = np.interp(np.arange(len(sound)), np.arange(len(frames)) * hop + hop / 2, frames)
    noise = rng.standard_normal((len(sound), 2), dtype=np.float32) * envelope[:, None]
    return high_pass(noise, hertz)


def hiss(rng: np.random.Generator, samples: int) -> np.ndarray:
    """Draw slowly swelling wide-band noise (risers, vinyl, rain): float32 (samples, 2), unit active level."""
    steps = samples // 4410 + 2
    swell = np.interp(np.arange(samples) / 4410, np.arange(steps), np.exp(smooth_noise(rng, steps, 0.95)))
    noise = rng.standard_normal((samples, 2), dtype=np.float32) * swell[:, None]
    noise = high_pass(noise, rng.uniform(300, 6000))
    return (noise / active_rms(noise)).astype(np.float32)
