"""Fused kernels as differentiable JAX functions: the Numba loops in :mod:`twinsep.kernels`, and a scan for GPUs."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

_allowed: ContextVar[bool] = ContextVar("allowed", default=True)


def cpu_kernels() -> Any:
    """Return the kernels as attributes of one object; None, with one warning, if Numba or XLA's FFI cannot be used."""
    return _load() if _allowed.get() else None


def gpu_scan(elsewhere: Callable[..., Any], definition: Callable[..., Any]) -> Callable[..., Any] | None:
    """Return the selective scan for CUDA of float32 inputs; None, with one warning, if its check on the GPU fails.

    The scan is ``elsewhere`` in programs for other devices. The check compares it with ``definition``.
    """
    return _checked_gpu_scan(elsewhere, definition) if _allowed.get() else None


@contextmanager
def own_operations() -> Iterator[None]:
    """Use JAX's operations instead of the kernels, in functions traced in this context.

    Unlike the kernels, they share no code with the PyTorch implementation.
    """
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


@cache
def _load() -> Any:
    """Import the kernels on first use, which takes a second."""
    try:
        from jax_impl.kernels.attention_numba import attention
        from jax_impl.kernels.mamba_numba import mamba
        from jax_impl.kernels.selective_scan_numba import selective_scan
    except Exception as error:  # a Numba or an XLA built for other libraries can raise anything
        warnings.warn(
            f"The CPU kernels need Numba and a compatible XLA, and cannot be used here ({error}); using JAX's own "
            "operations, which are several times slower.",
            RuntimeWarning,
            stacklevel=4,
        )
        return None
    return SimpleNamespace(attention=attention, mamba=mamba, selective_scan=selective_scan)


@cache
def _checked_gpu_scan(elsewhere: Callable[..., Any], definition: Callable[..., Any]) -> Callable[..., Any] | None:
    """Check the kernel, once per process and in some seconds."""
    from jax_impl.kernels.guard import checked

    def load() -> Callable[..., Any]:
        from jax_impl.kernels import selective_scan_pallas

        return partial(selective_scan_pallas.selective_scan, elsewhere=elsewhere)

    return checked("The Pallas selective scan", load, definition)
