"""Files that ``torch.save`` wrote, read without running code from them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from twinsep.errors import InputError


class _Discarded:
    """Stand-in for a NumPy scalar of a pickle; keeps nothing of it."""

    def __init__(self, *_):
        pass

    def __setstate__(self, _):
        pass


def read_torch_file(path: Path) -> Any:
    """What ``torch.save`` wrote, its tensors as NumPy arrays on the CPU, those of floating point in float32.

    Only tensors and plain values are read, so that no file can run code. Raises :class:`InputError` for a file that
    asks for more, is damaged or is none of PyTorch's.
    """
    import torch

    # A learning-rate schedule in NumPy leaves its scalars in the states of the optimiser, and they would be refused.
    names = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    try:
        # PyTorch warns of what looks odd in a file and then fails, or does not: one sentence is enough.
        with (
            warnings.catch_warnings(action="ignore"),
            torch.serialization.safe_globals([(_Discarded, n) for n in names]),
        ):
            return _as_arrays(torch.load(path, map_location="cpu", weights_only=True))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # damaged bytes lead to an exception of nearly any kind
        asked = re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error))
        if asked:
            reason = f"asks to run {asked[1]!r}, and only tensors and plain values are read from a checkpoint"
        else:
            reason = "not a whole file that PyTorch saved; fetch or save it again"
        raise InputError(f"{path}: {reason}") from error


def _as_arrays(value: Any) -> Any:
    import torch

    if isinstance(value, Mapping):
        return {key: _as_arrays(item) for key, item in value.items()}
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return (value.float() if value.is_floating_point() else value).numpy()
    return value
