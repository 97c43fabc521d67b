"""The recipe of the released weights, ``release.yaml`` and ``recordings.yaml`` read, and where its files lie."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from twinsep.config import Config, preset
from twinsep.data.recordings.catalogue import Package, Recording, read_catalogue, recordings
from twinsep.errors import InputError

HERE = Path(__file__).parent
PIPELINE = HERE / "dvc.yaml"
CATALOGUE = HERE / "recordings.yaml"

#: Unpacked recordings, and the songs made of them; neither is in git.
RECORDINGS = Path("results/data/recordings")
SONGS = Path("results/data/release")
#: Work files of the stages.
WORK = Path("results/work/release")
LEVELS = WORK / "levels"
MATERIAL = WORK / "material.json"
RUN = WORK / "run"
#: What is committed.
RELEASED = Path("results/released")
WEIGHTS = RELEASED / "twinsep.safetensors"
CARD = RELEASED / "README.md"
#: The same weights as data of the package.
SHIPPED = Path("twinsep/released/twinsep.safetensors")


@cache
def recipe() -> dict[str, Any]:
    """Content of ``release.yaml``."""
    return yaml.safe_load((HERE / "release.yaml").read_text())


@cache
def catalogue() -> dict[str, Package]:
    """The packages of recordings by name."""
    return read_catalogue(CATALOGUE)


def found_recordings() -> list[Recording]:
    """The recordings that were fetched; raises :class:`InputError` if a package is missing."""
    found = list(recordings(catalogue(), RECORDINGS))
    if missing := sorted(set(catalogue()) - {each.package for each in found}):
        raise InputError(f"{RECORDINGS} lacks the package {missing[0]}: run the stage `recordings` first")
    return found


def phases() -> list[Config]:
    """The configuration of each phase of the run."""
    training = recipe()["training"]
    common = preset(training["preset"]).override(training["override"]).override({"data": {"root": str(SONGS)}})
    return [common.override({"training": phase}) for phase in training["phases"]]


def phase_folder(number: int) -> Path:
    """Folder of a phase, counted from 1."""
    return RUN / f"phase-{number}"
