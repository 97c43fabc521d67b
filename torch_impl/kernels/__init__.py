"""Kernels that are compiled where they run, and those that others publish.

Each for the CPU is registered as a PyTorch operator ``twinsep::…``; none for a GPU is used before it is checked.
"""

import warnings
from functools import cache
from typing import Any


@cache
def cpu_kernels() -> Any:
    """The operators for the CPU, by name; None, with one warning, where Numba is missing.

    Imported on first use, as it takes a second.
    """
    import torch

    try:
        from torch_impl.kernels import (  # noqa: F401 (they register operators)
            attention_numba,
            depthwise_numba,
            pointwise_numba,
            selective_scan_numba,
        )
    except ImportError as error:
        warnings.warn(
            f"The CPU kernels need Numba, which cannot be imported ({error}). Using tensor operations instead, which "
            "are several times slower.",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    return torch.ops.twinsep
