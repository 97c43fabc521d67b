"""Separating a whole song: in chunks, with overlap-add, around any callable."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from twinsep import audio
from twinsep.errors import InputError
from twinsep.progress import Report

#: (b, 2, s) float32 -> (b, stems, 2, s) float32, NumPy in and out.
Separate = Callable[[np.ndarray], np.ndarray]


def separate(
    model: Separate,
    waveform: np.ndarray,
    *,
    segment: int,
    overlap: float = 0.25,
    progress: Report | None = None,
) -> np.ndarray:
    """Stems (stems, c, s) of ``waveform`` (c, s), both float32 at the model's rate.

    Chunks of ``segment`` samples overlap by the fraction ``overlap`` of their length, fade linearly into
    each other and are weighted so that the weights of every sample sum to 1: a model that returns its
    input returns the song. All chunks have one length, so that a compiled model is compiled once; the
    last one is moved forward to end with the song, and a song shorter than a chunk is zero-padded.
    ``progress`` is called with (chunks done, chunks in all). Raises :class:`InputError` for an overlap
    outside [0, 0.95], an empty segment, or a model whose output has another length.
    """
    if not 0 <= overlap <= 0.95:
        raise InputError(f"overlap {overlap} is not between 0 and 0.95")
    if segment < 1:
        raise InputError(f"segment of {segment} samples; give at least one")
    samples = waveform.shape[-1]
    padded = np.pad(waveform, ((0, 0), (0, max(0, segment - samples))))
    total = padded.shape[-1]
    starts = chunk_starts(total, segment, overlap)
    out: np.ndarray | None = None
    weight = np.zeros(total, np.float32)
    for done, start in enumerate(starts):
        piece = slice(start, start + segment)
        estimate = np.asarray(model(np.ascontiguousarray(padded[None, :, piece])))[0]
        if estimate.shape[-1] != segment:
            raise InputError(f"the model returned {estimate.shape[-1]} samples for {segment}")
        fade = _fade(starts, done, segment)
        if out is None:
            out = np.zeros((*estimate.shape[:-1], total), np.float32)
        out[..., piece] += estimate * fade
        weight[piece] += fade
        if progress:
            progress(done + 1, len(starts))
    assert out is not None
    out /= weight
    return out[..., :samples]


def chunk_starts(total: int, segment: int, overlap: float) -> list[int]:
    """First samples of the chunks of a song of ``total`` ≥ ``segment`` samples."""
    step = max(1, round(segment * (1 - overlap)))
    starts = list(range(0, total - segment + 1, step))
    if starts[-1] + segment < total:
        starts.append(total - segment)
    return starts


def _fade(starts: list[int], index: int, segment: int) -> np.ndarray:
    """A chunk's weights: ramps over what it shares with its neighbours, 1 elsewhere, never 0."""
    fade = np.ones(segment, np.float32)
    for shared, side in (
        (starts[index - 1] + segment - starts[index] if index else 0, slice(None)),
        (starts[index] + segment - starts[index + 1] if index + 1 < len(starts) else 0, slice(None, None, -1)),
    ):
        if shared > 0:
            fade[side][:shared] *= np.arange(1, shared + 1, dtype=np.float32) / (shared + 1)
    return fade


def separate_song(
    model: Separate,
    waveform: np.ndarray,
    sample_rate: int,
    *,
    model_rate: int,
    segment: int,
    overlap: float = 0.25,
    progress: Report | None = None,
) -> np.ndarray:
    """Stems (stems, c, s) of a song (c, s) of any rate, mono or stereo: same length, rate and channels out.

    Mono goes through the model as two equal channels and comes back as their mean.
    """
    channels, samples = waveform.shape
    stereo = waveform if channels == 2 else np.repeat(waveform, 2, 0)
    stems = separate(
        model,
        audio.resample(stereo, sample_rate, model_rate),
        segment=segment,
        overlap=overlap,
        progress=progress,
    )
    back = np.stack([audio.resample(stem, model_rate, sample_rate, frames=samples) for stem in stems])
    return back if channels == 2 else back.mean(1, keepdims=True)
