"""Small data sets of noise, and digests of training batches."""

import hashlib

import numpy as np

from twinsep import audio
from twinsep.config import SOURCES

#: Sample rate in Hz.
RATE = 44_100
#: Data options that turn every augmentation off.
PLAIN = {"remix": 0, "gain_db": 0, "channel_swap": 0, "polarity": 0, "silent_target": 0, "low_pass": 0}


def make_song(folder, frames=RATE, seed=0, mixture=True, rate=RATE, channels=2):
    """Write the stems of a song of 16-bit noise, by default with its mixture; returns the stems by source."""
    rng = np.random.default_rng(seed)
    stems = {source: rng.integers(-3000, 3000, (channels, frames)) / 2.0**15 for source in SOURCES}
    for source, stem in stems.items():
        audio.write(folder / f"{source}.wav", stem, rate, subtype="PCM_16")
    if mixture:
        audio.write(folder / "mixture.wav", sum(stems.values()), rate, subtype="PCM_16")
    return {source: stem.astype(np.float32) for source, stem in stems.items()}


def make_pair(folder, frames=4_000, seed=0, channels=2):
    """Write a paired song of 16-bit noise; returns (mixture, target)."""
    target, rest = np.random.default_rng(seed).integers(-3000, 3000, (2, channels, frames)) / 2.0**15
    for name, sound in (("in.wav", target + rest), ("out.wav", target)):
        audio.write(folder / name, sound, RATE, subtype="PCM_16")
    return (target + rest).astype(np.float32), target.astype(np.float32)


def digest(batch):
    """SHA-256 of a batch: its songs, numbers and samples."""
    content = hashlib.sha256(repr((batch["index"], batch["song"])).encode())
    for key in ("mixture", "target"):
        content.update(np.ascontiguousarray(batch[key]).tobytes())
    return content.hexdigest()


def take(iterator, count):
    """Digests of the next ``count`` batches."""
    return [digest(next(iterator)) for _ in range(count)]
