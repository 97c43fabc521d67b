"""The comparisons of the grid: each row with its control, by :mod:`ablations.statistics`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ablations import scores, settings
from ablations.statistics import ALPHA, difference, holm, seeds_to_decide, verdict
from ablations.variance import pooled_noise

#: The verdict on a row that does not pass :data:`ablations.scores.FLOOR`, whatever the difference.
NOT_TRAINED = "not trained"


def groups_of(axis: str) -> list[str]:
    """The groups in the table of ``axis``: the default row's and its own rows', or for ``base`` the base row's."""
    wanted = {"base"} if axis == "base" else {"all", axis}
    return [name for name, group in settings.trained_groups().items() if wanted & set(settings.axes(group.row))]


def compare(table: pd.DataFrame, groups: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Group -> difference, its 95 % interval, adjusted p-value, verdict and, if it is undecided, the seeds needed.

    Of ``groups``, over which p is adjusted, those that have a control. The noise is that of all rows of ``table``,
    which is as :func:`ablations.scores.read` returns it.
    """
    noise = pooled_noise(list(scores.grid(table).values()))
    found = {}
    for group in groups:
        own = scores.runs(table, group, *scores.JUDGED)
        control = f"{own.framework}-{settings.control(own.row)}"
        if control != group and control in settings.trained_groups():
            found[group] = difference(own, scores.runs(table, control, *scores.JUDGED), noise)
    adjusted = holm([one.p if one.seeds > 1 else np.nan for one in found.values()])
    decided = sum(p < ALPHA for p in adjusted)
    compared: dict[str, dict[str, Any]] = {}
    for (group, one), p in zip(found.items(), adjusted, strict=True):
        low, high = one.interval() if one.seeds > 1 else (np.nan, np.nan)
        judged = {"difference": one.mean, "low": low, "high": high, "p": p, "verdict": verdict(one, p)}
        if judged["verdict"] == "undecided":
            judged["seeds needed"] = seeds_to_decide(one, ALPHA / (len(found) - decided))
        compared[group] = judged
    return compared


def by_axis(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """(axis, group) -> verdict, as the tables of all axes but ``base`` have them."""
    return {
        (axis, group): judged["verdict"] if scores.is_trained(table, group) else NOT_TRAINED
        for axis in settings.row_table()["axes"]
        for group, judged in compare(table, groups_of(axis)).items()
    }
