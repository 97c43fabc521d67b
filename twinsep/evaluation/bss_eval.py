"""BSS Eval v4 of the package museval, without the ffmpeg that ``import museval`` requires.

museval computes its metrics in one file of NumPy and SciPy, ``museval/metrics.py``, which is loaded alone: the package
itself imports decoders that fail without ffmpeg on the PATH.
"""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
from jaxtyping import Bool, Float

from twinsep.errors import InputError
from twinsep.metrics import CAP_DB

_NAMES = ("SDR", "ISR", "SIR", "SAR")


def bss_eval(
    references: Float[np.ndarray, "n c s"],
    estimates: Float[np.ndarray, "n c s"],
    *,
    sample_rate: int,
    window_seconds: float = 1.0,
    hop_seconds: float = 1.0,
) -> dict[str, Float[np.ndarray, "n frames"]]:
    """SDR, ISR, SIR and SAR in dB of each source and frame: metric → (sources, frames) float64.

    ``references`` and ``estimates`` are (sources, C, S) in the same order; windows and hops are in seconds. Definition:
    Stöter, Liutkus and Ito 2018 (arXiv 1804.06267), images, one set of 512-tap filters per song. A frame in which any
    source or estimate is silent is NaN for all sources; ±inf (a perfect estimate) becomes ±``CAP_DB``. Takes 0.4 s per
    second of audio for two sources.

    Raises :class:`InputError` for shapes that differ (museval accepts a shorter estimate), NaN or infinite samples
    (museval passes them on), a source that is silent throughout (it has no projection), a window or hop below one
    sample, and a missing museval.
    """
    _check(references, estimates)
    window, hop = round(window_seconds * sample_rate), round(hop_seconds * sample_rate)
    if min(window, hop) < 1:
        raise InputError(f"a window of {window_seconds} s and a hop of {hop_seconds} s must hold at least a sample")
    # museval's axes are (source, sample, channel); float64, for it solves 512-tap normal equations.
    sources, guesses = (np.swapaxes(x, 1, 2).astype(np.float64) for x in (references, estimates))
    *ratios, _ = _metrics().bss_eval(sources, guesses, window=window, hop=hop)
    return {name: np.clip(ratio, -CAP_DB, CAP_DB) for name, ratio in zip(_NAMES, ratios, strict=True)}


def is_silent(signals: Float[np.ndarray, "n c s"]) -> Bool[np.ndarray, " n"]:
    """True for each source that museval calls silent: its channels sum to zero in every sample."""
    return ~np.any(np.sum(signals, axis=1) != 0, axis=-1)


def _check(references: np.ndarray, estimates: np.ndarray) -> None:
    if references.shape != estimates.shape or references.ndim != 3:
        shapes = f"{references.shape} and {estimates.shape}"
        raise InputError(f"references and estimates must have one shape (sources, channels, samples), not {shapes}")
    for role, signals in (("reference", references), ("estimate", estimates)):
        if not np.isfinite(signals).all():
            raise InputError(f"the {role}s hold NaN or infinite samples")
        if is_silent(signals).any():
            raise InputError(f"{role} {is_silent(signals).argmax()} is silent throughout: BSS Eval is undefined for it")


@lru_cache(maxsize=1)
def _metrics() -> ModuleType:
    """Load ``museval/metrics.py`` as a module of its own; finding the package does not import it."""
    package = importlib.util.find_spec("museval")
    if package is None or package.origin is None:
        raise InputError("museval is not installed: run pip install 'twinsep[reproduce]'")
    spec = importlib.util.spec_from_file_location("_museval_metrics", Path(package.origin).with_name("metrics.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Where a frame's equations are singular, museval 0.4.1 names numpy.linalg.linalg, which NumPy 2.4 no longer has.
    linalg = SimpleNamespace(**vars(np.linalg) | {"linalg": np.linalg})
    module.__dict__["np"] = SimpleNamespace(**vars(np) | {"linalg": linalg})
    return module
