"""Stages ``base`` and ``tabulate``: ``python -m ablations.stages.tabulate <axis>`` writes one table in three formats.

The rows of a table stand between four floors and a ceiling. Scores are of the instrumental, except leakage, which is
the energy of the estimated vocals while nobody sings. A row's score is the mean over its seeds;
:mod:`ablations.verdicts` compares it with its control in the same framework. Every number comes from the files that
the stage ``collect`` wrote, except in the base table, which depends on no other group than its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ablations import scores, settings, verdicts
from ablations.stages import collect, run_stage
from ablations.statistics import MARGIN_DB, between_seeds, between_songs
from ablations.verdicts import NOT_TRAINED
from twinsep.metrics import aggregate
from twinsep.utils.files import write_atomically

TABLES = Path("results/tables")
COST = Path("results/cost.json")
#: Baseline -> its row.
FLOORS = {
    "mixture": "mixture",
    "band_gain": "fixed gain per band",
    scores.FLOOR: "level regression",
    "weighted_regression": "weighted regression",
}
CEILING = {"ideal_mask": "ideal ratio mask"}
#: Heading -> (split, metric, mean or median over songs).
Columns = dict[str, tuple[str, str, str]]
COLUMNS: Columns = {
    "uSDR mean": ("test", "usdr", "mean"),
    "uSDR median": ("test", "usdr", "median"),
    "cSDR mean": ("test", "csdr", "mean"),
    "cSDR median": ("test", "csdr", "median"),
    "SI-SDR mean": ("test", "si_sdr", "mean"),
    "leakage mean": ("test", "leakage", "mean"),
    "real uSDR": ("real", "usdr", "mean"),
    "real cSDR": ("real", "csdr", "mean"),
}
#: Medians over songs of museval's medians over frames, in the table of the base row only.
MUSEVAL: Columns = {
    f"museval {name.upper()}": ("test", f"museval_{name}", "median") for name in ("sdr", "isr", "sir", "sar")
}
#: Axes whose tables have the measurements of stage ``cost``, and those with the score at equal time.
COSTS = ("size", "mixer")
EQUAL_TIME = ("start", *COSTS)
JUDGEMENT = (
    "Difference: uSDR minus that of the default row in the same framework, paired by seed and song, with a 95 % t "
    "interval over seeds and songs; p: adjusted over the table (Holm); equivalent: the 90 % interval is within "
    f"±{MARGIN_DB} dB; {NOT_TRAINED}: not above the level regression; seeds needed: for a verdict, if difference and "
    "noise stay as they are. sd: standard deviations of the uSDR."
)
MEASURED = (
    "GFLOP / s: operations per second of audio, forward; step and MiB: median time and peak memory of a training step."
)
AT_EQUAL_TIME = "At equal time: validation uSDR when the fastest row of the framework had finished."


class Inputs(NamedTuple):
    """Inputs of a table: its groups in order, all scores, and the records of runs by group and seed."""

    groups: list[str]
    scores: pd.DataFrame
    records: dict[str, dict[str, Any]]


def main(axis: str) -> None:
    """Write the table of ``axis``: default row and own rows, or for ``base`` the base row with museval's scores."""
    inputs = _read(axis)
    columns = COLUMNS | (MUSEVAL if axis == "base" else {})
    scored = set(zip(inputs.scores["split"], inputs.scores["metric"], strict=True))
    columns = {heading: c for heading, c in columns.items() if c[:2] in scored}
    lines = {group: _line(group, inputs, columns) for group in inputs.groups}
    if axis != "base":
        _add_spreads(lines, inputs)
    if axis in COSTS:
        _add_costs(lines)
    if axis in EQUAL_TIME:
        _add_scores_at_equal_time(lines)
    if axis != "base":
        for group, judged in verdicts.compare(inputs.scores, inputs.groups).items():
            lines[group] |= judged
    for group, line in lines.items():
        if not scores.is_trained(inputs.scores, group):
            line |= {"verdict": NOT_TRAINED, "seeds needed": None}
    floors = [_baseline(name, row, inputs, columns) for name, row in FLOORS.items()]
    ceiling = [_baseline(name, row, inputs, columns) for name, row in CEILING.items()]
    _write(axis, pd.DataFrame([*floors, *lines.values(), *ceiling]), _caption(axis, inputs))


def _read(axis: str) -> Inputs:
    groups = verdicts.groups_of(axis)
    if axis == "base":
        stems = scores.STEMS | {metric: "instrumental" for _, metric, _ in MUSEVAL.values()}
        return Inputs(groups, collect.scores_table(groups, stems), collect.records(groups))
    return Inputs(groups, scores.read(), json.loads(collect.RECORDS.read_text()))


# ---------------------------------------------------------------------------- columns


def _line(group: str, inputs: Inputs, columns: Columns) -> dict[str, Any]:
    """The line of a row in one framework."""
    runs = scores.runs(inputs.scores, group, *scores.JUDGED)
    record = inputs.records[group][str(runs.seeds[0])]
    line = {"row": runs.row, "framework": runs.framework, "seeds": len(runs.seeds), "parameters": record["parameters"]}
    return line | _means(group, inputs, columns)


def _baseline(name: str, row: str, inputs: Inputs, columns: Columns) -> dict[str, Any]:
    """The line of a floor or ceiling, which has neither framework nor seeds nor parameters."""
    line = {"row": row, "framework": None, "seeds": None, "parameters": None}
    return line | _means(f"baseline-{name}", inputs, columns)


def _means(group: str, inputs: Inputs, columns: Columns) -> dict[str, float]:
    """Each column as the mean over seeds."""
    found = {}
    for heading, (split, metric, over) in columns.items():
        by_seed = scores.runs(inputs.scores, group, split, metric).scores
        found[heading] = float(np.mean([aggregate(songs)[over] for songs in by_seed]))
    return found


def _add_spreads(lines: dict[str, dict[str, Any]], inputs: Inputs) -> None:
    """Add the standard deviations of the judged score."""
    for group, line in lines.items():
        judged = scores.runs(inputs.scores, group, *scores.JUDGED).scores
        line |= {"sd songs": between_songs(judged), "sd seeds": between_seeds(judged)}


def _add_costs(lines: dict[str, dict[str, Any]]) -> None:
    """Add the measurements of stage ``cost``, which are of rows in PyTorch."""
    costs = json.loads(COST.read_text())["rows"]
    for line in lines.values():
        if line["framework"] == "torch" and line["row"] in costs:
            cost = costs[line["row"]]
            line |= {
                "GFLOP / s": cost["flop_per_audio_second"] / 1e9,
                "step s": cost["step_s"],
                "MiB": cost["peak_memory_mib"],
            }


def _add_scores_at_equal_time(lines: dict[str, dict[str, Any]]) -> None:
    """Add the validation uSDR at the time when the fastest row of the framework had finished, mean over seeds.

    Values between two validations are interpolated. A row is then in the middle of its schedule, so the value is a
    little below what a run planned for that time would reach.
    """
    curves = pd.read_csv(collect.CURVES).dropna(subset="validation uSDR")
    ends = curves.groupby(["group", "seed"])["seconds"].max().groupby("group").mean()
    for line_group, line in lines.items():
        peers = [group for group in lines if lines[group]["framework"] == line["framework"]]
        time = ends[peers].min()
        own = [curve for _, curve in curves[curves["group"] == line_group].groupby("seed")]
        values = [np.interp(time, c["seconds"], c["validation uSDR"], left=np.nan) for c in own]
        line["at equal time"] = float(np.mean(values))


# ---------------------------------------------------------------------------- caption


def _caption(axis: str, inputs: Inputs) -> str:
    """Scores and songs of the table, how differences are judged, and how the rows were trained."""
    tracks = inputs.scores.groupby("split")["track"].nunique()
    kind, origin = ("generated ", "") if settings.uses_generated_songs() else ("", f" of {settings.data_root().name}")
    songs = f"{tracks['test']} {kind}test songs{origin}"
    sentences = [
        f"Axis {axis}, profile {settings.params()['profile']}: scores of the instrumental of {songs}, dB. "
        "cSDR: median over 1-s frames; leakage: energy of the estimated vocals while nobody sings, relative to the "
        "mixture; – is undefined."
    ]
    if "real" in tracks:
        sentences.append(f"Real: the songs of the split real ({tracks['real']}), on which nothing is selected.")
    if axis != "base":
        sentences.append(JUDGEMENT)
    if axis in COSTS:
        sentences.append(MEASURED)
    if axis in EQUAL_TIME:
        sentences.append(AT_EQUAL_TIME)
    return " ".join([*sentences, *_trainings(inputs)])


def _trainings(inputs: Inputs) -> list[str]:
    """How most rows were trained, which rows otherwise, and which have another control than the default row."""
    runs = [run for group in inputs.groups for run in inputs.records[group].values()]
    where = ", ".join(sorted({run["device"] for run in runs}))
    commits = ", ".join(sorted({run["commit"] for run in runs}))
    usual = _training(runs[0])
    sentences = [f"Trained for {usual} on {where} (commit {commits})."]
    others: dict[str, dict[str, None]] = {}
    for group in inputs.groups:
        row, run = settings.trained_groups()[group].row, next(iter(inputs.records[group].values()))
        if _training(run) != usual:
            others.setdefault(_training(run), {})[row] = None
        if "control" in settings.rows()[row]:
            sentences.append(f"{row} is compared with {settings.control(row)}.")
    return sentences + [f"{', '.join(rows)}: {training}." for training, rows in others.items()]


def _training(run: dict[str, Any]) -> str:
    t = run["configuration"]["training"]
    return f"{t['steps']:,} steps of {t['batch_size'] * t['accumulation']} × {t['segment_seconds']:g} s"


# ---------------------------------------------------------------------------- files


def _write(axis: str, table: pd.DataFrame, caption: str) -> None:
    last = ["verdict"] if axis == "base" else ["difference", "low", "high", "p", "verdict", "seeds needed"]
    table = table.reindex(columns=[*(heading for heading in table if heading not in last), *last])
    write_table(TABLES / axis, table, caption)


def write_table(path: Path, table: pd.DataFrame, caption: str) -> None:
    """Write ``table`` as ``path`` with the endings .csv, .md and .tex."""
    table = table.astype({name: "Int64" for name in ("parameters", "seeds", "steps") if name in table})
    write_atomically(path.with_suffix(".csv"), table.to_csv(index=False, float_format="%.4f").encode())
    shown = _shown(table)
    markdown = shown.to_markdown(index=False, disable_numparse=True)
    write_atomically(path.with_suffix(".md"), f"{caption}\n\n{markdown}\n".encode())
    align = "ll" + "r" * (shown.shape[1] - 2)
    tex = shown.to_latex(index=False, escape=True, caption=caption, label=f"tab:{path.name}", column_format=align)
    write_atomically(path.with_suffix(".tex"), tex.encode())


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table for readers: a difference and its interval in one cell, a small p-value as a bound."""
    shown = table.map(_cell)
    if "RTF" in table:  # small systems differ in the third digit
        shown["RTF"] = [_cell(rtf, digits=3) for rtf in table["RTF"]]
    if "difference" in table:
        shown["difference"] = [_interval(*row) for row in table[["difference", "low", "high"]].itertuples(index=False)]
        shown["p"] = ["< 0.001" if p < 0.001 else _cell(p, digits=3) for p in table["p"]]
        if "seeds needed" in table:
            needed = table["seeds needed"].astype(float)
            shown["seeds needed"] = ["more songs" if np.isinf(n) else _cell(n, digits=0) for n in needed]
        shown = shown.drop(columns=["low", "high"])
    return shown


def _interval(difference: float, low: float, high: float) -> str:
    if pd.isna(low):
        return "–" if pd.isna(difference) else f"{difference:+.2f}"
    return f"{difference:+.2f} [{low:+.2f}, {high:+.2f}]"


def _cell(value: Any, digits: int = 2) -> str:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


if __name__ == "__main__":
    run_stage(lambda: main(sys.argv[1]))
