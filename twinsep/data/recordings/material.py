"""The material of songs: passages of instrumentals without voice, and voices by speaker, for each split."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from twinsep import audio
from twinsep.data.recordings.catalogue import Recording
from twinsep.data.recordings.speech import trim
from twinsep.data.synth import effects
from twinsep.data.synth.effects import SAMPLE_RATE
from twinsep.errors import InputError
from twinsep.utils.files import write_json

#: A speaker has at least this many files, or every phrase of a song would be the same one.
FEWEST_FILES = 5
_SHORTEST, _LONGEST = 0.35, 5.0  # seconds of an utterance
_JOINED = 1.2  # seconds up to which short utterances are joined to a phrase, _GAP seconds apart
_GAP = 0.06
_SPEECH_RMS = 0.08
_TRIES = 20  # drawn passages of which one must sound most of the time


@dataclass(frozen=True)
class Passages:
    """An instrumental: path below the folder of recordings, genre, and runs [start, end) of seconds without voice."""

    path: str
    genre: str
    runs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Material:
    """What the songs of one split are made of; ``voices`` speak and ``singers`` sing, paths by speaker."""

    root: Path
    instrumentals: tuple[Passages, ...] = ()
    voices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    singers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def write_material(path: Path, found: Iterable[Recording], free: Mapping[str, list[tuple[int, int]]]) -> None:
    """Write the material of all splits; ``free`` has the runs without voice by instrumental.

    Speakers of fewer than :data:`FEWEST_FILES` files are left out, unless they sing.
    """
    splits: dict[str, dict] = {}
    for each in found:
        part = splits.setdefault(each.split, {"instrumentals": [], "voices": {}, "singers": {}})
        if each.role == "instrumentals":
            if runs := free.get(each.path):
                part["instrumentals"].append(asdict(Passages(each.path, each.genre, tuple(runs))))
        else:
            part["singers" if each.sings else "voices"].setdefault(each.speaker, []).append(each.path)
    for part in splits.values():
        part["voices"] = {name: files for name, files in part["voices"].items() if len(files) >= FEWEST_FILES}
    write_json(path, splits)


@cache
def read_material(path: Path, root: Path, split: str) -> Material:
    """Read the material of a split, whose files lie below ``root``; raises :class:`InputError` if there is none."""
    try:
        part = json.loads(path.read_text())[split]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} holds no material for {split} songs: scan the recordings first") from error
    return Material(
        root,
        tuple(
            Passages(each["path"], each["genre"], tuple((start, end) for start, end in each["runs"]))
            for each in part["instrumentals"]
        ),
        {name: tuple(files) for name, files in part["voices"].items()},
        {name: tuple(files) for name, files in part["singers"].items()},
    )


def draw_passage(rng: np.random.Generator, material: Material, seconds: float) -> tuple[np.ndarray, Passages, float]:
    """Draw a passage without voice, (samples, 2) at 44.1 kHz, with its instrumental and its first second.

    All seconds at which a passage of that length can begin are equally likely. Raises :class:`InputError` if there is
    none, or if those drawn are nearly silent.
    """
    places = [
        (each, start, end - seconds) for each in material.instrumentals for start, end in each.runs if end - start >= seconds
    ]
    if not places:
        raise InputError(f"no instrumental is free of voice for {seconds:g} s: make shorter songs")
    room = np.array([last - start + 1.0 for _, start, last in places])
    for _ in range(_TRIES):
        each, start, last = places[int(rng.choice(len(places), p=room / room.sum()))]
        begin = float(rng.uniform(start, last)) if last > start else float(start)
        sound = read_stereo(material.root / each.path, begin, seconds)
        if effects.active(sound).mean() > 0.7 and effects.rms(sound) > 0.003:
            return sound, each, begin
    raise InputError(f"{_TRIES} passages in a row are nearly silent, the last one in {each.path}: drop such recordings")


def draw_speaker(rng: np.random.Generator, voices: Mapping[str, tuple[str, ...]]) -> str:
    """Draw a speaker, with a probability that grows with the square root of the number of files.

    Raises :class:`InputError` if there is none.
    """
    if not voices:
        raise InputError("the recordings hold no voice for these songs: correct the catalogue")
    names = sorted(voices)
    weights = np.sqrt([len(voices[name]) for name in names])
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]


def draw_phrases(
    rng: np.random.Generator, root: Path, files: tuple[str, ...], seconds: float
) -> list[tuple[tuple[str, ...], np.ndarray]]:
    """Draw utterances of one speaker, about ``seconds`` in all: files, and mono sound at 44.1 kHz, of each phrase."""
    phrases: list[tuple[tuple[str, ...], np.ndarray]] = []
    names: tuple[str, ...] = ()
    parts: list[np.ndarray] = []
    total = 0.0
    for index in rng.permutation(len(files)):
        said = trim(read_stereo(root / files[index]).mean(1))[: round(_LONGEST * SAMPLE_RATE)]
        if len(said) < _SHORTEST * SAMPLE_RATE:
            continue
        names += (files[index],)
        parts += [said / effects.active_rms(said[:, None]) * _SPEECH_RMS, np.zeros(round(_GAP * SAMPLE_RATE))]
        if sum(map(len, parts)) >= _JOINED * SAMPLE_RATE:
            phrases.append((names, np.concatenate(parts[:-1]).astype(np.float32)))
            total += len(phrases[-1][1]) / SAMPLE_RATE
            names, parts = (), []
            if total >= seconds:
                return phrases
    if parts:
        phrases.append((names, np.concatenate(parts[:-1]).astype(np.float32)))
    return phrases


def read_stereo(path: Path, start: float = 0.0, seconds: float | None = None) -> np.ndarray:
    """Read a file from second ``start`` on as float32 (samples, 2) at 44.1 kHz; shorter at its end."""
    header = audio.info(path)
    first = round(start * header.sample_rate)
    frames = header.frames - first if seconds is None else round(seconds * header.sample_rate)
    sound = audio.read_segment(path, first, max(0, min(frames, header.frames - first)))
    sound = audio.resample(np.broadcast_to(sound, (2, sound.shape[1])), header.sample_rate, SAMPLE_RATE)
    return np.ascontiguousarray(sound.T)
