"""Fused kernels: our own for CPUs (Numba) and GPUs (Triton), and published ones for GPUs.

CPU kernels are registered as PyTorch operators ``twinsep::…``. GPU kernels are used only after a check (:mod:`.guard`).
"""

import warnings
from functools import cache
from typing import Any


@cache
def cpu_kernels() -> Any:
    """Return the CPU operators as attributes of one object; None, with one warning, if Numba is missing.

    Imports them on first use, which takes a second.
    """
    import torch

    try:
        from torch_impl.kernels import (  # noqa: F401 (importing registers the operators)
            attention_numba,
            depthwise_numba,
            pointwise_numba,
            selective_scan_numba,
        )
    except ImportError as error:
        warnings.warn(
            f"The CPU kernels need Numba, which cannot be imported ({error}); using tensor operations, which are "
            "several times slower.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    return torch.ops.twinsep
