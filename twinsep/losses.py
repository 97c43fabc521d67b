"""Training losses on the array API, for NumPy, PyTorch and JAX.

``LOSSES[name](estimate, target, *, mixture, config)`` takes waveforms (B, C, S), or (B, stems, C, S) to average over
stems, in float32 or float64, and returns a scalar of the same namespace; :func:`mix` returns the weighted sum of
several losses. Waveforms have full scale ±1, levels are in dB. Each function's docstring is its equation, in the
symbols x̂, x (estimate and target), X̂, X (their STFTs), M̂ = |X̂| and M = |X|.

``target`` is a constant: its gradient is not meant to be used. ``mixture`` is an argument for losses that need it; none
of the present ones does (see ``mixture_phase_l1``).

All losses are computed in float64 and rounded to the dtype of the waveforms at the end, in JAX too, without
``jax_enable_x64``. The reason: a logarithm weighs a bin by 1/(M + ε). At a spectral null a float32 STFT is mostly
rounding error, which would then be a large part of the gradient (up to several percent of its norm).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_jax_array

from twinsep import bands
from twinsep.config import LOSS_NAMES, Config
from twinsep.errors import InputError
from twinsep.stft import constant, stft

#: Added under the square root of a magnitude. An exact zero then has magnitude 1e-18, below any rounding error, and
#: gradient 0 in every framework, whereas the derivative of the plain root is 0/0.
_TINY = 1e-36
#: Floors of the reference implementation: for magnitudes under a logarithm, and for energies.
_LOG_FLOOR, _ENERGY_FLOOR = 1e-7, 1e-6
_COMPRESSION, _COMPRESSION_FLOOR = 0.3, 1e-10
_MR_SIZES = (512, 1024, 2048)
_MR_COMPLEX_SIZES, _MR_COMPLEX_HOP = (4096, 2048, 1024, 512, 256), 147


class Signals:
    """Estimate and target as (B, C, S), with their spectra, computed on first use.

    All terms of a mix share one object, so that the STFT of each resolution is computed once. Stems are merged into the
    batch: every loss is a mean over the batch, hence over stems. Raises :class:`InputError` unless estimate and target
    have the same shape, (B, C, S) or (B, stems, C, S).
    """

    def __init__(self, estimate: Any, target: Any, config: Config, kernels: Any = None) -> None:
        if tuple(estimate.shape) != tuple(target.shape) or estimate.ndim not in (3, 4):
            shapes = f"{tuple(estimate.shape)} and {tuple(target.shape)}"
            raise InputError(f"estimate and target must both be (B, C, S) or (B, stems, C, S), not {shapes}")
        self.xp = array_namespace(estimate, target)
        self.config, self.kernels = config, kernels
        self.estimate, self.target = (self.xp.reshape(x, (-1, *x.shape[-2:])) for x in (estimate, target))
        self._spectra: dict[tuple[int, int], tuple[Any, Any]] = {}
        self._magnitudes: dict[tuple[int, int], tuple[Any, Any]] = {}

    def spectra(self, n_fft: int, hop: int) -> tuple[Any, Any]:
        """X̂ and X, (B, C, F, T), for STFTs with ``n_fft`` and ``hop`` samples."""
        key = n_fft, hop
        if key not in self._spectra:
            self._spectra[key] = stft(self.estimate, n_fft=n_fft, hop=hop), stft(self.target, n_fft=n_fft, hop=hop)
        return self._spectra[key]

    def magnitudes(self, n_fft: int, hop: int) -> tuple[Any, Any]:
        """M̂ and M, (B, C, F, T), for STFTs with ``n_fft`` and ``hop`` samples."""
        key = n_fft, hop
        if key not in self._magnitudes:
            estimate, target = self.spectra(n_fft, hop)
            self._magnitudes[key] = _modulus(estimate, self.xp), _modulus(target, self.xp)
        return self._magnitudes[key]

    @property
    def model_magnitudes(self) -> tuple[Any, Any]:
        """M̂ and M, (B, C, F, T), for the model's STFT."""
        return self.magnitudes(self.config.model.n_fft, self.config.model.hop)

    @cached_property
    def distances(self) -> Any:
        """The terms ``magnitude`` and ``band``, (2,), computed together by a kernel."""
        model, loss = self.config.model, self.config.loss
        # A kernel sees one spectrum per row, as the STFT computes them.
        spectra = (self.xp.matrix_transpose(x) for x in self.spectra(model.n_fft, model.hop))
        estimate, target = (self.xp.reshape(x, (-1, x.shape[-1])) for x in spectra)
        weights = constant(_bin_weights(loss.bands, model.n_fft, model.sample_rate), self.estimate, self.xp)
        return self.kernels.spectral_distances(estimate, target, weights, loss.log_floor)[0]

    @cached_property
    def si_sdr(self) -> Any:
        """Scale-invariant SDR of each example in dB, (B,): v in :func:`_si_sdr`."""
        xp = self.xp
        estimate, target = (xp.reshape(x, (x.shape[0], -1)) for x in (self.estimate, self.target))
        estimate, target = (x - xp.mean(x, axis=-1, keepdims=True) for x in (estimate, target))
        dot = xp.sum(estimate * target, axis=-1, keepdims=True)
        wanted = dot * target / (xp.sum(target**2, axis=-1, keepdims=True) + _ENERGY_FLOOR)
        ratio = (_energy(wanted, xp) + _ENERGY_FLOOR) / (_energy(estimate - wanted, xp) + _ENERGY_FLOOR)
        return 10 * xp.log10(ratio + 1e-8)


def _modulus(spectra: Any, xp: Any) -> Any:
    """|X|, with gradient X/|X|, or 0 where X = 0."""
    return xp.sqrt(xp.real(spectra) ** 2 + xp.imag(spectra) ** 2 + _TINY)


def _absolute(x: Any, xp: Any) -> Any:
    """|x| of a real x, with gradient sign(x), which is 0 at x = 0 (1 for JAX's ``abs``, 0 for PyTorch's)."""
    return x * xp.sign(x)


def _energy(x: Any, xp: Any) -> Any:
    """‖x‖² over the last axis."""
    return xp.sum(x**2, axis=-1)


def _clip(x: Any, low: float, high: float, xp: Any) -> Any:
    """Clip x to [low, high], with gradient 1 on the closed interval and 0 outside.

    The frameworks' own ``clip`` functions differ in the gradient at the two ends.
    """
    return xp.where(x < low, low, xp.where(x > high, high, x))


def _log_difference(magnitudes: tuple[Any, Any], floor: float, xp: Any) -> Any:
    """|log(M̂ + ε) − log(M + ε)|, with the shape of M."""
    estimate, target = magnitudes
    return _absolute(xp.log(estimate + floor) - xp.log(target + floor), xp)


@lru_cache(maxsize=16)
def _bin_weights(name: str, n_fft: int, sample_rate: int) -> np.ndarray:
    """1/(K·w_k) for each bin of a band k of w_k bins, 0 for a bin outside every band: (F,) float64.

    The mean over bands of the mean over the bins of a band is the sum over bins with these weights: one product instead
    of K slices.
    """
    weights = np.zeros(n_fft // 2 + 1)
    ranges = bands.table(name, n_fft=n_fft, sample_rate=sample_rate)
    for lo, hi in ranges:
        weights[lo:hi] = 1 / (len(ranges) * (hi - lo))
    return weights


def _magnitude(s: Signals) -> Any:
    """mean |M̂ − M|."""
    if s.kernels is not None:
        return s.distances[0]
    estimate, target = s.model_magnitudes
    return s.xp.mean(_absolute(estimate - target, s.xp))


def _band(s: Signals) -> Any:
    """mean over bands k of the mean over k's bins, frames and channels of |log(M̂ + ε) − log(M + ε)|.

    Bands are those of the table ``loss.bands``; ε is ``loss.log_floor``. The reference's ε = 1e-7 is below the
    quantisation noise of 16-bit audio, so that rounding noise dominates its loss on band-limited songs.
    """
    if s.kernels is not None:
        return s.distances[1]
    model, loss = s.config.model, s.config.loss
    difference = _log_difference(s.model_magnitudes, loss.log_floor, s.xp)
    per_bin = s.xp.mean(difference, axis=(0, 1, 3))
    return s.xp.sum(per_bin * constant(_bin_weights(loss.bands, model.n_fft, model.sample_rate), per_bin, s.xp))


def _log_magnitude(s: Signals) -> Any:
    """mean |log(M̂ + 1e-7) − log(M + 1e-7)| over the first 4·⌊F/4⌋ bins.

    The reference's "band-wise" loss reduces to this: it averages over four equal quarters of the bins.
    """
    estimate, target = (m[..., : m.shape[-2] // 4 * 4, :] for m in s.model_magnitudes)
    return s.xp.mean(_log_difference((estimate, target), _LOG_FLOOR, s.xp))


def _si_sdr(s: Signals) -> Any:
    """mean clip((40 − v)/20, 0, 2), v the SI-SDR in dB (Le Roux et al. 2019, arXiv 1811.02508).

    The channels form one vector with its mean removed: s = ⟨x̂,x⟩x/(‖x‖² + 1e-6), e = x̂ − s,
    v = 10·log10((‖s‖² + 1e-6)/(‖e‖² + 1e-6) + 1e-8). The gradient is 0 for v outside [0, 40].
    """
    return s.xp.mean(_clip((40 - s.si_sdr) / 20, 0.0, 2.0, s.xp))


def _si_sdr_unclipped(s: Signals) -> Any:
    """mean (2 − v/20): :func:`_si_sdr` without clipping, so with a gradient everywhere."""
    return s.xp.mean(2 - s.si_sdr / 20)


def _mr_stft(s: Signals) -> Any:
    """mean over n_fft 512, 1024, 2048 with hop n_fft/4 of mean |M̂ − M| + mean |Δ log(M + 1e-7)|.

    Yamamoto et al. 2020 (arXiv 1910.11480), with L1 instead of spectral convergence.
    """
    total = 0.0
    for n_fft in _MR_SIZES:
        estimate, target = s.magnitudes(n_fft, n_fft // 4)
        total = total + s.xp.mean(_absolute(estimate - target, s.xp))
        total = total + s.xp.mean(_log_difference((estimate, target), _LOG_FLOOR, s.xp))
    return total / len(_MR_SIZES)


def _spectral_sdr(s: Signals) -> Any:
    """mean clip((40 − v)/40, 0, 1), v = 10·log10((‖M‖² + 1e-6)/(‖M − M̂‖² + 1e-6)) of each channel."""
    xp = s.xp
    estimate, target = (xp.reshape(m, (*m.shape[:2], -1)) for m in s.model_magnitudes)
    ratio = (_energy(target, xp) + _ENERGY_FLOOR) / (_energy(target - estimate, xp) + _ENERGY_FLOOR)
    return xp.mean(_clip((40 - 10 * xp.log10(ratio)) / 40, 0.0, 1.0, xp))


def _waveform_l1(s: Signals) -> Any:
    """mean |x̂ − x|."""
    return s.xp.mean(_absolute(s.estimate - s.target, s.xp))


def _mr_stft_complex(s: Signals) -> Any:
    """mean over n_fft 4096, 2048, 1024, 512, 256 with hop 147 of mean |X̂ − X|.

    The loss of BS-RoFormer (arXiv 2309.02612) and BSMamba2 (arXiv 2508.14556), which sum over the resolutions.
    The STFT is linear: one transform of x̂ − x suffices.
    """
    error = s.estimate - s.target
    total = 0.0
    for n_fft in _MR_COMPLEX_SIZES:
        total = total + s.xp.mean(_modulus(stft(error, n_fft=n_fft, hop=_MR_COMPLEX_HOP), s.xp))
    return total / len(_MR_COMPLEX_SIZES)


def _mixture_phase_l1(s: Signals) -> Any:
    """mean |M̂·e^{iφ} − M·e^{iφ}|, φ the phase of the mixture (Music-U-Net).

    Equal to :func:`_magnitude`, as |(M̂ − M)·e^{iφ}| = |M̂ − M|: the phase cancels, in the value and in the gradient. The
    name lets a configuration state that system's loss; a test compares the value with the equation above.
    """
    return _magnitude(s)


def _compressed(s: Signals) -> Any:
    """5·(0.7·mean (|X̂|^c − |X|^c)² + 0.3·mean |X̂·|X̂|^(c−1) − X·|X|^(c−1)|²), c = 0.3.

    Power-compressed magnitudes and spectra (Ephrat et al. 2018, arXiv 1804.03619; Braun and Tashev 2021, arXiv
    2009.12286), with |X| = sqrt(|X|² + 1e-10). Being a squared error, its best constant gain is a mean, not a median.
    """
    xp, power = s.xp, _COMPRESSION
    spectra = s.spectra(s.config.model.n_fft, s.config.model.hop)
    moduli = [xp.sqrt(xp.real(x) ** 2 + xp.imag(x) ** 2 + _COMPRESSION_FLOOR) for x in spectra]
    magnitude = xp.mean((moduli[0] ** power - moduli[1] ** power) ** 2)
    scaled = [x * m ** (power - 1) for x, m in zip(spectra, moduli, strict=True)]
    error = scaled[0] - scaled[1]
    return 5 * (0.7 * magnitude + 0.3 * xp.mean(xp.real(error) ** 2 + xp.imag(error) ** 2))


#: Terms by their name in the configuration; the term ``name`` is the function ``_name`` of this module.
_TERMS: dict[str, Callable[[Signals], Any]] = {name: globals()[f"_{name}"] for name in LOSS_NAMES}


def _public(name: str, term: Callable[[Signals], Any]) -> Callable[..., Any]:
    def loss(estimate: Any, target: Any, *, mixture: Any, config: Config) -> Any:  # noqa: ARG001  see the module's docstring
        return _in_double(lambda estimate, target: [term(Signals(estimate, target, config))], estimate, target)[0]

    loss.__name__ = loss.__qualname__ = name
    loss.__doc__ = term.__doc__
    return loss


#: Losses by name: loss(estimate, target, *, mixture, config) -> scalar.
LOSSES: dict[str, Callable[..., Any]] = {name: _public(name, term) for name, term in _TERMS.items()}


def mix(
    estimate: Any,
    target: Any,
    *,
    mixture: Any,  # noqa: ARG001
    config: Config,
    kernels: Any = None,
    mean: Callable[[Any], Any] = lambda x: x,
) -> tuple[Any, dict[str, Any]]:
    """Return the training loss Σ weight·term and the unweighted terms by name, all scalars.

    ``estimate`` and ``target`` are (B, C, S) or (B, stems, C, S), ``mixture`` (B, C, S). The weights are
    ``config.loss.weights``; terms of weight 0 are not computed. With ``loudness_weighting`` the sum is multiplied by
    :func:`loudness_weight` of the target and clipped to at most 20. ``kernels`` are a twin's CPU kernels: with
    PyTorch's, loops compute ``magnitude`` and ``band``, which agree with the functions here to rounding. Where several
    workers have equal parts of a batch, ``mean`` is the mean of a scalar over the workers: loudness and clipping are
    those of the whole batch, so that the mean of the workers' gradients is its gradient. Raises :class:`InputError` for
    shapes that do not match.
    """
    weights = {name: weight for name, weight in config.loss.weights.items() if weight}

    def function(estimate: Any, target: Any) -> list[Any]:
        signals = Signals(estimate, target, config, kernels)
        terms = [_TERMS[name](signals) for name in weights]
        total = sum(weight * term for weight, term in zip(weights.values(), terms, strict=True))
        if config.loss.loudness_weighting:
            total = total * loudness_weight(signals.target, signals.xp, mean)
            total = signals.xp.where(mean(total) > 20, 20.0, total)  # NaN passes: the training loop detects it
        return [total, *terms]

    total, *terms = _in_double(function, estimate, target)
    return total, dict(zip(weights, terms, strict=True))


def _in_double(function: Callable[[Any, Any], list[Any]], *waveforms: Any) -> list[Any]:
    """Call ``function`` on the waveforms in float64 and round its scalars to the dtype of the first waveform."""
    xp, dtype = array_namespace(*waveforms), waveforms[0].dtype
    if is_jax_array(waveforms[0]):  # JAX has float64 only inside ``enable_x64``
        return _in_double_in_jax(function)(*waveforms)
    return [xp.astype(scalar, dtype) for scalar in function(*(xp.astype(x, xp.float64) for x in waveforms))]


def _in_double_in_jax(function: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """Make ``function``, from real arrays to a list of scalars, compute in float64.

    Scalars and gradients have the dtype of the arguments. The gradient is also taken inside ``enable_x64``.
    """
    import jax
    import jax.numpy as jnp

    def wide(arrays: Sequence[Any]) -> list[Any]:
        return [x.astype(jnp.float64) for x in arrays]

    @jax.custom_vjp
    def rounded(*arrays: Any) -> list[Any]:
        with jax.enable_x64(True):
            return [scalar.astype(arrays[0].dtype) for scalar in function(*wide(arrays))]

    def forward(*arrays: Any) -> tuple[list[Any], Any]:
        with jax.enable_x64(True):
            scalars, pull = jax.vjp(function, *wide(arrays))
            return [scalar.astype(arrays[0].dtype) for scalar in scalars], pull

    def backward(pull: Any, gradients: list[Any]) -> tuple[Any, ...]:
        with jax.enable_x64(True):
            return tuple(x.astype(gradients[0].dtype) for x in pull(wide(gradients)))

    rounded.defvjp(forward, backward)
    return rounded


def loudness_weight(target: Any, xp: Any, mean: Callable[[Any], Any] = lambda x: x) -> Any:
    """1 + 2·clip(r, 0, 0.5), r = sqrt(Σ_c mean(x_c²)), the mean over batch and time of x (B, C, S), and over workers.

    As in the reference, r is √C times the rms; loud batches weigh up to twice as much.
    """
    loudness = xp.sqrt(mean(xp.sum(xp.mean(target**2, axis=(0, 2)))))
    return 1 + 2 * _clip(loudness, 0.0, 0.5, xp)
