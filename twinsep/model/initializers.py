"""Initial weights, drawn in NumPy and keyed by parameter name.

A parameter of either twin carries an initialiser, a function (generator, shape) -> array. Its
generator is seeded by the run's seed and the parameter's full name, so both twins start from the
same numbers, and a row that adds or drops a module leaves every other parameter's start alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

Initialiser = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def draw(name: str, shape: Sequence[int], initialiser: Initialiser, seed: int) -> np.ndarray:
    """The float32 start of the parameter ``name``."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return initialiser(np.random.default_rng([seed, key]), tuple(shape)).astype(np.float32)


def ones(_: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.ones(shape)


def normal(std: float) -> Initialiser:
    """N(0, std²)."""
    return lambda rng, shape: std * rng.standard_normal(shape)


def uniform(fan_in: int | np.ndarray, power: float = -0.5) -> Initialiser:
    """U(±fan_in^power), PyTorch's default for Linear and Conv; ``fan_in`` broadcasts against the shape."""
    bound = np.asarray(fan_in, np.float64) ** power
    return lambda rng, shape: bound * rng.uniform(-1, 1, shape)


def log_uniform(low: float, high: float) -> Initialiser:
    """log of U(low, high): Mamba-2's A_log."""
    return lambda rng, shape: np.log(rng.uniform(low, high, shape))


def log_arange(_: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A_log = log(1..N) in every channel: S4D-real (Gu et al. 2022, arXiv 2206.11893), as mamba_ssm has it."""
    return np.broadcast_to(np.log(np.arange(1, shape[-1] + 1)), shape)


def softplus_inverse_of_steps(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """softplus⁻¹(Δ) for Δ log-uniform in [1e-3, 0.1], floored at 1e-4 (Gu and Dao 2023, section 3.6)."""
    delta = np.maximum(np.exp(rng.uniform(np.log(1e-3), np.log(0.1), shape)), 1e-4)
    return delta + np.log(-np.expm1(-delta))
