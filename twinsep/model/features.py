"""The features of an STFT bin: its real and imaginary parts, and the logarithms of its levels."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace
from jaxtyping import Complex, Float

#: Reals of a bin, the input of its band (L.re, L.im, R.re, R.im) and the logits of its mask (L_mag, L_phase, R_mag,
#: R_phase).
REALS = 4
#: Levels of a bin: of left, right, (L + R)/2 and (L − R)/2.
LEVELS = 4
#: Floor of a magnitude under the logarithm: below 16-bit silence in a window of 2,048 samples.
_FLOOR = 1e-3
#: Added under the square root, so that the gradient of an exact zero is 0; see :mod:`twinsep.losses`.
_TINY = 1e-36


def reals_per_bin(features: str) -> int:
    """Real inputs of a band per bin, for ``model.features``."""
    return {"complex": REALS, "complex+level": REALS + LEVELS}[features]


def magnitudes(spectrum: Complex[Any, "*s"]) -> Float[Any, "*s"]:
    """|X|, with gradient 0 at exact zeros."""
    xp = array_namespace(spectrum)
    return xp.sqrt(xp.real(spectrum) ** 2 + xp.imag(spectrum) ** 2 + _TINY)


def log_levels(spectrum: Complex[Any, "b 2 f t"]) -> Float[Any, "b 4 f t"]:
    """log(|·| + 1e-3)/2 of both channels of a spectrum, of their half sum and of their half difference.

    The norm behind the band's Linear removes the level, and the reals of a bin have random phase, so that their first
    moments carry no information: with these a network sees the level at once.
    """
    xp = array_namespace(spectrum)
    left, right = spectrum[:, :1], spectrum[:, 1:]
    signals = xp.concat([spectrum, 0.5 * (left + right), 0.5 * (left - right)], axis=1)
    return 0.5 * xp.log(magnitudes(signals) + _FLOOR)


def log_levels_of_reals(spectrum: Float[Any, "b 2 f t 2"]) -> Float[Any, "b 4 f t"]:
    """Compute :func:`log_levels` of a spectrum whose real and imaginary parts are on the last axis."""
    xp = array_namespace(spectrum)
    left, right = spectrum[:, :1], spectrum[:, 1:]
    signals = xp.concat([spectrum, 0.5 * (left + right), 0.5 * (left - right)], axis=1)
    magnitude = xp.sqrt(signals[..., 0] ** 2 + signals[..., 1] ** 2 + _TINY)
    return 0.5 * xp.log(magnitude + _FLOOR)
