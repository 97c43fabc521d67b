"""Stages ``base`` and ``tabulate``: ``python -m ablations.tabulate <axis>`` writes one table three ways.

A table holds its rows between the floors and the ceiling. Scores are of the instrumental, but for the
leakage, which is what the estimated vocals hold while nobody sings: that much of the music was taken
away. A row's figure is the mean over its seeds. The caption says profile, data, training and where it ran.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from ablations import settings
from twinsep.cli import guarded
from twinsep.files import write_atomically
from twinsep.metrics import aggregate

TABLES = Path("results/tables")
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


def main(axis: str) -> None:
    """The table of ``axis``: the base row first, then the axis's other rows."""
    wanted = [row for row, entry in settings.rows().items() if row == "base" or entry["axis"] == axis]
    columns = COLUMNS | (MUSEVAL if axis == "base" else {})
    if "real" not in settings.splits():
        columns = {heading: c for heading, c in columns.items() if c[0] != "real"}
    lines = [
        _line(NAMES["mixture"], ["baseline-mixture"], columns),
        _line(NAMES["band_gain"], ["baseline-band_gain"], columns),
    ]
    groups: dict[tuple[str, str], list[str]] = {}
    for run, entry in settings.params()["runs"].items():
        if entry["row"] in wanted:
            groups.setdefault((entry["row"], entry["framework"]), []).append(run)
    lines += [_line(f"{row} ({framework})", runs, columns) for (row, framework), runs in groups.items()]
    lines.append(_line(NAMES["ideal_mask"], ["baseline-ideal_mask"], columns))
    _write(axis, pd.DataFrame(lines).set_index("system"), _caption(axis, next(iter(groups.values()))[0]))


def _line(name: str, runs: list[str], columns: Columns) -> dict[str, Any]:
    """One row: the mean over ``runs`` of each column; no seeds and parameters for a baseline."""
    line: dict[str, Any] = {"system": name}
    if not runs[0].startswith("baseline-"):
        line |= {"parameters": _run(runs[0])["parameters"], "seeds": len(runs)}
    for heading, (split, stem, metric, over) in columns.items():
        values = [aggregate(_values(run, split, stem, metric))[over] for run in runs]
        line[heading] = sum(values) / len(values)
    return line


def _values(run: str, split: str, stem: str, metric: str) -> list[float]:
    """A stem's metric on every track of a split; an undefined one is NaN."""
    records = json.loads((settings.RUNS / run / "metrics.json").read_text())
    return [
        math.nan if r["value"] is None else r["value"]
        for r in records
        if (r["split"], r["target"], r["metric"]) == (split, stem, metric)
    ]


def _run(run: str) -> dict[str, Any]:
    return json.loads((settings.RUNS / run / "run.json").read_text())


def _caption(axis: str, run: str) -> str:
    first = _run(run)
    training = first["configuration"]["training"]
    tracks = len(_values(run, "test", "instrumental", "usdr"))
    given = settings.params()["data"]["root"]
    songs = f"{tracks} test songs of {Path(given).name}" if given else f"{tracks} held-out generated songs"
    real = " Real: one excerpt of 6 s, a probe on which nothing is selected." if "real" in settings.splits() else ""
    libraries = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    return (
        f"Axis {axis}, profile {settings.params()['profile']}: the instrumental of {songs}, dB; cSDR is the median "
        f"over 1-s frames, leakage what the estimated vocals hold while nobody sings, relative to the mixture; – is "
        f"undefined.{real} Models were trained for "
        f"{training['steps']} steps of {training['batch_size'] * training['accumulation']} × "
        f"{training['segment_seconds']:g} s on {first['device']} (commit {first['commit']}; {libraries})."
    )


def _write(axis: str, table: pd.DataFrame, caption: str) -> None:
    table = table.astype({"parameters": "Int64", "seeds": "Int64"})
    shown = table.map(_cell)
    write_atomically(TABLES / f"{axis}.csv", table.to_csv(float_format="%.4f").encode())
    write_atomically(TABLES / f"{axis}.md", f"{caption}\n\n{shown.to_markdown(disable_numparse=True)}\n".encode())
    align = "l" + "r" * table.shape[1]
    tex = shown.reset_index().to_latex(
        index=False, escape=True, caption=caption, label=f"tab:{axis}", column_format=align
    )
    write_atomically(TABLES / f"{axis}.tex", tex.encode())


def _cell(value: Any) -> str:
    if pd.isna(value):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


if __name__ == "__main__":
    guarded(lambda: main(sys.argv[1]))
