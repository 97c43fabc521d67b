"""Band tables: the groups of STFT bins that the model encodes and masks together.

A table is a (K, 2) integer array of half-open bin ranges [lo, hi), contiguous from bin 0. The eight tables for the
default grid (2,048-point STFT at 44.1 kHz, F = 1,025 bins) are CSV files in this folder; for other grids the rules in
:mod:`twinsep.bands.rules` build them. ``python -m twinsep.bands`` writes the files; a test compares them with the
rules.
"""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path

import numpy as np

from twinsep.bands.rules import NAMES, build

__all__ = ["DEFAULT_N_FFT", "DEFAULT_SAMPLE_RATE", "NAMES", "build", "read", "table"]

DEFAULT_N_FFT, DEFAULT_SAMPLE_RATE = 2048, 44_100
FOLDER = Path(__file__).parent


@lru_cache(maxsize=64)
def table(name: str, *, n_fft: int = DEFAULT_N_FFT, sample_rate: int = DEFAULT_SAMPLE_RATE) -> np.ndarray:
    """Return the table ``name``: (K, 2) int64, half-open bin ranges [lo, hi), read-only and cached.

    Reads its CSV file for the default grid, builds it by its rule for any other. ``sample_rate`` is in Hz.
    Raises :class:`InputError` as :func:`build` does.
    """
    if name in NAMES and (n_fft, sample_rate) == (DEFAULT_N_FFT, DEFAULT_SAMPLE_RATE):
        bands = read(name)
    else:
        bands = build(name, n_fft, sample_rate)
    bands.flags.writeable = False
    return bands


def read(name: str) -> np.ndarray:
    """Read the stored table ``name`` of the default grid, (K, 2) int64."""
    with (FOLDER / f"{name}.csv").open(newline="", encoding="ascii") as file:
        return np.asarray([(int(row["lo"]), int(row["hi"])) for row in csv.DictReader(file)], dtype=np.int64)
