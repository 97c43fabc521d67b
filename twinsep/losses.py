"""Every training loss, once, for NumPy, PyTorch and JAX.

``LOSSES[name](estimate, target, *, mixture, config)`` takes waveforms (B, C, S), or (B, stems, C, S)
whose stems are averaged over, in float32 or float64 and gives a scalar of the same namespace;
:func:`mix` gives their weighted sum. Waveforms are at full scale ±1, levels in dB. Each function's
docstring is its equation, in the symbols X̂, X (STFTs of estimate and target), M̂ = |X̂|, M = |X|.

``target`` is taken as a constant: no gradient is meant to flow into it. The mixture is an argument
so that a loss may use it; see ``mixture_phase_l1`` for why none of these has to.

All are computed in float64, whatever comes in, and rounded to the waveforms' own type at the end, in JAX
without ``jax_enable_x64`` too. A logarithm weighs a bin by 1/(M + ε): at a spectral null a float32 STFT is
mostly its own rounding, and so would be a large part of the gradient (up to several percent of its norm).
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

#: Under the square root of a magnitude: an exact zero then has magnitude 1e-18, lost in any rounding,
#: and gradient exactly 0 in every framework, where the derivative of a bare root is 0/0.
_TINY = 1e-36
#: The reference's floor under logarithms of magnitudes, and its floor under energies.
_LOG_FLOOR, _ENERGY_FLOOR = 1e-7, 1e-6
_MR_SIZES = (512, 1024, 2048)
_MR_COMPLEX_SIZES, _MR_COMPLEX_HOP = (4096, 2048, 1024, 512, 256), 147


class Signals:
    """Estimate and target as (B, C, S), and their spectra, each computed when first asked for.

    The terms of a mix share one object, so that a resolution's STFT is computed once for them all.
    Raises :class:`InputError` unless both have the same shape, (B, C, S) or (B, stems, C, S). Stems
    join the batch: every loss is a mean over the batch, hence a mean over stems.
    """

    def __init__(self, estimate: Any, target: Any, config: Config) -> None:
        if tuple(estimate.shape) != tuple(target.shape) or estimate.ndim not in (3, 4):
            shapes = f"{tuple(estimate.shape)} and {tuple(target.shape)}"
            raise InputError(f"estimate and target must both be (B, C, S) or (B, stems, C, S), not {shapes}")
        self.xp = array_namespace(estimate, target)
        self.config = config
        self.estimate, self.target = (self.xp.reshape(x, (-1, *x.shape[-2:])) for x in (estimate, target))
        self._magnitudes: dict[tuple[int, int], tuple[Any, Any]] = {}

    def magnitudes(self, n_fft: int, hop: int) -> tuple[Any, Any]:
        """M̂ and M, (B, C, F, T), at one resolution."""
        key = n_fft, hop
        if key not in self._magnitudes:
            estimate, target = (stft(x, n_fft=n_fft, hop=hop) for x in (self.estimate, self.target))
            self._magnitudes[key] = _modulus(estimate, self.xp), _modulus(target, self.xp)
        return self._magnitudes[key]

    @property
    def model_magnitudes(self) -> tuple[Any, Any]:
        """M̂ and M, (B, C, F, T), at the model's n_fft and hop."""
        return self.magnitudes(self.config.model.n_fft, self.config.model.hop)

    @cached_property
    def si_sdr(self) -> Any:
        """Scale-invariant SDR of each example in dB, (B,): :func:`si_sdr`'s v."""
        xp = self.xp
        estimate, target = (xp.reshape(x, (x.shape[0], -1)) for x in (self.estimate, self.target))
        estimate, target = (x - xp.mean(x, axis=-1, keepdims=True) for x in (estimate, target))
        dot = xp.sum(estimate * target, axis=-1, keepdims=True)
        wanted = dot * target / (xp.sum(target**2, axis=-1, keepdims=True) + _ENERGY_FLOOR)
        ratio = (_energy(wanted, xp) + _ENERGY_FLOOR) / (_energy(estimate - wanted, xp) + _ENERGY_FLOOR)
        return 10 * xp.log10(ratio + 1e-8)


def _modulus(spectra: Any, xp: Any) -> Any:
    """|X|, with gradient X/|X|, and 0 where X is 0."""
    return xp.sqrt(xp.real(spectra) ** 2 + xp.imag(spectra) ** 2 + _TINY)


def _absolute(x: Any, xp: Any) -> Any:
    """|x| of a real x with gradient sign(x), so 0 at 0, where JAX's own ``abs`` says 1 and PyTorch's 0."""
    return x * xp.sign(x)


def _energy(x: Any, xp: Any) -> Any:
    """‖x‖² over the last axis."""
    return xp.sum(x**2, axis=-1)


def _clip(x: Any, low: float, high: float, xp: Any) -> Any:
    """x held in [low, high]; the gradient is 1 on the closed interval and exactly 0 outside.

    Spelt out, since frameworks differ in the gradient of their own ``clip`` at the two ends.
    """
    return xp.where(x < low, low, xp.where(x > high, high, x))


def _log_difference(magnitudes: tuple[Any, Any], floor: float, xp: Any) -> Any:
    """|log(M̂ + ε) − log(M + ε)|, as wide as M."""
    estimate, target = magnitudes
    return _absolute(xp.log(estimate + floor) - xp.log(target + floor), xp)


@lru_cache(maxsize=16)
def _bin_weights(name: str, n_fft: int, sample_rate: int) -> np.ndarray:
    """1/(K·w_k) for each bin of a band k of w_k bins, 0 for a bin without a band: (F,) float64.

    The mean over bands of the mean over a band's bins is the sum over bins with these weights:
    one product in the place of K slices.
    """
    weights = np.zeros(n_fft // 2 + 1)
    ranges = bands.table(name, n_fft=n_fft, sample_rate=sample_rate)
    for lo, hi in ranges:
        weights[lo:hi] = 1 / (len(ranges) * (hi - lo))
    return weights


def _magnitude(s: Signals) -> Any:
    """mean |M̂ − M|."""
    estimate, target = s.model_magnitudes
    return s.xp.mean(_absolute(estimate - target, s.xp))


def _band(s: Signals) -> Any:
    """mean over bands k of the mean over k's bins, frames and channels of |log(M̂ + ε) − log(M + ε)|.

    Bands are those of the model's table and ε is ``loss.log_floor``: far above the reference's 1e-7,
    which is below 16-bit silence and lets rounding noise decide the loss on band-limited songs.
    """
    model = s.config.model
    difference = _log_difference(s.model_magnitudes, s.config.loss.log_floor, s.xp)
    per_bin = s.xp.mean(difference, axis=(0, 1, 3))
    return s.xp.sum(per_bin * constant(_bin_weights(model.bands, model.n_fft, model.sample_rate), per_bin, s.xp))


def _log_magnitude(s: Signals) -> Any:
    """mean |log(M̂ + 1e-7) − log(M + 1e-7)| over the first 4·⌊F/4⌋ bins.

    What the reference's "band-wise" loss amounts to: the average of four equal quarters.
    """
    estimate, target = (m[..., : m.shape[-2] // 4 * 4, :] for m in s.model_magnitudes)
    return s.xp.mean(_log_difference((estimate, target), _LOG_FLOOR, s.xp))


def _si_sdr(s: Signals) -> Any:
    """mean clip((40 − v)/20, 0, 2), v the SI-SDR in dB (Le Roux et al. 2019, arXiv 1811.02508).

    Channels are one vector with its mean removed: s = ⟨x̂,x⟩x/(‖x‖² + 1e-6), e = x̂ − s,
    v = 10·log10((‖s‖² + 1e-6)/(‖e‖² + 1e-6) + 1e-8). The gradient is exactly 0 for v outside [0, 40].
    """
    return s.xp.mean(_clip((40 - s.si_sdr) / 20, 0.0, 2.0, s.xp))


def _si_sdr_unclipped(s: Signals) -> Any:
    """mean (2 − v/20): :func:`_si_sdr` with a gradient everywhere."""
    return s.xp.mean(2 - s.si_sdr / 20)


def _mr_stft(s: Signals) -> Any:
    """mean over n_fft 512, 1024, 2048 with hop n_fft/4 of mean |M̂ − M| + mean |Δ log(M + 1e-7)|.

    Yamamoto et al. 2020 (arXiv 1910.11480) with L1 in the place of spectral convergence.
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

    BS-RoFormer (arXiv 2309.02612) and BSMamba2 (arXiv 2508.14556), who sum over the resolutions.
    The STFT is linear, so one transform of x̂ − x serves.
    """
    error = s.estimate - s.target
    total = 0.0
    for n_fft in _MR_COMPLEX_SIZES:
        total = total + s.xp.mean(_modulus(stft(error, n_fft=n_fft, hop=_MR_COMPLEX_HOP), s.xp))
    return total / len(_MR_COMPLEX_SIZES)


def _mixture_phase_l1(s: Signals) -> Any:
    """mean |M̂·e^{iφ} − M·e^{iφ}|, φ the mixture's phase (Music-U-Net), which is :func:`_magnitude`.

    |(M̂ − M)·e^{iφ}| = |M̂ − M|: the phase cancels, in the value and in the gradient. Under its own name
    it keeps that system's row in the tables; the test compares it with the equation written out.
    """
    return _magnitude(s)


#: name -> term. The names are the configuration's; the function of a name is the one called ``_<name>`` here.
_TERMS: dict[str, Callable[[Signals], Any]] = {name: globals()[f"_{name}"] for name in LOSS_NAMES}


def _public(name: str, term: Callable[[Signals], Any]) -> Callable[..., Any]:
    def loss(estimate: Any, target: Any, *, mixture: Any, config: Config) -> Any:  # noqa: ARG001  see the module's text
        return _in_double(lambda estimate, target: [term(Signals(estimate, target, config))], estimate, target)[0]

    loss.__name__ = loss.__qualname__ = name
    loss.__doc__ = term.__doc__
    return loss


#: name -> loss(estimate, target, *, mixture, config) -> scalar.
LOSSES: dict[str, Callable[..., Any]] = {name: _public(name, term) for name, term in _TERMS.items()}


def mix(estimate: Any, target: Any, *, mixture: Any, config: Config) -> tuple[Any, dict[str, Any]]:  # noqa: ARG001
    """The training loss and its terms: (Σ weight·term, {name: term}), scalars; terms come unweighted.

    ``estimate`` and ``target`` are (B, C, S) or (B, stems, C, S), ``mixture`` (B, C, S). The weights
    are ``config.loss.weights``; a term of weight 0 is not computed. With ``loudness_weighting`` the
    sum is multiplied by :func:`loudness_weight` of the target and held at 20, where its gradient
    ends. Raises :class:`InputError` for shapes that do not fit.
    """
    weights = {name: weight for name, weight in config.loss.weights.items() if weight}

    def function(estimate: Any, target: Any) -> list[Any]:
        signals = Signals(estimate, target, config)
        terms = [_TERMS[name](signals) for name in weights]
        total = sum(weight * term for weight, term in zip(weights.values(), terms, strict=True))
        if config.loss.loudness_weighting:
            total = total * loudness_weight(signals.target, signals.xp)
            total = signals.xp.where(total > 20, 20.0, total)  # a NaN stays one, for the training loop to see
        return [total, *terms]

    total, *terms = _in_double(function, estimate, target)
    return total, dict(zip(weights, terms, strict=True))


def _in_double(function: Callable[[Any, Any], list[Any]], *waveforms: Any) -> list[Any]:
    """The scalars of ``function`` of the waveforms, computed in float64, in the type of the first waveform."""
    xp, dtype = array_namespace(*waveforms), waveforms[0].dtype
    if is_jax_array(waveforms[0]):  # JAX has float64 only where it is told so
        return _in_double_in_jax(function)(*waveforms)
    return [xp.astype(scalar, dtype) for scalar in function(*(xp.astype(x, xp.float64) for x in waveforms))]


def _in_double_in_jax(function: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """``function`` of real arrays, a list of scalars, in float64; scalars and gradients have the arguments' type.

    JAX has float64 only inside ``enable_x64``, so the derivative is taken there as well.
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


def loudness_weight(target: Any, xp: Any) -> Any:
    """1 + 2·clip(r, 0, 0.5), r = sqrt(Σ_c mean(x_c²)) over batch, stems and time of (B, C, S).

    The reference's habit: r is √C times the usual rms, so loud batches weigh up to twice as much.
    """
    loudness = xp.sqrt(xp.sum(xp.mean(target**2, axis=(0, 2))))
    return 1 + 2 * _clip(loudness, 0.0, 0.5, xp)
