"""Initial weights, drawn in NumPy and keyed by parameter name.

Every parameter has an initialiser, a function (generator, shape) -> array. The generator is seeded by the run's seed
and the parameter's full name. Both twins therefore start from the same numbers, and adding or removing a module does
not change the initial weights of the others.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence

import numpy as np

Initialiser = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


#: Gain of every residual branch at the start ``identity``.
BRANCH_GAIN = 0.1
#: Changes to drawn weights at the start ``identity``, by the end of the name; the first pattern that matches counts.
IDENTITY_START: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    # The output of every residual branch: of a sequence block, a pointwise convolution, SwiGLU, attention.
    r"\.(time|band)\.proj\.(weight|bias)": lambda w: BRANCH_GAIN * w,
    r"\.(time|band)\.mixer\.(out_proj|attention\.out_proj|pointwise)\.(weight|bias)": lambda w: BRANCH_GAIN * w,
    r"\.conv\.pointwise\.(weight|bias)": lambda w: BRANCH_GAIN * w,
    r"\.ff\.w3\.weight": lambda w: BRANCH_GAIN * w,
    r"(bottleneck\.\d+|\.memory\.(time|band))\.attention\.out_proj\.weight": lambda w: BRANCH_GAIN * w,
    # The signal that comes up from the bottleneck.
    r"up\d\.conv\.(weight|bias)": lambda w: BRANCH_GAIN * w,
    # The skip: its gate starts near one half.
    r"\.skip\.proj\.weight": lambda w: 2 * np.eye(len(w)),
    # The logits of the mask, which alternate between magnitude and phase: phase 0, magnitude near sigmoid(1).
    r"mask_head\.weight2": lambda w: w * _is_magnitude(w)[:, None],
    r"mask_head\.bias2": lambda w: 1.0 * _is_magnitude(w),
    # Eight numbers per bin: four parts of the mask, then their gates. Imaginary parts 0, real parts and gates near 1.
    r"mask_head\.glu_weight": lambda w: w * (_is_gate(w) | _is_magnitude(w))[:, None],
    r"mask_head\.glu_bias": lambda w: 1.0 * (_is_gate(w) | _is_magnitude(w)),
}


def _is_magnitude(w: np.ndarray) -> np.ndarray:
    return np.arange(len(w)) % 2 == 0


def _is_gate(w: np.ndarray) -> np.ndarray:
    return np.arange(len(w)) % 8 >= 4


def draw(name: str, shape: Sequence[int], initialiser: Initialiser, seed: int, start: str = "default") -> np.ndarray:
    """Draw the initial float32 weights of the parameter ``name``.

    With the ``start`` "identity" the residual branches are small and the skips pass: the network starts by handing the
    features of BandSplit to the mask head.
    """
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    drawn = initialiser(np.random.default_rng([seed, key]), tuple(shape))
    if start == "identity" and (pattern := change_of(name)) is not None:
        drawn = IDENTITY_START[pattern](drawn)
    return drawn.astype(np.float32)


def change_of(name: str) -> str | None:
    """The pattern in :data:`IDENTITY_START` that matches the parameter ``name``, or None."""
    return next((pattern for pattern in IDENTITY_START if re.search(f"{pattern}$", name)), None)


def ones(_: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Ones: weights of norms, and D of Mamba."""
    return np.ones(shape)


def zeros(_: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Zeros: biases of batch norms."""
    return np.zeros(shape)


def normal(std: float) -> Initialiser:
    """Normal distribution N(0, std²)."""
    return lambda rng, shape: std * rng.standard_normal(shape)


def uniform(fan_in: int | np.ndarray, power: float = -0.5) -> Initialiser:
    """U(±fan_in^power), by default as in PyTorch's Linear and Conv; ``fan_in`` broadcasts against the shape."""
    bound = np.asarray(fan_in, np.float64) ** power
    return lambda rng, shape: bound * rng.uniform(-1, 1, shape)


def log_uniform(low: float, high: float) -> Initialiser:
    """log U(low, high): A_log of Mamba-2."""
    return lambda rng, shape: np.log(rng.uniform(low, high, shape))


def log_arange(_: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """log(1, …, N) in every channel: A_log of Mamba, as in mamba_ssm (S4D-real; Gu et al. 2022, arXiv 2206.11893)."""
    return np.broadcast_to(np.log(np.arange(1, shape[-1] + 1)), shape)


def softplus_inverse_of_steps(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """softplus⁻¹(Δ) for Δ log-uniform in [1e-3, 0.1], at least 1e-4 (Mamba: Gu and Dao 2023, section 3.6)."""
    delta = np.maximum(np.exp(rng.uniform(np.log(1e-3), np.log(0.1), shape)), 1e-4)
    return delta + np.log(-np.expm1(-delta))
