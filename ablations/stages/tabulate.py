"""Stages ``base`` and ``tabulate``: ``python -m ablations.stages.tabulate <axis>`` writes one table in three formats.

The rows of a table stand between two floors and a ceiling. Scores are of the instrumental, except leakage, which is the
energy of the estimated vocals while nobody sings. A row's score is the mean over its seeds; :mod:`ablations.statistics`
compares it with the default row of its framework. The caption states profile, data, training, device and versions.
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
#: Baseline -> its row.
FLOORS = {"mixture": "mixture", "band_gain": "fixed gain per band"}
CEILING = {"ideal_mask": "ideal ratio mask"}
#: Heading -> (split, stem, metric, mean or median over songs).
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
#: Medians over songs of museval's medians over frames, in the table of the base row only.
MUSEVAL: Columns = {
    f"museval {name.upper()}": ("test", "instrumental", f"museval_{name}", "median")
    for name in ("sdr", "isr", "sir", "sar")
}
#: The score by which rows are compared.
JUDGED = ("test", "instrumental", "usdr")

REAL_EXCERPT = "one excerpt of 6 s"
REAL_SONGS = "the songs in the split real"
JUDGEMENT = (
    "Difference: uSDR minus that of the default row of the same framework, with a 95 % interval by a paired bootstrap "
    "over songs; better or worse if the interval excludes zero and the difference exceeds twice the standard deviation "
    "between the default row's seeds (that of the framework in which it is larger), otherwise within noise. sd: "
    "standard deviations of the uSDR over songs and over seeds."
)
COSTS = (
    "GFLOP / s: floating-point operations per second of audio, forward; step and MiB: median time and peak memory of a "
    "training step, all rows in turn in one measurement; at equal time: uSDR of the validation songs when the "
    "fastest row had finished."
)


def main(axis: str) -> None:
    """Write the table of ``axis``: default row and own rows, or for ``base`` the base row with museval's scores."""
    columns = COLUMNS | (MUSEVAL if axis == "base" else {})
    if "real" not in settings.splits():
        columns = {heading: c for heading, c in columns.items() if c[0] != "real"}
    groups = _groups(axis)
    deviation = _deviation(groups)
    lines = [_baseline(name, row, columns) for name, row in FLOORS.items()]
    for (row, framework), runs in groups.items():
        line = _line(row, framework, runs, columns)
        lines.append(line if axis == "base" else line | _judged(runs, _default(groups, row, framework), deviation))
    lines += [_baseline(name, row, columns) for name, row in CEILING.items()]
    if axis == "mixer":
        _add_costs(lines)
    _write(axis, pd.DataFrame(lines), _caption(axis, [runs[0] for runs in groups.values()]))


def _groups(axis: str) -> dict[tuple[str, str], list[str]]:
    """(row, framework) -> its runs, in the order of ``rows.yaml``."""
    wanted = ("base",) if axis == "base" else ("all", axis)
    groups: dict[tuple[str, str], list[str]] = {}
    for name, run in settings.runs().items():
        if settings.rows()[run.row]["axis"] in wanted:
            groups.setdefault((run.row, run.framework), []).append(name)
    return groups


def _default(groups: dict[tuple[str, str], list[str]], row: str, framework: str) -> list[str] | None:
    """The runs to compare a row with: the default row's of its framework. The default row itself is compared with its
    runs in the first framework."""
    (default, first), *_ = groups
    if row == default:
        return None if framework == first else groups[default, first]
    return groups.get((default, framework))


def _deviation(groups: dict[tuple[str, str], list[str]]) -> float:
    """Standard deviation between the default row's seeds, the larger of the frameworks': two seeds alone say little."""
    ((default, _), *_) = groups
    found = [between_seeds(_scores(runs)) for (row, _), runs in groups.items() if row == default]
    return max((d for d in found if np.isfinite(d)), default=math.nan)


def _judged(runs: list[str], default: list[str] | None, deviation: float) -> dict[str, Any]:
    """Spreads of the judged score and, if there is a ``default`` to compare with, the difference."""
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
    """Add the measurements of stage ``cost`` to rows in PyTorch, and their validation score at equal time.

    That time is what the fastest row took for all its steps. A row's score is its last validation by then, in the
    middle of its schedule, so it is a little below what a run planned for that time would reach.
    """
    costs = json.loads(COST.read_text())["rows"]
    steps = {row: _run(f"torch-{row}-0")["configuration"]["training"]["steps"] for row in costs}
    seconds = min(cost["step_s"] * steps[row] for row, cost in costs.items())
    for line in lines:
        row = line["row"]
        if row in costs and line["framework"] == "torch":
            by_then = seconds / costs[row]["step_s"]
            curves = [_validation(run) for run, r in settings.runs().items() if (r.row, r.framework) == (row, "torch")]
            line |= {
                "GFLOP / s": costs[row]["flop_per_audio_second"] / 1e9,
                "step s": costs[row]["step_s"],
                "MiB": costs[row]["peak_memory_mib"],
                "at equal time": float(np.mean([_last_by(curve, by_then) for curve in curves])),
            }


def _validation(run: str) -> dict[int, float]:
    """Step -> validation uSDR in dB."""
    table = pd.read_csv(settings.RUNS / run / "live" / "plots" / "metrics" / "valid" / "usdr.tsv", sep="\t")
    return dict(zip(table["step"], table["usdr"], strict=True))


def _last_by(curve: dict[int, float], step: float) -> float:
    """The last value at or before ``step``; NaN if there is none."""
    return next((value for at, value in sorted(curve.items(), reverse=True) if at <= round(step)), math.nan)


def _baseline(name: str, row: str, columns: Columns) -> dict[str, Any]:
    """The line of a floor or ceiling, which has neither framework nor seeds nor parameters."""
    return {"row": row, "framework": None, "seeds": None, "parameters": None, **_means([f"baseline-{name}"], columns)}


def _line(row: str, framework: str, runs: list[str], columns: Columns) -> dict[str, Any]:
    """The line of a row in one framework."""
    parameters = _run(runs[0])["parameters"]
    return {
        "row": row,
        "framework": framework,
        "seeds": len(runs),
        "parameters": parameters,
        **_means(runs, columns),
    }


def _means(runs: list[str], columns: Columns) -> dict[str, float]:
    """Each column as the mean over ``runs``."""
    found = {}
    for heading, (split, stem, metric, over) in columns.items():
        values = [aggregate(_by_song(run, split, stem, metric).values())[over] for run in runs]
        found[heading] = sum(values) / len(values)
    return found


def _by_song(run: str, split: str, stem: str, metric: str) -> dict[str, float]:
    """A stem's metric on every song of a split; NaN if undefined."""
    records = json.loads((settings.RUNS / run / "metrics.json").read_text())
    return {
        r["track"]: math.nan if r["value"] is None else r["value"]
        for r in records
        if (r["split"], r["target"], r["metric"]) == (split, stem, metric)
    }


def _run(run: str) -> dict[str, Any]:
    return json.loads((settings.RUNS / run / "run.json").read_text())


def _caption(axis: str, runs: list[str]) -> str:
    """Scores and songs of the table, how its first run was made, and which runs were trained otherwise."""
    first = _run(runs[0])
    tracks = len(_by_song(runs[0], *JUDGED))
    generated = settings.uses_generated_songs()
    songs = f"{tracks} held-out generated songs" if generated else f"{tracks} test songs of {settings.data_root().name}"
    libraries = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    sentences = [
        f"Axis {axis}, profile {settings.params()['profile']}: scores of the instrumental of {songs}, dB. cSDR is the "
        "median over 1-s frames, leakage the energy of the estimated vocals while nobody sings, relative to the "
        "mixture; – is undefined."
    ]
    if "real" in settings.splits():
        real = REAL_EXCERPT if generated else REAL_SONGS
        sentences.append(f"Real: {real}, a probe on which nothing is selected.")
    if axis != "base":
        sentences.append(JUDGEMENT)
    if axis == "mixer":
        sentences.append(COSTS)
    sentences.append(
        f"Models were trained for {_training(first)} on {first['device']} (commit {first['commit']}; {libraries})."
    )
    for run in runs:
        if _training(_run(run)) != _training(first):
            sentences.append(
                f"{run} was trained for {_training(_run(run))}, so that it has as many frames as memory tokens."
            )
    return " ".join(sentences)


def _training(run: dict[str, Any]) -> str:
    t = run["configuration"]["training"]
    return f"{t['steps']} steps of {t['batch_size'] * t['accumulation']} × {t['segment_seconds']:g} s"


def _write(axis: str, table: pd.DataFrame, caption: str) -> None:
    table = table.astype({"parameters": "Int64", "seeds": "Int64"})
    write_atomically(TABLES / f"{axis}.csv", table.to_csv(index=False, float_format="%.4f").encode())
    shown = _shown(table)
    markdown = shown.to_markdown(index=False, disable_numparse=True)
    write_atomically(TABLES / f"{axis}.md", f"{caption}\n\n{markdown}\n".encode())
    align = "ll" + "r" * (shown.shape[1] - 2)
    tex = shown.to_latex(index=False, escape=True, caption=caption, label=f"tab:{axis}", column_format=align)
    write_atomically(TABLES / f"{axis}.tex", tex.encode())


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table for readers: a difference and its interval in one cell."""
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
