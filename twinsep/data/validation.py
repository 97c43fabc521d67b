"""Validation excerpts: a fixed set of short segments of the split ``valid``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from twinsep.config import Config
from twinsep.data.dataset import Track, open_track, track_folders

#: Root mean square of the vocals, full scale 1, above which a validation excerpt has voice: −40 dB.
_VOICE_RMS = 0.01


class ValidationSegment(NamedTuple):
    """An excerpt for validation, at most ``validation_seconds`` long, with the name of its song."""

    track: str
    mixture: Float32[np.ndarray, "2 s"]
    target: Float32[np.ndarray, "n 2 s"]


def validation_segments(config: Config) -> list[ValidationSegment]:
    """Read one excerpt of each of up to ``validation_tracks`` songs, always the same ones.

    The songs are spread evenly over the split ``valid``. The excerpt is the one nearest to the middle of the song that
    has voice, or else the middle itself; a shorter song is taken whole. Raises :class:`InputError` as
    :func:`track_folders` and :func:`open_track` do.
    """
    model, wanted = config.model, config.training.validation_tracks
    folders = track_folders(config.data.root, "valid", config.data.exclude)
    chosen = [folders[i * len(folders) // wanted] for i in range(wanted)] if wanted < len(folders) else folders
    return [_excerpt(open_track(folder, model.sample_rate, model.targets), config) for folder in chosen]


def _excerpt(track: Track, config: Config) -> ValidationSegment:
    length = min(track.frames, round(config.training.validation_seconds * track.sample_rate))
    start = next(
        (start for start in _from_the_middle(track.frames, length) if _has_voice(track, start, length)),
        (track.frames - length) // 2,
    )
    target = np.stack([track.read(stem, start, length) for stem in config.model.targets])
    return ValidationSegment(track.name, track.read("mixture", start, length), target)


def _from_the_middle(frames: int, length: int) -> Iterator[int]:
    """Start samples of adjacent excerpts: the middle one first, then alternately to its right and left."""
    middle = (frames - length) // 2
    for distance in range(0, middle + 1, length):
        yield middle + distance
        if distance:
            yield middle - distance


def _has_voice(track: Track, start: int, length: int) -> bool:
    return float(np.sqrt(np.mean(np.square(track.read("vocals", start, length))))) > _VOICE_RMS
