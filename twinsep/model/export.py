"""Exported programs, as both twins return them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

#: Least frames of a program that takes any number: two at the deepest level.
LEAST_FRAMES = 16


class Program(NamedTuple):
    """An exported program: its file, and its inputs by name: zeros for the spectrum, the first state for the rest."""

    content: bytes
    inputs: dict[str, np.ndarray]
    open_axis: int | None = None  # of the spectrum, which may have any length from LEAST_FRAMES on
