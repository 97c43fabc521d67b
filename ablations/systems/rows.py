"""The systems, their runs and where the runs' files lie: ``systems.yaml`` resolved."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ablations import settings
from twinsep.config import LossConfig, preset
from twinsep.config.schema import Config
from twinsep.errors import InputError

TABLE = Path(__file__).parent / "systems.yaml"
ROOT = Path("results/systems")
#: Folders of unfinished trainings and of weights, which git ignores.
WORK, WEIGHTS = Path("results/work/systems"), Path("results/weights/systems")
#: The system with which the others are compared.
CONTROL = "tiny"
FRAMEWORK = "torch"
#: Keys of a system.
_KEYS = {"preset", "what"}


class Group(NamedTuple):
    """A system with the budget it is trained in."""

    system: str
    budget: str

    @property
    def name(self) -> str:
        """``<system>-<budget>``."""
        return f"{self.system}-{self.budget}"


@cache
def table() -> dict[str, Any]:
    """Content of ``systems.yaml``."""
    return yaml.safe_load(TABLE.read_text())


def groups() -> dict[str, Group]:
    """Every group by name; raises :class:`InputError` for a system, budget or name that does not fit."""
    found = {}
    for name, entry in table()["groups"].items():
        group = Group(**entry)
        if group.system not in table()["systems"] or group.budget not in table()["budgets"]:
            raise InputError(f"systems.yaml: group {name} needs a system of 'systems' and a budget of 'budgets'")
        if name != group.name:
            raise InputError(f"systems.yaml: group {name!r} must be named {group.name}")
        found[name] = group
    return found


def seeds() -> tuple[int, ...]:
    """The seeds of each group, at most as many as the profile has."""
    wanted = table()["seeds"]
    return tuple(wanted[: settings.profile().get("seeds", len(wanted))])


def configuration(group: Group, seed: int) -> Config:
    """The configuration of one run: preset, profile, system, budget, seed, and the learning rate found by ``tune``.

    Songs and examples are those of the ablations. Raises :class:`InputError` if the configuration is invalid, or
    the stage ``tune`` has not run.
    """
    steps, own = settings.profile()["rows"]["steps"], tuned(group.system)
    if group.budget == "time":
        steps = max(1, round(steps * tuned(CONTROL)["seconds_per_step"] / own["seconds_per_step"]))
    training = {"steps": steps, "learning_rate": own["learning_rate"], "seed": seed}
    if settings.profile()["rows"].get("validate_every"):
        training["validate_every"] = max(1, steps // 3)
    return untrained(group.system, group.budget).override({"training": training})


def untrained(system: str, budget: str) -> Config:
    """The configuration of ``system`` without its learning rate and steps; raises :class:`InputError` if invalid."""
    found, profile = table()["systems"][system], settings.profile()
    if not _KEYS <= set(found) <= _KEYS | {"override"}:
        raise InputError(f"systems.yaml: system {system} must have {', '.join(sorted(_KEYS))}, perhaps override")
    chosen = preset(found["preset"]).override({"loss": LossConfig().__dict__, "data": preset(CONTROL).data.__dict__})
    chosen = chosen.override({"training": profile["training"], "data": profile.get("data", {})})
    chosen = chosen.override({"training": profile["rows"], "data": {"root": str(settings.data_root())}})
    return chosen.override(found.get("override", {})).override(table()["budgets"][budget])


def tuned(system: str) -> dict[str, Any]:
    """Result of the stage ``tune``: "learning_rate", "seconds_per_step"; raises :class:`InputError` if missing."""
    path = tuning_path(system)
    if not path.exists():
        raise InputError(f"{path} is missing: run 'dvc repro ablations/systems/dvc.yaml:tune@{system}'")
    return json.loads(path.read_text())


def tuning_path(system: str) -> Path:
    """Scores of a system by learning rate."""
    return ROOT / "tuning" / f"{system}.json"


def training_folder(group: str, seed: int) -> Path:
    """Record and curves of a run."""
    return ROOT / "runs" / group / "training" / str(seed)


def scores_folder(group: str, seed: int) -> Path:
    """Scores of a run."""
    return ROOT / "runs" / group / "scores" / str(seed)


def weights_path(group: str, seed: int) -> Path:
    """Averaged weights of a run after its last step."""
    return WEIGHTS / group / f"{seed}.safetensors"
