"""Bands as the network packs them: groups of neighbouring bands of equal width."""

from __future__ import annotations

from itertools import groupby

import numpy as np

#: Real inputs per bin (L.re, L.im, R.re, R.im) and mask logits per bin (L_mag, L_phase, R_mag, R_phase).
REALS = 4


def band_groups(table: np.ndarray) -> list[tuple[int, int]]:
    """Return (number of bands, width in bins) of every group of neighbouring bands of equal width in a (K, 2) table."""
    return [(len(list(group)), int(width)) for width, group in groupby(table[:, 1] - table[:, 0])]
