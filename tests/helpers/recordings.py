"""Fabricated recordings: instrumentals and speech that nobody recorded, as files and as a catalogue."""

import hashlib

import numpy as np
import scipy.signal
import soundfile
import yaml

RATE = 44_100


def instrumental(seconds, seed=0):
    """A C major chord with noise, wider than mono: (samples, 2)."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    chord = sum(np.sin(2 * np.pi * f * t + f) for f in (130.81, 261.63, 329.63, 392.0, 523.25))
    noise = scipy.signal.lfilter([1], [1, -0.9], rng.standard_normal((len(t), 2)), axis=0)
    return 0.05 * chord[:, None] + 0.02 * noise


def speech(syllables=3, hertz=140.0, seed=0, length=0.22):
    """Vowels of a low voice, a gap after each: mono (samples,)."""
    rng = np.random.default_rng(seed)
    period, parts = round(RATE / hertz), []
    for n in range(syllables):
        pulses = np.zeros(round(length * RATE))
        pulses[::period] = 1
        first, second = (500 + 150 * (n % 2), 1500 - 300 * (n % 2))
        for formant in (first, second, 2600):
            radius = np.exp(-np.pi * 90 / RATE)
            feedback = [1, -2 * radius * np.cos(2 * np.pi * formant / RATE), radius**2]
            pulses = scipy.signal.lfilter([1 - radius], feedback, pulses)
        vowel = pulses / np.abs(pulses).max() * np.hanning(len(pulses)) ** 0.3
        parts += [vowel, np.zeros(round(0.08 * RATE))]
    sound = np.concatenate(parts)
    return 0.3 * sound + 1e-4 * rng.standard_normal(len(sound))


#: Path below the folder of recordings → sound; the set has every split, a singer and a song with voice.
FILES = {
    **{f"band/music/{name}.ogg": lambda n=n: instrumental(8, n) for n, name in enumerate(("a", "b", "valid", "held"))},
    "album/music/song.ogg": lambda: instrumental(8, 9),
    **{
        f"talk/{who}/{n}.wav": lambda n=n: speech(3, 110 + 10 * n, n)
        for who in ("ann", "vera", "tom")
        for n in range(6)
    },
    "solo/singer_1.wav": lambda: np.tile(speech(8, 220.0), 2),
}
DIGEST = hashlib.sha256(b"").hexdigest()
COMMON = {"source": "debian", "version": "1.0-1", "sha256": DIGEST, "licence": "MIT", "attribution": "Nobody"}
CATALOGUE = {
    "band": {
        **COMMON,
        "role": "instrumentals",
        "genre": "rock",
        "files": ["music/*.ogg"],
        "valid": ["*/valid.ogg"],
        "test": ["*/held.ogg"],
    },
    "album": {**COMMON, "role": "instrumentals", "genre": "metal", "sung": True, "files": ["music/*.ogg"]},
    "talk": {
        **COMMON,
        "role": "voices",
        "speaker": "^([a-z]+)/",
        "files": ["*.wav"],
        "valid": ["vera/*"],
        "test": ["tom/*"],
    },
    "solo": {
        **COMMON,
        "role": "voices",
        "sings": True,
        "speaker": "(singer_[0-9]+)",
        "files": ["*.wav"],
        "test": ["*"],
    },
}


def write_recordings(root):
    """Write the files below ``root``, and the catalogue as ``<root>.yaml``."""
    for path, make in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / path, make(), RATE)
    root.with_suffix(".yaml").write_text(yaml.safe_dump(CATALOGUE, sort_keys=False))
