"""Reader of files that ``torch.save`` wrote, which runs no code from them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinsep.errors import InputError


class _Discarded:
    """Stand-in for a pickled NumPy scalar, whose value is discarded."""

    def __init__(self, *_):
        pass

    def __setstate__(self, _):
        pass


def read_torch_file(path: Path) -> Any:
    """Read what ``torch.save`` wrote, with tensors as NumPy arrays, floating-point ones as float32.

    Only tensors and plain values are read, so that no file can run code. Raises :class:`InputError` for a file that
    asks for anything else, is damaged or is not PyTorch's.
    """
    import torch

    # A learning-rate schedule computed in NumPy leaves its scalars in the optimiser state; they are not needed.
    names = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    try:
        # Warnings about odd files are hidden: either PyTorch reads the file or one error sentence follows.
        with (
            warnings.catch_warnings(action="ignore"),
            torch.serialization.safe_globals([(_Discarded, n) for n in names]),
        ):
            return _as_arrays(torch.load(path, map_location="cpu", weights_only=True))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # damaged bytes raise exceptions of almost any class
        asked = re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error))
        if asked:
            reason = f"asks to run {asked[1]!r}, but only tensors and plain values are read from a checkpoint"
        else:
            reason = "not a complete file that PyTorch saved; fetch or save it again"
        raise InputError(f"{path}: {reason}") from error


def _as_arrays(value: Any) -> Any:
    import torch

    if isinstance(value, Mapping):
        return {key: _as_arrays(item) for key, item in value.items()}
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return (value.float() if value.is_floating_point() else value).numpy()
    return value
