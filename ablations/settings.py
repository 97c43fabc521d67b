"""The rows, groups, runs and parameters of the pipeline: ``params.yaml``, ``rows.yaml`` and ``dvc.yaml`` resolved.

A *row* is an override of the default configuration. A *group* is a row in one framework, trained with several seeds;
a *run* is one of these trainings.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache, reduce
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pathspec import GitIgnoreSpec

from twinsep.config import Config, preset
from twinsep.data import dataset
from twinsep.errors import InputError

HERE = Path(__file__).parent
ROOT = HERE.parent
GENERATED = Path("results/data/generated")
CONFIGS = Path("results/work/configs")
RUNS = Path("results/runs")
WEIGHTS = Path("results/weights")
#: Group whose weights the command line uses by default.
BASE_GROUP = "torch-base"

#: Stages that list code.
_CODE_STAGES = ("training_code", "evaluation_code")
#: Keys that define a row, and those that it may have besides.
_ROW_KEYS = {"question", "axis", "override"}
_OPTIONAL_KEYS = {"preset", "control"}


@cache
def params() -> dict[str, Any]:
    """Content of ``params.yaml``."""
    return yaml.safe_load((HERE / "params.yaml").read_text())


@cache
def row_table() -> dict[str, Any]:
    """Content of ``rows.yaml``: ``axes``, and ``groups``: group -> framework, seeds and perhaps the row."""
    return yaml.safe_load((HERE / "rows.yaml").read_text())


class Group(NamedTuple):
    """A row in one framework, with the seeds it is trained with."""

    framework: str
    row: str
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """``<framework>-<row>``."""
        return f"{self.framework}-{self.row}"


def groups() -> dict[str, Group]:
    """Every group in the order of ``rows.yaml``; the first is the base row's.

    Raises :class:`InputError` if a name is not ``<framework>-<row>``, or its entry has another framework or no seeds.
    """
    found = {}
    for name, entry in row_table()["groups"].items():
        match = re.fullmatch(r"(torch|jax)-(.+)", name)
        if not match:
            raise InputError(f"rows.yaml: group {name!r} is not named <framework>-<row>, framework torch or jax")
        framework, row = match.groups()
        if entry.get("framework") != framework:
            raise InputError(f"rows.yaml: group {name} must have the entry 'framework: {framework}'")
        seeds = entry.get("seeds")
        if not seeds or len(set(seeds)) != len(seeds) or not all(isinstance(s, int) and s >= 0 for s in seeds):
            raise InputError(f"rows.yaml: group {name} must list different seeds, such as 'seeds: [0, 1]'")
        found[name] = Group(framework, row, tuple(seeds))
    return found


def rows() -> dict[str, dict[str, Any]]:
    """Every row: ``question``, ``axis``, ``override`` and, where they apply, ``preset`` and ``control``.

    Raises :class:`InputError` if the first group of a row does not define it, if a later group defines it again, or if
    the definition has missing or unknown keys, an unknown axis or an unknown control.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, group in groups().items():
        entry = {k: v for k, v in row_table()["groups"][name].items() if k not in ("framework", "seeds")}
        if entry and group.row in found:
            raise InputError(f"rows.yaml: group {name} defines row {group.row!r} again; only its first group may")
        if not entry and group.row not in found:
            raise InputError(f"rows.yaml: group {name} is the first of row {group.row!r} and must define it")
        if entry and not _ROW_KEYS <= set(entry) <= _ROW_KEYS | _OPTIONAL_KEYS:
            raise InputError(
                f"rows.yaml: group {name} must have question, axis and override, and may have preset and control"
            )
        for axis in _listed(entry.get("axis", [])):
            if axis not in ("base", "all", *row_table()["axes"]):
                raise InputError(f"rows.yaml: group {name} has the axis {axis!r}, which is not one of 'axes'")
        found.setdefault(group.row, entry)
    for row, entry in found.items():
        if entry.get("control", row) not in found:
            raise InputError(f"rows.yaml: row {row!r} has the control {entry['control']!r}, which is no row")
    return found


def axes(row: str) -> list[str]:
    """The axes whose tables show ``row``: ``base`` for the base row, ``all`` for the default row."""
    return _listed(rows()[row]["axis"])


def _listed(axis: str | list[str]) -> list[str]:
    return [axis] if isinstance(axis, str) else axis


def default_row() -> str:
    """The row with which the others are compared: the one of the axis ``all``."""
    return next(row for row, entry in rows().items() if entry["axis"] == "all")


def control(row: str) -> str:
    """The row with which ``row`` is compared: its ``control``, or else the default row."""
    return rows()[row].get("control", default_row())


def seeds(group: str) -> tuple[int, ...]:
    """The seeds that the profile trains ``group`` with: none for a row that it leaves out, at most its ``seeds``."""
    chosen = profile()
    found = groups()[group]
    if found.row not in chosen.get("only", [found.row]) or found.row in chosen.get("without", ()):
        return ()
    return found.seeds[: chosen.get("seeds", len(found.seeds))]


def trained_groups() -> dict[str, Group]:
    """The groups that the profile trains, each with the seeds of the profile."""
    found = {name: group._replace(seeds=seeds(name)) for name, group in groups().items()}
    return {name: group for name, group in found.items() if group.seeds}


def profile() -> dict[str, Any]:
    """The chosen profile. Raises :class:`InputError` if it does not exist or names an unknown row."""
    p = params()
    if p["profile"] not in p["profiles"]:
        raise InputError(f"params.yaml: unknown profile {p['profile']!r}; known: {', '.join(p['profiles'])}")
    chosen = p["profiles"][p["profile"]]
    unknown = {*chosen.get("only", ()), *chosen.get("without", ())} - {group.row for group in groups().values()}
    if unknown:
        raise InputError(f"params.yaml: profile {p['profile']} names the row {min(unknown)!r}, which rows.yaml lacks")
    return chosen


def data_root() -> Path:
    """Folder of the songs."""
    return Path(params()["data"]["root"])


def uses_generated_songs() -> bool:
    """True if the songs are the generated set."""
    return data_root() == GENERATED


def splits() -> list[str]:
    """The splits to score; the generated set has both even before it is made."""
    return ["test", "real"] if uses_generated_songs() else dataset.scored_splits(str(data_root()))


# ---------------------------------------------------------------------------- files of a run


def run_path(group: str, seed: int) -> Path:
    """Record of a run: configuration, provenance, time."""
    return RUNS / group / "training" / str(seed) / "run.json"


def curves_path(group: str, seed: int) -> Path:
    """Curves of a run, by step and by seconds."""
    return RUNS / group / "training" / str(seed) / "curves.csv"


def scores_path(group: str, seed: int) -> Path:
    """Scores of a run, one record per song, stem and metric."""
    return RUNS / group / "scores" / str(seed) / "metrics.json"


def weights_path(group: str, seed: int) -> Path:
    """Averaged weights of a run after its last step."""
    return WEIGHTS / group / f"{seed}.safetensors"


def configs_path(group: str) -> Path:
    """Configurations of a group's runs: seed -> configuration."""
    return CONFIGS / f"{group}.json"


def configuration(group: str, seed: int) -> Config:
    """The configuration of one run: preset, then profile, then row, then seed.

    Raises :class:`InputError` if there is no such group or its configuration is invalid.
    """
    if group not in groups():
        raise InputError(f"rows.yaml has no group {group!r}; known: {', '.join(groups())}")
    row = rows()[groups()[group].row]
    chosen = preset(row.get("preset", profile()["preset"]))
    data = {"root": str(data_root()), **profile().get("data", {})}
    chosen = chosen.override({"training": profile()["training"], "data": data})
    if row["axis"] != "base":
        chosen = chosen.override({"training": profile()["rows"]})
    return chosen.override(row["override"]).override({"training": {"seed": seed}})


def code_list_path(stage: str, framework: str) -> Path:
    """The list of code that the stage ``training_code`` or ``evaluation_code`` writes for a framework."""
    return Path("results/work") / stage / f"{framework}.json"


def code_dependencies(stage: str, framework: str) -> list[str]:
    """Files and folders of code on which a stage depends, relative to the root, those of its lists of code included.

    ``framework`` is that of the group, for a stage with an entry per group.
    """
    found = [path for path in _dependencies(stage, framework) if not path.startswith(("results/", "${"))]
    return [*found, *(path for name in _code_stages(stage, framework) for path in code_dependencies(name, framework))]


def _code_stages(stage: str, framework: str) -> list[str]:
    """The stages ``training_code`` and ``evaluation_code`` whose lists are dependencies of ``stage``."""
    listed = _dependencies(stage, framework)
    return [name for name in _CODE_STAGES if code_list_path(name, framework).as_posix() in listed]


def _dependencies(stage: str, framework: str) -> list[str]:
    replaced = (path.replace("${item.framework}", framework) for path in _stage(stage)["deps"])
    return [path.replace("${item}", framework) for path in replaced]


def stage_inputs(address: str) -> dict[str, str]:
    """Digests of the code, and values of the parameters, on which a stage, such as ``train@torch-base``, depends.

    They are read anew at each call. Files that ``.dvcignore`` names are left out.
    """
    stage, framework = _parts(address)
    found = {}
    ignored = GitIgnoreSpec.from_lines((ROOT / ".dvcignore").read_text().splitlines())
    for path in (ROOT / name for name in code_dependencies(stage, framework)):
        for file in path.rglob("*") if path.is_dir() else [path]:
            name = file.relative_to(ROOT).as_posix()
            if file.is_file() and not ignored.match_file(name):
                found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    for listed in _stage(stage).get("params", []):
        for name, keys in listed.items():
            content = yaml.safe_load((ROOT / name).read_text())
            for key in keys:
                value = reduce(lambda inner, part: inner.get(part, {}), key.split("."), content)
                found[f"{name}:{key}"] = json.dumps(value, sort_keys=True, default=str)
    return found


def listed_inputs(address: str) -> dict[str, str]:
    """Digests of the code in the lists on which a stage depends, as they were when the lists were written."""
    stage, framework = _parts(address)
    found: dict[str, str] = {}
    for name in _code_stages(stage, framework):
        found |= json.loads((ROOT / code_list_path(name, framework)).read_text())
    return found


def _parts(address: str) -> tuple[str, str]:
    """Stage and framework of an address; the systems of the field are trained in PyTorch."""
    stage, _, key = address.partition("@")
    framework = key.partition("-")[0]
    return stage, framework if framework in ("torch", "jax") else "torch"


def _stage(name: str) -> dict[str, Any]:
    """The entry of a stage; the name of one in another file than the root's starts with ``<file>:``, as DVC's do."""
    file, _, stage = name.rpartition(":")
    entry = yaml.safe_load((ROOT / (file or "dvc.yaml")).read_text())["stages"][stage]
    return entry.get("do", entry)
