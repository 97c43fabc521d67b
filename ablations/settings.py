"""What the parameter file says, resolved: the profile, the data's root, the configuration of each run."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from twinsep.config import Config, preset
from twinsep.data import dataset
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
def table() -> dict[str, Any]:
    """``rows.yaml`` as it stands: ``axes``, and ``runs``, run -> framework and, with a row's first run, the row."""
    return yaml.safe_load((HERE / "rows.yaml").read_text())


class RunName(NamedTuple):
    """What the name of a run says."""

    framework: str
    row: str
    seed: int

    @classmethod
    def named(cls, name: str) -> RunName:
        """Raises :class:`InputError` where the name is not <framework>-<row>-<seed>, or not the entry's framework."""
        match = re.fullmatch(r"(torch|jax)-(.+)-(\d+)", name)
        if not match:
            raise InputError(f"rows.yaml: {name!r} is not <framework>-<row>-<seed>, framework torch or jax")
        framework, row, seed = match.groups()
        if table()["runs"].get(name, {}).get("framework") != framework:
            raise InputError(f"rows.yaml: run {name} must have the entry 'framework: {framework}'")
        return cls(framework, row, int(seed))


def runs() -> dict[str, RunName]:
    """Every run, the base row's first."""
    return {name: RunName.named(name) for name in table()["runs"]}


def rows() -> dict[str, dict[str, Any]]:
    """Every row: question, axis, override and, where it is not the profile's, preset.

    Raises :class:`InputError` where a row's first run does not say what it is, or another does, or says something else.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, run in runs().items():
        entry = {key: value for key, value in table()["runs"][name].items() if key != "framework"}
        if entry and run.row in found:
            raise InputError(f"rows.yaml: run {name} says again what row {run.row!r} is; only its first run may")
        if not entry and run.row not in found:
            raise InputError(f"rows.yaml: run {name} is the first of row {run.row!r} and must say what that is")
        if entry and not {"question", "axis", "override"} <= set(entry) <= {"question", "axis", "override", "preset"}:
            raise InputError(f"rows.yaml: run {name} must have question, axis and override, and may have preset")
        if entry and entry["axis"] not in ("base", "all", *table()["axes"]):
            raise InputError(f"rows.yaml: run {name} stands in the table {entry['axis']!r}, which is not one of 'axes'")
        found.setdefault(run.row, entry)
    return found


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


def configuration(name: str) -> Config:
    """The configuration of one run: preset, then profile, then row, then seed.

    Raises :class:`InputError` where there is no such run or something in it is not valid.
    """
    if name not in runs():
        raise InputError(f"rows.yaml has no run {name!r}; known: {', '.join(runs())}")
    run = runs()[name]
    row = rows()[run.row]
    chosen = preset(row.get("preset", profile()["preset"]))
    chosen = chosen.override({"training": profile()["training"], "data": {"root": str(data_root())}})
    if row["axis"] != "base":
        chosen = chosen.override({"training": profile()["rows"]})
    return _with_frames(chosen.override(row["override"]).override({"training": {"seed": run.seed}}))


def _with_frames(config: Config) -> Config:
    """``config`` with segments twice as long and half as many steps, until no level has fewer frames than tokens."""
    frames = 1 + config.segment_samples // config.model.hop
    if all(tokens <= frames >> level for level, tokens in enumerate(config.model.memory_tokens)):
        return config
    t = config.training
    longer = {"segment_seconds": 2 * t.segment_seconds, "steps": t.steps // 2, "validate_every": t.validate_every // 2}
    return _with_frames(config.override({"training": longer}))


def splits() -> list[str]:
    """What is scored, as :func:`twinsep.data.scored_splits` has it; the generated set has both, made already or not."""
    given = params()["data"]["root"]
    return dataset.scored_splits(given) if given else ["test", "real"]
