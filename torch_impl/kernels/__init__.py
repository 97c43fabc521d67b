"""Fused kernels: our own for CPUs (Numba) and GPUs (Triton), and published ones for GPUs.

CPU kernels are registered as PyTorch operators ``twinsep::…``. GPU kernels are used only after a check (:mod:`.guard`).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

_allowed: ContextVar[bool] = ContextVar("allowed", default=True)
_standard: ContextVar[bool] = ContextVar("standard", default=False)


def cpu_kernels() -> Any:
    """Return the CPU operators as attributes of one object; None, with one warning, if Numba is missing or fails."""
    return _load() if _allowed.get() else None


@contextmanager
def own_operations() -> Iterator[None]:
    """Use PyTorch's operations instead of the CPU kernels, which share code with JAX, in this context."""
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


@contextmanager
def standard_operations() -> Iterator[None]:
    """Use operations that other programs have too: no kernels, no autograd nodes of our own; without gradients."""
    token = _standard.set(True)
    try:
        with own_operations():
            yield
    finally:
        _standard.reset(token)


def standard_operations_only() -> bool:
    """Return True in the context :func:`standard_operations`."""
    return _standard.get()


@cache
def _load() -> Any:
    """Import the kernels on first use, which takes a second."""
    import torch

    try:
        from torch_impl.kernels import (  # noqa: F401 (importing registers the operators)
            attention_numba,
            depthwise_numba,
            mamba_numba,
            pointwise_numba,
            selective_scan_numba,
            spectral_numba,
        )
    except Exception as error:  # a Numba built for other libraries can raise anything
        warnings.warn(
            f"The CPU kernels need Numba, which cannot be imported ({error}); using tensor operations, which are "
            "several times slower.",
            RuntimeWarning,
            stacklevel=4,
        )
        return None
    return torch.ops.twinsep
