"""The comparison of a GPU kernel with its definition by which both twins decide whether to use it."""

from collections.abc import Mapping

import numpy as np

TOLERANCE = 1e-4  # largest error of a float32 kernel / largest value
FLOOR = 1e-3  # lower bound of the largest value in that ratio


def disagreement(
    found: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray], where: str, tolerance: float = TOLERANCE
) -> str | None:
    """Say which result, "y" or the gradient of the input of that name, is off in the test ``where``; None if none is.

    NaN in ``found`` counts as off.
    """
    for name, wanted in exact.items():
        error = np.abs(np.asarray(found[name], np.float64) - wanted).max() / max(np.abs(wanted).max(), FLOOR)
        if not error <= tolerance:  # also true for NaN
            title = name if name == "y" else f"the gradient of {name}"
            return f"{title} is off by {error:.1e} of its largest value in {where}"
    return None


def sentence(error: Exception) -> str:
    """First line of an error message, without the full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__
