"""Kernels for a CPU that are compiled where they run (:mod:`twinsep.kernels`), as functions of JAX with gradients."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import SimpleNamespace
from typing import Any

import jax

_allowed: ContextVar[bool] = ContextVar("allowed", default=True)


def cpu_kernels() -> Any:
    """The functions by name; None, with one warning, where Numba is missing or this XLA has another interface."""
    return _load() if _allowed.get() else None


@contextmanager
def own_operations() -> Iterator[None]:
    """JAX's own operations in their place, in what is traced within: those share no line with PyTorch's."""
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


@cache
def _load() -> Any:
    """On first use, as it takes a second."""
    try:
        from jax_impl.kernels.attention_numba import attention
        from jax_impl.kernels.selective_scan_numba import selective_scan
    except (ImportError, jax.errors.JaxRuntimeError) as error:
        warnings.warn(
            f"The CPU kernels need Numba and this version's interface of XLA, and cannot be used here ({error}). Using "
            "JAX's own operations instead, which are several times slower.",
            RuntimeWarning,
            stacklevel=4,
        )
        return None
    return SimpleNamespace(attention=attention, selective_scan=selective_scan)
