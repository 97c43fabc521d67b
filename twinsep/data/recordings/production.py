"""Production as records have it: the vocals' chain, widths, levels, mastering, lossy codecs.

Signals are float32 (samples, 2) at 44.1 kHz. What works on a whole song (mastering) changes all stems by one gain, so
that they still add up to it; codecs and low-passes change each stem alone, as in songs put together from files of
several origins.
"""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
import scipy.fft
import soundfile
from jaxtyping import Float32
from scipy.ndimage import minimum_filter1d, uniform_filter1d

from twinsep import audio
from twinsep.data.synth import effects
from twinsep.data.synth.effects import SAMPLE_RATE, Real, gain

Sound = Float32[np.ndarray, "s 2"]
#: Codecs: libsndfile's container and subtype, the sample rate in Hz, and the range of the compression (0 none, 1 most).
CODECS: dict[str, tuple[str, str, int, tuple[float, float]]] = {
    "mp3": ("MP3", "MPEG_LAYER_III", 44_100, (0.2, 0.7)),
    "opus": ("OGG", "OPUS", 48_000, (0.6, 0.95)),
    "vorbis": ("OGG", "VORBIS", 44_100, (0.3, 0.9)),
}
_LONGEST_DELAY = 4096  # samples, of a codec
_BLOCK = SAMPLE_RATE  # samples given to an encoder at once


def vocal_chain(rng: np.random.Generator, lead: np.ndarray, doubles: list[np.ndarray]) -> tuple[Sound, list[str]]:
    """A lead (samples,) and its doubles, alternately left and right, mixed and treated; and names of what was done."""
    out, used = effects.pan(lead, rng.normal(0, 0.05)), []
    if doubles:
        used.append("doubles")
    for index, double in enumerate(doubles):
        side = (-1, 1)[index % 2]
        late = np.pad(double, (round(rng.uniform(0.006, 0.03) * SAMPLE_RATE), 0))[: len(lead)]
        out += effects.pan(late, side * rng.uniform(0.4, 1.0)) * np.float32(rng.uniform(0.2, 0.6))
    out = equalise(rng, effects.high_pass(out, rng.uniform(70, 140)), bright=rng.uniform(0, 7))
    out = effects.compress(effects.compress(out, rng.uniform(0.2, 0.5)), rng.uniform(0, 0.3))
    if rng.random() < 0.3:
        used.append("saturation")
        out = effects.saturate(out, rng.uniform(0.3, 3))
    if rng.random() < 0.05:
        used.append("telephone")
        out = effects.low_pass(effects.high_pass(out, rng.uniform(300, 500)), rng.uniform(2500, 4500))
    if rng.random() < 0.4:
        used.append("delay")
        out = effects.echo(out, rng.uniform(0.15, 0.6), rng.uniform(-20, -10))
    wet, length = rng.uniform(-22, -8), rng.uniform(0.3, 2.5)
    bright, predelay = rng.uniform(3000, 9000), rng.uniform(0.005, 0.05)
    return effects.reverb(out, rng, seconds=length, wet=wet, bright=bright, predelay=predelay), used


def equalise(rng: np.random.Generator, x: Sound, *, bright: Real = 0.0, spread: Real = 3.0) -> Sound:
    """Zero-phase equaliser: three bells of N(0, ``spread``) dB at 100 Hz to 10 kHz, and a treble of ``bright`` dB."""
    size = scipy.fft.next_fast_len(len(x) + SAMPLE_RATE // 10, real=True)
    octaves = np.log2(np.maximum(np.arange(size // 2 + 1) * (SAMPLE_RATE / size), 20) / 1000)
    decibels = bright / (1 + np.exp(-4 * (octaves - np.log2(3.5))))
    for _ in range(3):
        centre, width = rng.uniform(np.log2(0.1), np.log2(10)), rng.uniform(0.3, 1.2)
        decibels = decibels + rng.normal(0, spread) * np.exp(-0.5 * ((octaves - centre) / width) ** 2)
    spectrum = scipy.fft.rfft(x.astype(np.float32), size, axis=0)
    spectrum *= (10 ** (decibels / 20)).astype(np.float32)[:, None]
    return scipy.fft.irfft(spectrum, size, axis=0)[: len(x)].astype(np.float32)


def set_width(x: Sound, decibels: Real) -> Sound:
    """Scale the side, (L − R)/2, by a level in dB and keep the mid, (L + R)/2."""
    mid, side = (x[:, 0] + x[:, 1]) / 2, (x[:, 0] - x[:, 1]) / 2 * np.float32(gain(decibels))
    return np.stack([mid + side, mid - side], 1)


def spread(x: Sound, seconds: Real, decibels: Real) -> Sound:
    """Widen by a delayed copy of the mid in the side: what was in the centre alone is now wide too."""
    mid = (x[:, 0] + x[:, 1]) / 2
    late = np.pad(mid, (max(1, round(seconds * SAMPLE_RATE)), 0))[: len(x)] * np.float32(gain(decibels))
    return x + np.stack([late, -late], 1)


def fade_out(x: Sound, start: int, end: int, seconds: float = 0.03) -> Sound:
    """Silence the samples [start, end), with cosine fades of ``seconds`` outside them."""
    edge = round(seconds * SAMPLE_RATE)
    distance = np.maximum(start - np.arange(len(x)), np.arange(len(x)) - (end - 1))
    level = 0.5 - 0.5 * np.cos(np.pi * np.clip(distance / edge, 0, 1))
    return x * level.astype(np.float32)[:, None]


def master(rng: np.random.Generator, stems: Mapping[str, Sound]) -> dict[str, Sound]:
    """Compress and limit a song: one gain over time, from the sum of the stems, for all of them."""
    song = np.sum([*stems.values()], 0)
    usual = effects.active_rms(song)
    power = uniform_filter1d(np.square(song).mean(1, dtype=np.float64), round(rng.uniform(0.02, 0.2) * SAMPLE_RATE))
    loudness = np.sqrt(np.maximum(power, 0))  # a running sum may end a little below zero
    change = (usual / np.maximum(loudness, usual / 4)) ** rng.uniform(0, 0.35)
    change = np.clip(change, 0.4, 1.6)
    ceiling = usual * gain(rng.uniform(8, 16))  # the crest that is left
    need = np.minimum(1, ceiling / np.maximum(np.abs(song).max(1) * change, 1e-9))
    window = round(0.005 * SAMPLE_RATE)  # the limiter looks ahead, and lets go over the same time
    change *= uniform_filter1d(minimum_filter1d(need, window), window)
    return {name: (x * change[:, None]).astype(np.float32) for name, x in stems.items()}


def lossy(x: Sound, codec: str, compression: float) -> Sound:
    """Encode and decode by one of :data:`CODECS`, aligned to the sample; a silent sound is returned as it is."""
    container, subtype, rate, _ = CODECS[codec]
    peak = float(np.abs(x).max(initial=0.0))
    if peak == 0:
        return x
    sent = audio.resample((x / (2 * peak)).T, SAMPLE_RATE, rate).T  # no encoder clips
    file = io.BytesIO()
    options = {"format": container, "subtype": subtype, "compression_level": compression}
    with soundfile.SoundFile(file, "w", rate, 2, **options) as encoder:
        for start in range(0, len(sent), _BLOCK):
            encoder.write(sent[start : start + _BLOCK])
    file.seek(0)
    heard, decoded_rate = soundfile.read(file, dtype="float32", always_2d=True)
    heard = audio.resample(heard.T, decoded_rate, SAMPLE_RATE).T * np.float32(2 * peak)
    return align(heard, x)


def align(x: Float32[np.ndarray, "r 2"], reference: Sound) -> Sound:
    """Move ``x`` by up to 4,096 samples to where it fits ``reference`` best, and give it its length."""
    size = scipy.fft.next_fast_len(len(x) + len(reference), real=True)
    spectra = (scipy.fft.rfft(y.sum(1, dtype=np.float64), size) for y in (x, reference))
    product = next(spectra) * np.conj(next(spectra))
    correlation = scipy.fft.irfft(product, size)
    lags = np.arange(-_LONGEST_DELAY, _LONGEST_DELAY + 1)
    lag = int(lags[np.argmax(correlation[lags])])
    moved = x[lag:] if lag >= 0 else np.pad(x, ((-lag, 0), (0, 0)))
    return np.pad(moved, ((0, max(0, len(reference) - len(moved))), (0, 0)))[: len(reference)]
