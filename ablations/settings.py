"""What the parameter file says, resolved: the profile, the data's root, the configuration of each run."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from twinsep import data
from twinsep.config import Config, preset
from twinsep.errors import InputError

HERE = Path(__file__).parent
ROOT = HERE.parent
GENERATED = Path("results/data/generated")
CONFIGS = Path("results/work/configs")
RUNS = Path("results/runs")


@cache
def params() -> dict[str, Any]:
    """``params.yaml`` as it stands."""
    return yaml.safe_load((HERE / "params.yaml").read_text())


@cache
def rows() -> dict[str, dict[str, Any]]:
    """``rows.yaml``: name -> question, axis, override and, where it is not the profile's, preset."""
    return yaml.safe_load((HERE / "rows.yaml").read_text())


def profile() -> dict[str, Any]:
    """The chosen profile; raises :class:`InputError` for an unknown one."""
    p = params()
    if p["profile"] not in p["profiles"]:
        raise InputError(f"params.yaml: unknown profile {p['profile']!r}; known: {', '.join(p['profiles'])}")
    return p["profiles"][p["profile"]]


def data_root() -> Path:
    """Where the songs are: the given folder, or the generated set."""
    given = params()["data"]["root"]
    return Path(given) if given else GENERATED


def configuration(run: str) -> Config:
    """The configuration of one run: preset, then profile, then row, then seed; raises :class:`InputError` where
    the run does not fit its name or names no row."""
    entry = params()["runs"][run]
    if run != f"{entry['framework']}-{entry['row']}-{entry['seed']}":
        raise InputError(f"params.yaml: the run {run} is not <framework>-<row>-<seed> of what stands under it")
    if entry["row"] not in rows():
        raise InputError(f"params.yaml: run {run} names the row {entry['row']!r}, which rows.yaml does not have")
    row = rows()[entry["row"]]
    chosen = preset(row.get("preset", profile()["preset"]))
    chosen = chosen.override({"training": profile()["training"], "data": {"root": str(data_root())}})
    return chosen.override(row["override"]).override({"training": {"seed": entry["seed"]}})


def splits() -> list[str]:
    """What is scored, as :func:`twinsep.data.scored_splits` has it; the generated set has both, made already or not."""
    given = params()["data"]["root"]
    return data.scored_splits(given) if given else ["test", "real"]
