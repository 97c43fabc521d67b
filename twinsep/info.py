"""The ``twinsep info`` command: installed versions, devices, presets and checkpoints."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from twinsep import checkpoints
from twinsep.checkpoints import released
from twinsep.config import PRESETS, BandSplitConfig, ModelConfig
from twinsep.errors import InputError
from twinsep.utils import provenance
from twinsep.utils.backend import TWINS, twin

#: Folders of checkpoints, relative to the working directory.
WEIGHTS, RUNS, RELEASED = Path("results/weights"), Path("results/runs"), Path("results/released")
#: Columns of scores: (heading, metric, statistic).
SCORES = (("uSDR, mean", "usdr", "mean"), ("cSDR, median", "csdr", "median"))
Record = dict[str, Any]


def print_info(json_: bool = False) -> None:
    """Print versions, frameworks, presets and the checkpoints under ``results``: as tables, or as one JSON object."""
    found = collect()
    if json_:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        _print(found)


def collect() -> Record:
    """Return {"versions", "frameworks", "presets", "checkpoints"} as JSON types.

    A framework or checkpoint that cannot be used is described by one sentence under "error".
    """
    described = provenance.describe("cpu")
    return {
        "versions": described["versions"] | {key: described[key] for key in ("commit", "platform")},
        "frameworks": {name: _framework(name) for name in TWINS},
        "presets": {name: _preset(name) for name in PRESETS},
        "checkpoints": [_checkpoint(path) for path in _paths()],
    }


def _framework(name: str) -> Record:
    """Describe the machine as the framework sees it; "notes" holds its warnings, such as missing kernels."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", RuntimeWarning)
        try:
            machine = twin(name, "devices").describe_machine()
        except Exception as error:  # a broken installation can raise anything; the other framework still counts
            return {"error": _line(error)}
    return machine | {"notes": [str(warning.message) for warning in caught]}


def _preset(name: str) -> Record:
    model = PRESETS[name].model
    return {"parameters": _parameters(name), **_describe(model)}


def _describe(model: ModelConfig) -> Record:
    split = model if isinstance(model, BandSplitConfig) else None
    latency = None if model.latency is None else round(1000 * model.latency / model.sample_rate, 1)
    return {
        "bands": split and split.bands,
        "mixer": model.mixer_kind,
        "d_model": split and split.d_model,
        "targets": list(model.targets),
        "latency_ms": latency,
    }


def _parameters(name: str) -> int | None:
    """Count the preset's parameters with the first framework that works; None if neither does."""
    for framework in TWINS:
        try:
            return twin(framework, "networks").build(PRESETS[name]).parameter_count
        except Exception:  # reported by _framework
            continue
    return None


def _paths() -> list[Path]:
    runs = sorted(WEIGHTS.glob("*/*.safetensors"))
    found = (path for path in RELEASED.glob("*") if not path.name.startswith("."))
    here = sorted(path for path in found if path.is_dir() or path.suffix == ".safetensors")
    return runs + (here or [path for path in (released.PATH,) if path.is_file()])


def _checkpoint(path: Path) -> Record:
    try:
        found = checkpoints.read(path, prefixes=())
        scores = _scores(_scores_folder(path))
    except InputError as error:
        return {"path": str(path), "error": _line(error)}
    model = found.config.model
    return {"path": str(path), **_describe(model), "step": found.step, "scores": scores}


def _scores_folder(path: Path) -> Path:
    """Folder of the scores of a checkpoint: beside a released one, below ``results/runs`` for a run of the pipeline."""
    if path.parent.parent == WEIGHTS:
        return RUNS / path.parent.name / "scores" / path.stem
    return path if path.is_dir() else path.parent


def _scores(folder: Path) -> Record | None:
    """Read ``summary.json``, {split: {stem: {metric: {"mean", "median", "n"}}}}; None if there is none."""
    path = folder / "summary.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); evaluate again") from error


# ---------------------------------------------------------------------------- tables


def _print(found: Record) -> None:
    console = Console()
    for table in (_versions(found), _frameworks(found), _presets(found), _packages(found), _checkpoints(found)):
        console.print(table)
    for problem in _problems(found):
        console.print(problem, soft_wrap=True, markup=False, highlight=False)


def _versions(found: Record) -> Table:
    table = Table("", "version", title="Versions", title_justify="left")
    for name, version in found["versions"].items():
        table.add_row(name, version)
    return table


def _frameworks(found: Record) -> Table:
    table = Table("framework", "device", "", "threads", "selective scan", title="Frameworks", title_justify="left")
    for name, machine in found["frameworks"].items():
        for device, what in machine.get("devices", {"–": "cannot be used"}).items():
            threads = str(machine["threads"]) if device == "cpu" else ""
            table.add_row(name, device, what, threads, machine.get("scan", {}).get(device.partition(":")[0], ""))
    return table


def _presets(found: Record) -> Table:
    columns = ("preset", "parameters", "bands", "mixer", "width", "latency\n(ms)")
    table = Table(*columns, title="Presets", title_justify="left")
    for name, preset in found["presets"].items():
        if preset["mixer"] != "package":
            split = [_cell(preset[key]) for key in ("bands", "mixer", "d_model")] if preset["bands"] else ["–"] * 3
            table.add_row(name, _cell(preset["parameters"]), *split, _cell(preset["latency_ms"]))
    return table


def _packages(found: Record) -> Table:
    table = Table("preset", "parameters", title="Presets of systems from other packages", title_justify="left")
    for name, preset in found["presets"].items():
        if preset["mixer"] == "package":
            table.add_row(name, _cell(preset["parameters"]))
    return table


def _checkpoints(found: Record) -> Table:
    columns = ("checkpoint", "bands", "mixer", "width", "step", *(score[0] for score in SCORES))
    table = Table(*columns, title="Checkpoints", title_justify="left")
    table.columns[0].overflow = "fold"  # paths differ at their ends, which would be cut off
    for record in found["checkpoints"]:
        cells = [_cell(record.get(key)) for key in ("bands", "mixer", "d_model", "step")]
        scores = [_score(record, metric, statistic) for _, metric, statistic in SCORES]
        table.add_row(Text(record["path"]), *cells, *scores)
    return table


def _problems(found: Record) -> list[str]:
    frameworks = found["frameworks"].items()
    return [
        *(f"{name}: {machine['error']}" for name, machine in frameworks if "error" in machine),
        *(f"{name}: {note}" for name, machine in frameworks for note in machine.get("notes", [])),
        *(record["error"] for record in found["checkpoints"] if "error" in record),
        *(
            []
            if found["checkpoints"]
            else [f"no checkpoints under {WEIGHTS} or {RELEASED}; `dvc repro base` trains one"]
        ),
    ]


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int | float) else str(value)


def _score(record: Mapping[str, Any], metric: str, statistic: str) -> str:
    """Format the score of the first stem on the test songs, in dB."""
    try:
        return f"{record['scores']['test'][record['targets'][0]][metric][statistic]:.2f}"
    except (KeyError, TypeError):
        return "–"


def _line(error: Exception) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return said if isinstance(error, InputError) else f"cannot be used: {type(error).__name__}: {said}"
