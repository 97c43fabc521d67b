"""A scan of instrumentals for voices, second by second.

Nobody listened to the recordings: "voice-free" means by a detector, the vocals that a published separator finds. True
instrumentals have vocals 31 dB and more below the song, sung passages 5 to 11 dB, false alarms 10 to 14 dB.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from twinsep import audio
from twinsep.data.synth.effects import Real
from twinsep.separation.separator import Separator, load
from twinsep.utils.files import write_json

#: The separator whose vocals are the detector.
DETECTOR = "spleeter-2stems"
#: Energies per second that are added to both sides, so that silence counts as free of voice.
_VOICE_FLOOR, _SONG_FLOOR = 1e-9, 1e-6


@dataclass(frozen=True)
class Thresholds:
    """When a second is free of voice or sung, by the level of the vocals found in it, in dB below the song.

    A run of free seconds counts from ``shortest_free`` seconds on and loses ``margin`` seconds at each end inside the
    song; a sung one counts from ``shortest_sung`` seconds on.
    """

    free_db: Real
    sung_db: Real
    shortest_free: int
    shortest_sung: int
    margin: int


@dataclass(frozen=True)
class Job:
    """One song to scan: its file, and the JSON file for the levels."""

    song: Path
    out: Path


def scan_song(job: Job) -> None:
    """Write the :func:`voice_levels` of a song, rounded to 0.01 dB."""
    levels = voice_levels(job.song, _detector())
    write_json(job.out, [round(float(level), 2) for level in levels])


def read_levels(path: Path) -> Float[np.ndarray, " n"]:
    """Read what :func:`scan_song` wrote."""
    return np.asarray(json.loads(path.read_text()), float)


def voice_levels(path: Path, separator: Separator) -> Float[np.ndarray, " n"]:
    """Energy of the vocals found in each whole second of a song, over that of the song, in dB."""
    song = audio.info(path)
    pieces = separator.stream(audio.blocks(path), song.frames, song.sample_rate)
    return levels_by_second(((piece, stems["vocals"]) for piece, stems in pieces), song.sample_rate)


def levels_by_second(pieces: Iterable[tuple[np.ndarray, np.ndarray]], sample_rate: int) -> Float[np.ndarray, " n"]:
    """Levels of :func:`voice_levels` from a stream of (song, vocals), each (C, n)."""
    energies: list[tuple[float, float]] = []
    rest = np.zeros((2, 0))  # energies of the samples of an unfinished second: of the song and of the vocals
    for piece, vocals in pieces:
        powers = np.stack([np.square(x, dtype=np.float64).sum(0) for x in (piece, vocals)])
        rest = np.concatenate([rest, powers], 1)
        while rest.shape[1] >= sample_rate:
            song, voice = rest[:, :sample_rate].sum(1)
            energies.append((float(song), float(voice)))
            rest = rest[:, sample_rate:]
    song, voice = np.array(energies).reshape(-1, 2).T
    return 10 * np.log10((voice + _VOICE_FLOOR) / (song + _SONG_FLOOR))


def free_runs(levels: Float[np.ndarray, " n"], limits: Thresholds) -> list[tuple[int, int]]:
    """Runs [start, end) of seconds without voice."""
    found = []
    for start, end in runs(levels < limits.free_db):
        inner = (start + limits.margin * (start > 0), end - limits.margin * (end < len(levels)))
        if end - start >= limits.shortest_free and inner[1] > inner[0]:
            found.append(inner)
    return found


def sung_runs(levels: Float[np.ndarray, " n"], limits: Thresholds) -> list[tuple[int, int]]:
    """Runs [start, end) of seconds with much voice."""
    return [(start, end) for start, end in runs(levels > limits.sung_db) if end - start >= limits.shortest_sung]


def runs(mask: Bool[np.ndarray, " n"]) -> list[tuple[int, int]]:
    """Runs [start, end) of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def minutes(found: Mapping[str, Sequence[tuple[int, int]]]) -> float:
    """Minutes that runs of seconds by song last in all."""
    return sum(end - start for each in found.values() for start, end in each) / 60


@cache
def _detector() -> Separator:
    return load(DETECTOR)
