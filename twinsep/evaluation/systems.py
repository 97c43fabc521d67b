"""The systems that can be evaluated: a trained model, two floors and a ceiling.

A *system* maps (track, mixture) to the estimated targets. The floors are the ``mixture`` itself and ``band_gain``,
one fixed gain per band fitted on the training songs: a network below it has learned nothing useful. The ceiling is
``ideal_mask``, the ratio mask of the true stems.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from twinsep.config import ModelConfig
from twinsep.data import dataset
from twinsep.errors import InputError
from twinsep.separation.overlap_add import ArrayModel, ChunkGrid, apply_model
from twinsep.stft import istft, stft
from twinsep.utils.progress import ProgressCallback

#: (track, mixture (2, S)) → {target: (2, S)}.
System = Callable[[dataset.Track, np.ndarray], dict[str, np.ndarray]]
BASELINES = ("mixture", "band_gain", "ideal_mask")


def model_system(model: ArrayModel, config: ModelConfig, grid: ChunkGrid) -> System:
    """The system of a trained model (B, 2, S) → (B, stems, 2, S), applied by overlap-add."""

    def system(_: dataset.Track, mixture: np.ndarray) -> dict[str, np.ndarray]:
        """Return target → estimate (2, S) for a mixture (2, S)."""
        stems = apply_model(model, mixture, grid)
        return dict(zip(config.targets, stems, strict=False))

    return system


def baseline_system(name: str, config: ModelConfig, root: str, progress: ProgressCallback | None = None) -> System:
    """Build one of :data:`BASELINES`; raises :class:`InputError` for another name."""
    if name == "mixture":
        return lambda _, mixture: {target: mixture for target in config.targets}
    if name == "band_gain":
        gains = fit_band_gains(config, root, progress)
        return lambda _, mixture: {t: masked(mixture, gains[t][:, None], config) for t in config.targets}
    if name == "ideal_mask":
        return lambda track, mixture: {t: ideal_ratio_mask(track, mixture, t, config) for t in config.targets}
    raise InputError(f"unknown baseline {name!r}; known: {', '.join(BASELINES)}")


def fit_band_gains(config: ModelConfig, root: str, progress: ProgressCallback | None = None) -> dict[str, np.ndarray]:
    """Least-squares gains per band over the training songs: target → (F,).

    g_k = Σ Re(X̄ Y) / Σ |X|², which minimises ‖g·X − Y‖², over the bins of band k, all frames, channels and songs. Bins
    without a band get 0.5.
    """
    songs = dataset.tracks(root, "train", sample_rate=config.sample_rate, targets=config.targets)
    cross = {target: np.zeros(config.n_bins) for target in config.targets}
    power = np.zeros(config.n_bins)
    for done, song in enumerate(songs):
        x = _stft(song.read("mixture"), config)
        power += np.square(np.abs(x)).sum((0, 2), dtype=np.float64)
        for target in config.targets:
            cross[target] += (np.conj(x) * _stft(song.read(target), config)).real.sum((0, 2), dtype=np.float64)
        if progress:
            progress(done + 1, len(songs))
    gains = {target: np.full(config.n_bins, 0.5) for target in config.targets}
    for lo, hi in config.band_table:
        for target in config.targets:
            gains[target][lo:hi] = cross[target][lo:hi].sum() / max(power[lo:hi].sum(), 1e-12)
    return gains


def ideal_ratio_mask(track: dataset.Track, mixture: np.ndarray, target: str, config: ModelConfig) -> np.ndarray:
    """The mixture (2, S) under the power ratio mask |Y|² / (|Y|² + |X − Y|²), Y the STFT of the true target.

    Liutkus and Badeau 2015, α = 2, as in SiSEC's oracles.
    """
    truth = track.read(target)
    wanted, rest = np.square(np.abs(_stft(truth, config))), np.square(np.abs(_stft(mixture - truth, config)))
    return masked(mixture, wanted / np.maximum(wanted + rest, 1e-20), config)


def masked(mixture: np.ndarray, mask: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Apply a mask, which broadcasts against the STFT (2, F, T), to the mixture (2, S)."""
    spectrum = _stft(mixture, config) * mask.astype(np.float32)
    return istft(spectrum, n_fft=config.n_fft, hop=config.hop, length=mixture.shape[-1])


def _stft(waveform: np.ndarray, config: ModelConfig) -> np.ndarray:
    return stft(waveform, n_fft=config.n_fft, hop=config.hop)
