"""The rows, runs and parameters of the pipeline: ``params.yaml``, ``rows.yaml`` and ``dvc.yaml`` resolved."""

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
#: Run whose checkpoint the command line uses by default.
BASE_RUN = "torch-base-0"


@cache
def params() -> dict[str, Any]:
    """Content of ``params.yaml``."""
    return yaml.safe_load((HERE / "params.yaml").read_text())


@cache
def row_table() -> dict[str, Any]:
    """Content of ``rows.yaml``: ``axes``, and ``runs``, which maps a run to its framework and may define its row."""
    return yaml.safe_load((HERE / "rows.yaml").read_text())


class RunName(NamedTuple):
    """The three parts of a run's name."""

    framework: str
    row: str
    seed: int

    @classmethod
    def parse(cls, name: str) -> RunName:
        """Split ``<framework>-<row>-<seed>``.

        Raises :class:`InputError` if the name has another form or its entry in ``rows.yaml`` another framework.
        """
        match = re.fullmatch(r"(torch|jax)-(.+)-(\d+)", name)
        if not match:
            raise InputError(f"rows.yaml: run {name!r} is not named <framework>-<row>-<seed>, framework torch or jax")
        framework, row, seed = match.groups()
        if row_table()["runs"].get(name, {}).get("framework") != framework:
            raise InputError(f"rows.yaml: run {name} must have the entry 'framework: {framework}'")
        return cls(framework, row, int(seed))


def runs() -> dict[str, RunName]:
    """Every run in the order of ``rows.yaml``; the first is the base row's."""
    return {name: RunName.parse(name) for name in row_table()["runs"]}


def rows() -> dict[str, dict[str, Any]]:
    """Every row: ``question``, ``axis``, ``override`` and, if it differs from the profile's, ``preset``.

    Raises :class:`InputError` if the first run of a row does not define it, if a later run defines it again, or if the
    definition has missing or unknown keys or an unknown axis.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, run in runs().items():
        entry = {key: value for key, value in row_table()["runs"][name].items() if key != "framework"}
        if entry and run.row in found:
            raise InputError(f"rows.yaml: run {name} defines row {run.row!r} again; only its first run may")
        if not entry and run.row not in found:
            raise InputError(f"rows.yaml: run {name} is the first of row {run.row!r} and must define it")
        if entry and not {"question", "axis", "override"} <= set(entry) <= {"question", "axis", "override", "preset"}:
            raise InputError(f"rows.yaml: run {name} must have question, axis and override, and may have preset")
        if entry and entry["axis"] not in ("base", "all", *row_table()["axes"]):
            raise InputError(f"rows.yaml: run {name} has the axis {entry['axis']!r}, which is not one of 'axes'")
        found.setdefault(run.row, entry)
    return found


def profile() -> dict[str, Any]:
    """The chosen profile. Raises :class:`InputError` if it does not exist."""
    p = params()
    if p["profile"] not in p["profiles"]:
        raise InputError(f"params.yaml: unknown profile {p['profile']!r}; known: {', '.join(p['profiles'])}")
    return p["profiles"][p["profile"]]


def data_root() -> Path:
    """Folder of the songs."""
    return Path(params()["data"]["root"])


def uses_generated_songs() -> bool:
    """True if the songs are the generated set."""
    return data_root() == GENERATED


def splits() -> list[str]:
    """The splits to score; the generated set has both even before it is made."""
    return ["test", "real"] if uses_generated_songs() else dataset.scored_splits(str(data_root()))


def configuration(name: str) -> Config:
    """The configuration of one run: preset, then profile, then row, then seed.

    Raises :class:`InputError` if there is no such run or its configuration is invalid.
    """
    if name not in runs():
        raise InputError(f"rows.yaml has no run {name!r}; known: {', '.join(runs())}")
    run = runs()[name]
    row = rows()[run.row]
    chosen = preset(row.get("preset", profile()["preset"]))
    chosen = chosen.override({"training": profile()["training"], "data": {"root": str(data_root())}})
    if row["axis"] != "base":
        chosen = chosen.override({"training": profile()["rows"]})
    return _with_enough_frames(chosen.override(row["override"]).override({"training": {"seed": run.seed}}))


def _with_enough_frames(config: Config) -> Config:
    """Double the segments and halve the steps until every level has at least as many frames as memory tokens."""
    frames = 1 + config.segment_samples // config.model.hop
    if all(tokens <= frames >> level for level, tokens in enumerate(config.model.memory_tokens)):
        return config
    t = config.training
    longer = {"segment_seconds": 2 * t.segment_seconds, "steps": t.steps // 2, "validate_every": t.validate_every // 2}
    return _with_enough_frames(config.override({"training": longer}))


def code_dependencies(stage: str, framework: str) -> list[str]:
    """Files and folders of code that ``dvc.yaml`` lists for a stage with an entry per run, relative to the root."""
    listed = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]["do"]["deps"]
    return [path.replace("${item.framework}", framework) for path in listed if not path.startswith("results/")]
