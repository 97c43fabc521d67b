"""The systems that can be evaluated: a trained model, four floors and a ceiling.

A *system* maps (track, mixture) to the estimated targets. The floors are the ``mixture`` itself and three systems
fitted on the training songs in closed form: ``band_gain``, one fixed gain per band; ``level_regression``, a gain per
band and frame that is linear in the levels of that frame, by ordinary least squares; ``weighted_regression``, the same
with the least squared error of the spectrum. A network that does not beat the mixture has learned nothing useful; one
that does not beat the other floors has learned nothing that needs a network. The ceiling is ``ideal_mask``, the ratio
mask of the true stems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Complex, Float

from twinsep.config import ModelConfig
from twinsep.data import dataset
from twinsep.errors import InputError
from twinsep.separation.overlap_add import ArrayModel, ChunkGrid, apply_model
from twinsep.stft import istft, stft
from twinsep.utils.progress import ProgressCallback

#: (track, mixture (2, S)) → {target: (2, S)}.
System = Callable[[dataset.Track, np.ndarray], dict[str, np.ndarray]]
#: The STFTs (2, F, T) of a song or segment: mixture, and target → stem.
Spectra = tuple[np.ndarray, dict[str, np.ndarray]]
BASELINES = ("mixture", "band_gain", "level_regression", "weighted_regression", "ideal_mask")
#: The baselines that are fitted on the training songs.
FITTED = ("band_gain", "level_regression", "weighted_regression")
#: Floor of a power under the logarithm: the square of the magnitude 1e-3, below 16-bit silence.
_POWER_FLOOR = 1e-6
#: Ridge of a regression, as a fraction of the sum of its weights. It only makes the equations solvable where features
#: are nearly collinear: on 400 songs every value from 1e-6 to 1e-2 gives the same weighted scores to 0.002 dB.
_RIDGE = 1e-3


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
    if name in ("level_regression", "weighted_regression"):
        weights = fit_level_regression(config, root, weighted=name == "weighted_regression", progress=progress)
        return lambda _, mixture: {t: masked(mixture, level_mask(mixture, weights[t], config), config) for t in weights}
    if name == "ideal_mask":
        return lambda track, mixture: {t: ideal_ratio_mask(track, mixture, t, config) for t in config.targets}
    raise InputError(f"unknown baseline {name!r}; known: {', '.join(BASELINES)}")


def fit_band_gains(config: ModelConfig, root: str, progress: ProgressCallback | None = None) -> dict[str, np.ndarray]:
    """The :func:`least_squares_gains` over the training songs, for each bin: target → (F,)."""
    gains = least_squares_gains(_training_spectra(config, root, progress), config)
    return {target: per_bin(values, config) for target, values in gains.items()}


def least_squares_gains(spectra: Iterable[Spectra], config: ModelConfig) -> dict[str, np.ndarray]:
    """The constant gain of each band with the least squared error over songs or segments: target → (K,).

    g_k = Σ Re(X̄ Y) / Σ |X|², which minimises ‖g·X − Y‖², over the bins of band k, all frames, channels and songs.
    """
    cross = {target: np.zeros(config.n_bands) for target in config.targets}
    power = np.zeros(config.n_bands)
    for x, stems in spectra:
        power += _band_product(x, x, config).sum(1)
        for target, y in stems.items():
            cross[target] += _band_product(x, y, config).sum(1)
    return {target: c / np.maximum(power, 1e-12) for target, c in cross.items()}


def fit_level_regression(
    config: ModelConfig, root: str, *, weighted: bool, progress: ProgressCallback | None = None
) -> dict[str, Float[np.ndarray, "k n"]]:
    """Weights of the gains' linear regression on levels over the training songs: target → (K, 1 + 2K).

    The gain of band k in frame t is g_kt = w_k·φ_t, φ_t the :func:`level_features` of the frame. The best gain of the
    frame is g*_kt = Re⟨X_kt, Y_kt⟩ / ‖X_kt‖², X_kt and Y_kt the bins of both channels. The weights minimise

        Σ a_kt (g_kt − g*_kt)²

    over frames and songs, one linear system per band, with a small ridge on all weights except the constant. By default
    this is ordinary least squares, a_kt = 1, of g* clipped to [0, 1]. ``weighted`` has a_kt = ‖X_kt‖², which up to a
    constant makes it the squared error Σ ‖g_kt·X_kt − Y_kt‖² of the spectrum: without variation of the levels the gain
    is then that of :func:`fit_band_gains`. The sums are all that is kept of a song.
    """
    size = 1 + 2 * config.n_bands
    gram = np.zeros((config.n_bands, size, size))
    cross = {target: np.zeros((config.n_bands, size)) for target in config.targets}
    for x, stems in _training_spectra(config, root, progress):
        features, power = level_features(x, config), _band_product(x, x, config)
        if weighted:
            gram += np.stack([(features * each) @ features.T for each in power])
        else:
            gram += features @ features.T  # the same for all bands
        for target, y in stems.items():
            product = _band_product(x, y, config)
            wanted = product if weighted else np.clip(product / np.maximum(power, 1e-12), 0, 1)
            cross[target] += wanted @ features.T
    total = np.maximum(gram[:, 0, 0], 1e-12)
    gram[:, 0, 0] = total  # a band that is silent in every song gets the gain 0
    gram += _RIDGE * total[:, None, None] * np.diag([0.0] + [1.0] * (size - 1))
    return {target: np.linalg.solve(gram, c[:, :, None])[:, :, 0] for target, c in cross.items()}


def level_features(spectrum: Complex[np.ndarray, "2 f t"], config: ModelConfig) -> Float[np.ndarray, "n t"]:
    """The features φ of the frames of a mixture, (1 + 2K, T): 1, K log levels and K log ratios of side to mid.

    With m and s the mean powers of (L + R)/2 and (L − R)/2 over the bins of a band, and ε = 1e-6, they are
    log(m + s + ε) and log((s + ε)/(m + ε)); m + s is the mean power of a channel.
    """
    left, right = spectrum
    powers = (np.square(np.abs(z)).astype(np.float64) for z in ((left + right) / 2, (left - right) / 2))
    mid, side = (np.stack([power[lo:hi].mean(0) for lo, hi in config.band_table]) for power in powers)
    ratios = np.log((side + _POWER_FLOOR) / (mid + _POWER_FLOOR))
    return np.concatenate([np.ones((1, mid.shape[1])), np.log(mid + side + _POWER_FLOOR), ratios])


def level_mask(mixture: np.ndarray, weights: Float[np.ndarray, "k n"], config: ModelConfig) -> np.ndarray:
    """The gains w·φ of a mixture (2, S), clipped to [0, 1], for each bin and frame: (F, T)."""
    return per_bin(np.clip(weights @ level_features(_stft(mixture, config), config), 0, 1), config)


def ideal_ratio_mask(track: dataset.Track, mixture: np.ndarray, target: str, config: ModelConfig) -> np.ndarray:
    """The mixture (2, S) under the power ratio mask |Y|² / (|Y|² + |X − Y|²), Y the STFT of the true target.

    Liutkus and Badeau 2015, α = 2, as in SiSEC's oracles.
    """
    truth = track.read(target)
    wanted, rest = np.square(np.abs(_stft(truth, config))), np.square(np.abs(_stft(mixture - truth, config)))
    return masked(mixture, wanted / np.maximum(wanted + rest, 1e-20), config)


def per_bin(gains: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Gains per band (K, ...) as gains per bin (F, ...); bins without a band get 0.5."""
    mask = np.full((config.n_bins, *gains.shape[1:]), 0.5)
    for gain, (lo, hi) in zip(gains, config.band_table, strict=True):
        mask[lo:hi] = gain
    return mask


def masked(mixture: np.ndarray, mask: np.ndarray, config: ModelConfig) -> np.ndarray:
    """Apply a mask, which broadcasts against the STFT (2, F, T), to the mixture (2, S)."""
    spectrum = _stft(mixture, config) * mask.astype(np.float32)
    return istft(spectrum, n_fft=config.n_fft, hop=config.hop, length=mixture.shape[-1])


def _stft(waveform: np.ndarray, config: ModelConfig) -> np.ndarray:
    return stft(waveform, n_fft=config.n_fft, hop=config.hop)


def _training_spectra(config: ModelConfig, root: str, progress: ProgressCallback | None) -> Iterator[Spectra]:
    """Read the training songs, one at a time."""
    songs = dataset.tracks(root, "train", sample_rate=config.sample_rate, targets=config.targets)
    for done, song in enumerate(songs):
        yield _stft(song.read("mixture"), config), {t: _stft(song.read(t), config) for t in config.targets}
        if progress:
            progress(done + 1, len(songs))


def _band_product(x: np.ndarray, y: np.ndarray, config: ModelConfig) -> Float[np.ndarray, "k t"]:
    """Re⟨X_kt, Y_kt⟩ of each band and frame, over bins and channels."""
    products = (x.real * y.real + x.imag * y.imag).sum(0, dtype=np.float64)
    return np.stack([products[lo:hi].sum(0) for lo, hi in config.band_table])
