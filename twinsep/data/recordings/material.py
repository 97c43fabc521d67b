"""The material of songs: passages of instrumentals without voice, and voices by speaker, for each split."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from twinsep import audio
from twinsep.data.recordings.catalogue import Recording
from twinsep.data.recordings.speech import trim
from twinsep.data.synth import effects
from twinsep.data.synth.effects import SAMPLE_RATE, Real
from twinsep.errors import InputError
from twinsep.utils.files import write_json

#: A speaker has at least this many files, or every phrase of a song would be the same one.
FEWEST_FILES = 5
_SHORTEST, _LONGEST = 0.35, 5.0  # seconds of an utterance
_JOINED = 1.2  # seconds up to which short utterances are joined to a phrase, _GAP seconds apart
_GAP = 0.06
_SPEECH_RMS = 0.08
#: Song → runs [start, end) of seconds.
Runs = Mapping[str, Sequence[tuple[int, int]]]
_TRIES = 20  # drawn passages of which one must sound most of the time


@dataclass(frozen=True)
class Passages:
    """An instrumental: path below the folder of recordings, genre, and runs [start, end) of seconds without voice."""

    path: str
    genre: str
    runs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Material:
    """Passages and voices for the songs of one split; ``voices`` speak and ``singers`` sing, paths by speaker."""

    root: Path
    instrumentals: tuple[Passages, ...] = ()
    voices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    singers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Songs with voice and without stems, with the runs in which it sings.
    sung: tuple[Passages, ...] = ()


def write_material(path: Path, found: Iterable[Recording], free: Runs, sung: Runs) -> None:
    """Write the material of all splits; ``free`` has the runs without voice by instrumental.

    ``sung`` has the runs with voice of whole songs, which only tests use. Speakers of fewer than :data:`FEWEST_FILES`
    files are left out, unless they sing.
    """
    splits: dict[str, dict] = {"test": _nothing()}
    for each in found:
        part = splits.setdefault(each.split, _nothing())
        if each.path in sung:
            splits["test"]["sung"].append(asdict(Passages(each.path, each.genre, tuple(sung[each.path]))))
        elif each.role == "instrumentals":
            if runs := free.get(each.path):
                part["instrumentals"].append(asdict(Passages(each.path, each.genre, tuple(runs))))
        else:
            part["singers" if each.sings else "voices"].setdefault(each.speaker, []).append(each.path)
    for part in splits.values():
        part["voices"] = {name: files for name, files in part["voices"].items() if len(files) >= FEWEST_FILES}
    write_json(path, splits)


def _nothing() -> dict[str, Any]:
    return {"instrumentals": [], "voices": {}, "singers": {}, "sung": []}


@cache
def read_material(path: Path, root: Path, split: str) -> Material:
    """Read the material of a split, whose files lie below ``root``; raises :class:`InputError` if there is none."""
    try:
        part = json.loads(path.read_text())[split]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} holds no material for {split} songs: scan the recordings first") from error

    def passages(values: list[dict]) -> tuple[Passages, ...]:
        return tuple(Passages(v["path"], v["genre"], tuple((a, b) for a, b in v["runs"])) for v in values)

    voices, singers = ({name: tuple(files) for name, files in part[key].items()} for key in ("voices", "singers"))
    return Material(root, passages(part["instrumentals"]), voices, singers, passages(part["sung"]))


def draw_passage(rng: np.random.Generator, material: Material, seconds: Real) -> tuple[np.ndarray, Passages, float]:
    """Draw a passage without voice, (samples, 2) at 44.1 kHz, with its instrumental and its first second.

    All seconds at which a passage of that length can begin are equally likely. Raises :class:`InputError` if there is
    none, or if those drawn are nearly silent.
    """
    places = [
        (each, start, end - seconds)
        for each in material.instrumentals
        for start, end in each.runs
        if end - start >= seconds
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


def read_stereo(path: Path, start: Real = 0, seconds: Real | None = None) -> np.ndarray:
    """Read a file from second ``start`` on as float32 (samples, 2) at 44.1 kHz; shorter at its end."""
    header = audio.info(path)
    first = round(start * header.sample_rate)
    frames = header.frames - first if seconds is None else round(seconds * header.sample_rate)
    sound = audio.read_segment(path, first, max(0, min(frames, header.frames - first)))
    sound = audio.resample(np.broadcast_to(sound, (2, sound.shape[1])), header.sample_rate, SAMPLE_RATE)
    return np.ascontiguousarray(sound.T)
