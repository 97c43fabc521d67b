"""Scores of the grid as arrays: what the stage ``collect`` wrote to ``results/scores.csv``, by group and metric."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from ablations import settings

PATH = Path("results/scores.csv")
#: Metric -> the stem whose scores the tables show.
STEMS = {"usdr": "instrumental", "csdr": "instrumental", "si_sdr": "instrumental", "leakage": "vocals"}
#: Split and metric by which rows are compared.
JUDGED = ("test", "usdr")
#: A row whose mean judged score is not above this baseline's has not learned anything that varies with time.
FLOOR = "level_regression"

#: Scores in dB; NaN where a metric is undefined.
Scores = Float[np.ndarray, "seeds songs"]


class Runs(NamedTuple):
    """The runs of a row in one framework: seeds, and a line of ``scores`` for each."""

    framework: str
    row: str
    seeds: tuple[int, ...]
    scores: Scores


def read() -> pd.DataFrame:
    """The table of ``results/scores.csv``; see :func:`ablations.stages.collect.scores_table`."""
    empty = {"seed": [""], "value": [""]}
    return pd.read_csv(PATH, dtype={"track": str}, keep_default_na=False, na_values=empty).astype({"seed": "Int64"})


def runs(table: pd.DataFrame, group: str, split: str, metric: str) -> Runs:
    """The scores of a group or baseline, without songs if it has no such score; a baseline's one run has the seed 0."""
    own = table[table["group"] == group]
    if own.empty:
        raise ValueError(f"no scores of {group}")
    framework, row = own[["framework", "row"]].iloc[0]
    wanted = own[(own["split"] == split) & (own["metric"] == metric)].fillna({"seed": 0})
    values = wanted.pivot(index="seed", columns="track", values="value")
    seeds = tuple(int(seed) for seed in own["seed"].fillna(0).unique())
    return Runs(framework, row, seeds, values.reindex(seeds).to_numpy(dtype=float))


def is_trained(table: pd.DataFrame, group: str) -> bool:
    """True if the group's mean judged score exceeds that of the level regression."""
    own, floor = (float(np.nanmean(runs(table, name, *JUDGED).scores)) for name in (group, f"baseline-{FLOOR}"))
    return own > floor


def grid(table: pd.DataFrame, groups: Iterable[str] | None = None) -> dict[str, Runs]:
    """Group -> its judged scores, for the groups that trained: all but the base row's, or those of ``groups``.

    The noise of seeds is pooled over them. Rows that did not train are left out, because all seeds of a network that
    emits static gains end at the same score.
    """
    names = groups or [n for n, g in settings.trained_groups().items() if settings.rows()[g.row]["axis"] != "base"]
    return {name: runs(table, name, *JUDGED) for name in names if is_trained(table, name)}
