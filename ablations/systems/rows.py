"""The systems, their runs and where the runs' files lie: ``systems.yaml`` resolved."""

from __future__ import annotations

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
_KEYS = {"preset", "what", "learning_rate", "time_steps"}


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
    """The configuration of one run: preset, profile, system, budget, seed.

    Songs, examples and loss are those of the ablations. Raises :class:`InputError` if the configuration is invalid.
    """
    system, profile = table()["systems"][group.system], settings.profile()
    if not _KEYS <= set(system) <= _KEYS | {"override"}:
        raise InputError(f"systems.yaml: system {group.system} must have {', '.join(sorted(_KEYS))}, perhaps override")
    steps = profile["rows"]["steps"]
    if group.budget == "time":
        # Chosen for the steps of the profile `cpu`; another profile keeps the ratio.
        steps = max(1, round(steps * system["time_steps"] / settings.params()["profiles"]["cpu"]["rows"]["steps"]))
    chosen = preset(system["preset"]).override({"loss": LossConfig().__dict__, "data": preset(CONTROL).data.__dict__})
    chosen = chosen.override({"training": profile["training"], "data": profile.get("data", {})})
    chosen = chosen.override({"training": profile["rows"], "data": {"root": str(settings.data_root())}})
    chosen = chosen.override(system.get("override", {}))
    training = {"steps": steps, "learning_rate": system["learning_rate"], "seed": seed}
    if profile["rows"].get("validate_every"):
        training["validate_every"] = max(1, steps // 3)
    return chosen.override({"training": training, "model": {"targets": table()["budgets"][group.budget]["targets"]}})


def training_folder(group: str, seed: int) -> Path:
    """Record and curves of a run."""
    return ROOT / "runs" / group / "training" / str(seed)


def scores_folder(group: str, seed: int) -> Path:
    """Scores of a run."""
    return ROOT / "runs" / group / "scores" / str(seed)


def weights_path(group: str, seed: int) -> Path:
    """Averaged weights of a run after its last step."""
    return WEIGHTS / group / f"{seed}.safetensors"
