"""Bands as the network packs them: groups of neighbouring bands of equal width."""

from __future__ import annotations

from itertools import groupby

import numpy as np


def band_groups(table: np.ndarray) -> list[tuple[int, int]]:
    """Return (number of bands, width in bins) of every group of neighbouring bands of equal width in a (K, 2) table."""
    return [(len(list(group)), int(width)) for width, group in groupby(table[:, 1] - table[:, 0])]
