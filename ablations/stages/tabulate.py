"""Stages ``base`` and ``tabulate``: ``python -m ablations.tabulate <axis>`` writes one table three ways.

A table holds its rows between the floors and the ceiling. Scores are of the instrumental, but for the
leakage, which is what the estimated vocals hold while nobody sings: that much of the music was taken
away. A row's figure is the mean over its seeds; whether it differs from the default row's of its framework is
judged by :mod:`ablations.statistics`. The caption says profile, data, training and where it ran.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ablations import settings
from ablations.statistics import Scores, between_seeds, between_songs, difference
from twinsep.errors import guarded
from twinsep.metrics import aggregate
from twinsep.utils.files import write_atomically

TABLES = Path("results/tables")
COST = Path("results/cost.json")
NAMES = {"mixture": "mixture (no processing)", "band_gain": "fixed gain per band", "ideal_mask": "ideal ratio mask"}
#: Heading -> (split, stem, metric, over tracks).
Columns = dict[str, tuple[str, str, str, str]]
COLUMNS: Columns = {
    "uSDR mean": ("test", "instrumental", "usdr", "mean"),
    "uSDR median": ("test", "instrumental", "usdr", "median"),
    "cSDR mean": ("test", "instrumental", "csdr", "mean"),
    "cSDR median": ("test", "instrumental", "csdr", "median"),
    "SI-SDR mean": ("test", "instrumental", "si_sdr", "mean"),
    "leakage mean": ("test", "vocals", "leakage", "mean"),
    "real uSDR": ("real", "instrumental", "usdr", "mean"),
    "real cSDR": ("real", "instrumental", "csdr", "mean"),
}
#: museval's, medians over tracks of medians over frames: in the table of the base row only.
MUSEVAL: Columns = {
    f"museval {name.upper()}": ("test", "instrumental", f"museval_{name}", "median")
    for name in ("sdr", "isr", "sir", "sar")
}


REAL = "one excerpt of 6 s"
REAL_GIVEN = "the songs that the set calls real"
JUDGEMENT = (
    "Difference: the uSDR above the default row's of the same framework, with a 95 % interval by a paired bootstrap "
    "over songs; better or worse where the interval excludes zero and the difference exceeds twice the standard "
    "deviation between the default row's seeds, in the framework where it is larger, else within noise. sd: standard "
    "deviations of the uSDR over songs and over seeds."
)
COSTS = (
    "GFLOP / s: floating-point operations per second of audio, forward; step and MiB: median time and peak memory of a "
    "training step, all rows in turn in one measurement; at equal time: the uSDR of the validation songs when the "
    "quickest row had finished."
)
#: What a difference is judged on.
JUDGED = ("test", "instrumental", "usdr")


def main(axis: str) -> None:
    """The table of ``axis``: the default row first, then the axis's own; or the base row's, with museval's scores."""
    columns = COLUMNS | (MUSEVAL if axis == "base" else {})
    if "real" not in settings.splits():
        columns = {heading: c for heading, c in columns.items() if c[0] != "real"}
    groups = _groups(axis)
    deviation = _deviation(groups)
    lines = [
        _line(NAMES["mixture"], ["baseline-mixture"], columns),
        _line(NAMES["band_gain"], ["baseline-band_gain"], columns),
    ]
    for (row, framework), runs in groups.items():
        line = _line(f"{row} ({framework})", runs, columns)
        lines.append(line if axis == "base" else line | _judged(runs, _default(groups, row, framework), deviation))
    lines.append(_line(NAMES["ideal_mask"], ["baseline-ideal_mask"], columns))
    if axis == "mixer":
        _add_costs(lines)
    _write(axis, pd.DataFrame(lines).set_index("system"), _caption(axis, [runs[0] for runs in groups.values()]))


def _groups(axis: str) -> dict[tuple[str, str], list[str]]:
    """(row, framework) -> its runs, in the order of ``rows.yaml``."""
    wanted = ("base",) if axis == "base" else ("all", axis)
    groups: dict[tuple[str, str], list[str]] = {}
    for name, run in settings.runs().items():
        if settings.rows()[run.row]["axis"] in wanted:
            groups.setdefault((run.row, run.framework), []).append(name)
    return groups


def _default(groups: dict[tuple[str, str], list[str]], row: str, framework: str) -> list[str] | None:
    """The runs that a row is compared with: the default row's of its framework; of that row itself the first's."""
    (default, first), *_ = groups
    if row == default:
        return None if framework == first else groups[default, first]
    return groups.get((default, framework))


def _deviation(groups: dict[tuple[str, str], list[str]]) -> float:
    """Between the default row's seeds, in the framework where it is larger: of two seeds alone it says little."""
    ((default, _), *_) = groups
    found = [between_seeds(_scores(runs)) for (row, _), runs in groups.items() if row == default]
    return max((d for d in found if np.isfinite(d)), default=math.nan)


def _judged(runs: list[str], default: list[str] | None, deviation: float) -> dict[str, Any]:
    """Spreads of the judged score and, where there is something to compare with, the difference."""
    own = _scores(runs)
    line: dict[str, Any] = {"sd songs": between_songs(own), "sd seeds": between_seeds(own)}
    if default:
        found = difference(own, _scores(default), deviation)
        line |= {"difference": found.mean, "low": found.low, "high": found.high, "verdict": found.verdict}
    return line


def _scores(runs: list[str]) -> Scores:
    by_song = [_by_song(run, *JUDGED) for run in runs]
    assert all(list(scores) == list(by_song[0]) for scores in by_song)  # one data set, in one order
    return np.array([list(scores.values()) for scores in by_song])


def _add_costs(lines: list[dict[str, Any]]) -> None:
    """To the lines of rows in PyTorch what stage ``cost`` measured, and their validation score at equal time.

    That time is what the quickest of them took for all its steps; a row's score there is its last validation by then,
    in the middle of its schedule, so that it is a little below what a run planned for that time would reach.
    """
    costs = json.loads(COST.read_text())["rows"]
    steps = {row: _run(f"torch-{row}-0")["configuration"]["training"]["steps"] for row in costs}
    seconds = min(cost["step_s"] * steps[row] for row, cost in costs.items())
    for line in lines:
        row = line["system"].removesuffix(" (torch)")
        if row in costs and row != line["system"]:
            by_then = seconds / costs[row]["step_s"]
            curves = [_validation(run) for run, r in settings.runs().items() if (r.row, r.framework) == (row, "torch")]
            line |= {
                "GFLOP / s": costs[row]["flop_per_audio_second"] / 1e9,
                "step s": costs[row]["step_s"],
                "MiB": costs[row]["peak_memory_mib"],
                "at equal time": float(np.mean([_last_by(curve, by_then) for curve in curves])),
            }


def _validation(run: str) -> dict[int, float]:
    table = pd.read_csv(settings.RUNS / run / "live" / "plots" / "metrics" / "valid" / "usdr.tsv", sep="\t")
    return dict(zip(table["step"], table["usdr"], strict=True))


def _last_by(curve: dict[int, float], step: float) -> float:
    """The last value at or before ``step``; NaN where there is none."""
    return next((value for at, value in sorted(curve.items(), reverse=True) if at <= round(step)), math.nan)


def _line(name: str, runs: list[str], columns: Columns) -> dict[str, Any]:
    """One row: the mean over ``runs`` of each column; no seeds and parameters for a baseline."""
    line: dict[str, Any] = {"system": name}
    if not runs[0].startswith("baseline-"):
        line |= {"parameters": _run(runs[0])["parameters"], "seeds": len(runs)}
    for heading, (split, stem, metric, over) in columns.items():
        values = [aggregate(_by_song(run, split, stem, metric).values())[over] for run in runs]
        line[heading] = sum(values) / len(values)
    return line


def _by_song(run: str, split: str, stem: str, metric: str) -> dict[str, float]:
    """A stem's metric on every track of a split; an undefined one is NaN."""
    records = json.loads((settings.RUNS / run / "metrics.json").read_text())
    return {
        r["track"]: math.nan if r["value"] is None else r["value"]
        for r in records
        if (r["split"], r["target"], r["metric"]) == (split, stem, metric)
    }


def _run(run: str) -> dict[str, Any]:
    return json.loads((settings.RUNS / run / "run.json").read_text())


def _caption(axis: str, runs: list[str]) -> str:
    """What the table shows, and how its first run was made; of the others what was different."""
    first = _run(runs[0])
    tracks = len(_by_song(runs[0], *JUDGED))
    given = settings.params()["data"]["root"]
    songs = f"{tracks} test songs of {Path(given).name}" if given else f"{tracks} held-out generated songs"
    libraries = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    sentences = [
        f"Axis {axis}, profile {settings.params()['profile']}: the instrumental of {songs}, dB; cSDR is the median "
        "over 1-s frames, leakage what the estimated vocals hold while nobody sings, relative to the mixture; – is "
        "undefined."
    ]
    if "real" in settings.splits():
        sentences.append(f"Real: {REAL_GIVEN if given else REAL}, a probe on which nothing is selected.")
    if axis != "base":
        sentences.append(JUDGEMENT)
    if axis == "mixer":
        sentences.append(COSTS)
    sentences.append(
        f"Models were trained for {_training(first)} on {first['device']} (commit {first['commit']}; {libraries})."
    )
    for run in runs:
        if _training(_run(run)) != _training(first):
            sentences.append(f"Of {run} it was {_training(_run(run))}, for it to have as many frames as tokens.")
    return " ".join(sentences)


def _training(run: dict[str, Any]) -> str:
    t = run["configuration"]["training"]
    return f"{t['steps']} steps of {t['batch_size'] * t['accumulation']} × {t['segment_seconds']:g} s"


def _write(axis: str, table: pd.DataFrame, caption: str) -> None:
    table = table.astype({"parameters": "Int64", "seeds": "Int64"})
    write_atomically(TABLES / f"{axis}.csv", table.to_csv(float_format="%.4f").encode())
    shown = _shown(table)
    write_atomically(TABLES / f"{axis}.md", f"{caption}\n\n{shown.to_markdown(disable_numparse=True)}\n".encode())
    align = "l" + "r" * shown.shape[1]
    tex = shown.reset_index().to_latex(
        index=False, escape=True, caption=caption, label=f"tab:{axis}", column_format=align
    )
    write_atomically(TABLES / f"{axis}.tex", tex.encode())


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """As a person reads it: the numbers of a difference in one cell."""
    shown = table.map(_cell)
    if "difference" in table:
        interval = table["difference"].map("{:+.2f}".format) + table["low"].map(" [{:+.2f}".format)
        shown["difference"] = (interval + table["high"].map(", {:+.2f}]".format)).where(
            table["difference"].notna(), "–"
        )
        shown = shown.drop(columns=["low", "high"])
    return shown


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


if __name__ == "__main__":
    guarded(lambda: main(sys.argv[1]))
