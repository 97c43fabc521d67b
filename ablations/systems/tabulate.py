"""Stage ``tabulate``: the tables of the systems: comparison, four stems, input length and published scores.

Each is written as CSV, Markdown and LaTeX to ``results/tables``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from ablations import settings
from ablations.scores import FLOOR, Runs
from ablations.stages import run_stage
from ablations.stages.tabulate import CEILING, FLOORS, TABLES, write_table
from ablations.statistics import difference, holm, verdict
from ablations.systems import cost, input_length, rows
from ablations.variance import pooled_noise
from twinsep.config import SOURCES
from twinsep.metrics import aggregate

PUBLISHED = Path(__file__).parent / "published.yaml"
#: Column -> (split, stem, metric, mean or median over songs).
COLUMNS = {
    "uSDR": ("test", "instrumental", "usdr", "mean"),
    "cSDR": ("test", "instrumental", "csdr", "median"),
    "uSDR vocals": ("test", "vocals", "usdr", "mean"),
    "cSDR vocals": ("test", "vocals", "csdr", "median"),
    "leakage": ("test", "vocals", "leakage", "mean"),
    "bleedless": ("test", "instrumental", "bleedless", "mean"),
    "fullness": ("test", "instrumental", "fullness", "mean"),
    "real uSDR": ("real", "instrumental", "usdr", "mean"),
}
STEM_COLUMNS = {f"uSDR {stem}": ("test", stem, "usdr", "mean") for stem in (*SOURCES, "instrumental")}
_BUDGETS = {"steps": "equal steps", "time": "equal time"}
_STEMS = {"stems": "not clipped", "stems-clipped": "clipped"}


def main() -> None:
    """Write all tables."""
    groups = rows.groups()
    records = {name: [_json(rows.training_folder(name, seed) / "run.json") for seed in rows.seeds()] for name in groups}
    scores = {name: _frame(rows.scores_folder(name, seed) for seed in rows.seeds()) for name in groups}
    _comparison(groups, records, scores)
    _stems(groups, records, scores)
    _input_length()
    _published()


def _comparison(groups: dict[str, rows.Group], records: dict[str, Any], scores: dict[str, pd.DataFrame]) -> None:
    costs = _json(cost.OUT)["systems"]
    compared = [name for name, group in groups.items() if group.budget in _BUDGETS]
    runs = {name: _runs(scores[name], groups[name]) for name in compared}
    noise = pooled_noise(list(runs.values()))
    control = runs[f"{rows.CONTROL}-steps"]
    found = {name: difference(own, control, noise) for name, own in runs.items() if own is not control}
    adjusted = holm([one.p if one.seeds > 1 else np.nan for one in found.values()])
    judged: dict[str, dict[str, Any]] = {}
    for (name, one), p in zip(found.items(), adjusted, strict=True):
        low, high = one.interval() if one.seeds > 1 else (np.nan, np.nan)
        judged[name] = {"difference": one.mean, "low": low, "high": high, "p": p, "verdict": verdict(one, p)}
    floor = _scores(_frame([settings.RUNS / f"baseline-{FLOOR}"]), COLUMNS)["uSDR"]
    lines = [_baseline(name, label, COLUMNS) for name, label in FLOORS.items()]
    for name in compared:
        group, runs_of = groups[name], records[name]
        line = {
            "system": group.system,
            "budget": _BUDGETS[group.budget],
            "steps": runs_of[0]["configuration"]["training"]["steps"],
            "minutes": float(np.mean([run["seconds"] for run in runs_of])) / 60,
            **_costs(costs[group.system]),
            **_scores(scores[name], COLUMNS),
            **judged.get(name, {}),
        }
        lines.append(line if line["uSDR"] > floor else line | {"verdict": "not trained"})
    for name in rows.table()["pretrained"]:
        own = _scores(_frame([rows.scores_folder(name, 0)]), COLUMNS)
        lines.append({"system": name, "budget": "its own weights", **_costs(costs[name]), **own})
    lines += [_baseline(name, label, COLUMNS) for name, label in CEILING.items()]
    what = "; ".join(f"{name}: {entry['what']}" for name, entry in rows.table()["systems"].items())
    caption = (
        f"Systems on the same songs, examples and loss, {len(rows.seeds())} seeds each, profile "
        f"{settings.params()['profile']}. {what}. uSDR and cSDR of the instrumental and of the vocals, dB; bleedless "
        "and fullness of the instrumental, 0 to 100. GMAC / s: multiply-adds per second of audio; RTF: seconds of "
        f"computation per second of a {cost.SECONDS:g}-s chunk; MiB: peak memory. Difference: uSDR minus that of "
        f"{rows.CONTROL} after equal steps. Trained on {_machine(records)}."
    )
    write_table(TABLES / "systems", pd.DataFrame(lines), caption)


def _stems(groups: dict[str, rows.Group], records: dict[str, Any], scores: dict[str, pd.DataFrame]) -> None:
    lines = [
        {
            "system": group.system,
            "SI-SDR": _STEMS[group.budget],
            "parameters": records[name][0]["parameters"],
            "minutes": float(np.mean([run["seconds"] for run in records[name]])) / 60,
            **_scores(scores[name], STEM_COLUMNS),
        }
        for name, group in groups.items()
        if group.budget in _STEMS
    ]
    caption = (
        "Systems that estimate drums, bass, other and vocals at once: uSDR of every stem and of the instrumental, the "
        f"sum of all but the vocals, in dB, mean over songs and {len(rows.seeds())} seeds. "
        "SI-SDR: clipped to 0 to 40 dB, as in the default loss, or not clipped. "
        f"Trained on {_machine(records)}."
    )
    write_table(TABLES / "systems_stems", pd.DataFrame(lines), caption)


def _input_length() -> None:
    found = _json(input_length.OUT)
    caption = (
        f"Quality by length of the input: mean over {found['medleys']} medleys of {found['songs_per_medley']} test "
        f"songs and {found['seeds']} seeds. uSDR and cSDR of the instrumental, leakage of the vocals while nobody "
        f"sings, dB; neighbouring chunks share a quarter. {found['device']} (commit {found['commit']})."
    )
    table = pd.DataFrame(found["means"]).rename(columns={"group": "row"})
    write_table(TABLES / "input_length", table, caption)


def _published() -> None:
    table = pd.DataFrame(yaml.safe_load(PUBLISHED.read_text()))
    table = table[["system", "cSDR vocals", "uSDR vocals", "average", "source"]]
    caption = (
        "Published scores on the test songs of MUSDB18-HQ, in dB, from training without extra data: cSDR, the median "
        "over songs of the median over 1-s frames; uSDR, the mean over songs of the SDR of whole songs; average, the "
        "mean cSDR of vocals, drums, bass and other. Not comparable with scores of generated songs."
    )
    write_table(TABLES / "published", table, caption)


# ---------------------------------------------------------------------------- parts


def _frame(folders: Iterable[Path]) -> pd.DataFrame:
    """The records in the ``metrics.json`` of each folder, with the number of the folder as ``seed``."""
    return pd.concat(pd.DataFrame(_json(folder / "metrics.json")).assign(seed=i) for i, folder in enumerate(folders))


def _scores(frame: pd.DataFrame, columns: dict[str, tuple[str, str, str, str]]) -> dict[str, float]:
    """Each column as the mean over seeds."""
    found = {}
    for heading, (split, stem, metric, over) in columns.items():
        own = frame[(frame["split"] == split) & (frame["target"] == stem) & (frame["metric"] == metric)]
        by_seed = [aggregate(values.astype(float))[over] for _, values in own.groupby("seed")["value"]]
        found[heading] = float(np.mean(by_seed)) if by_seed else np.nan
    return found


def _runs(frame: pd.DataFrame, group: rows.Group) -> Runs:
    """The judged scores of a group."""
    own = frame[(frame["split"] == "test") & (frame["target"] == "instrumental") & (frame["metric"] == "usdr")]
    values = own.pivot(index="seed", columns="track", values="value").to_numpy(dtype=float)
    return Runs(rows.FRAMEWORK, group.name, rows.seeds(), values)


def _baseline(name: str, label: str, columns: dict[str, tuple[str, str, str, str]]) -> dict[str, Any]:
    return {"system": label, **_scores(_frame([settings.RUNS / f"baseline-{name}"]), columns)}


def _costs(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "parameters": found["parameters"],
        "GMAC / s": found["mac_per_audio_second"] / 1e9,
        "RTF": found["real_time_factor"],
        "MiB": found["peak_memory_mib"],
    }


def _machine(records: dict[str, list[dict[str, Any]]]) -> str:
    runs = [run for found in records.values() for run in found]
    devices, commits = (", ".join(sorted({run[key] for run in runs})) for key in ("device", "commit"))
    return f"{devices} (commit {commits})"


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


if __name__ == "__main__":
    run_stage(main)
