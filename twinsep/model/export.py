"""Exported programs, as both twins return them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Program(NamedTuple):
    """An exported program: its file, and its inputs by name: zeros for the spectrum, the first state for the rest."""

    content: bytes
    inputs: dict[str, np.ndarray]
