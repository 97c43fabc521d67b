"""Bands as the network packs them: runs of neighbours of equal width."""

from __future__ import annotations

from itertools import groupby

import numpy as np

#: Reals a bin brings in (L.re, L.im, R.re, R.im) and a mask takes out (L_mag, L_phase, R_mag, R_phase).
REALS = 4


def band_runs(table: np.ndarray) -> list[tuple[int, int]]:
    """Neighbouring bands of equal width in a (K, 2) table: (number of bands, width in bins) of each run."""
    return [(len(list(group)), int(width)) for width, group in groupby(table[:, 1] - table[:, 0])]
