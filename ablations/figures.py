"""Figures that the notebooks draw for the paper: style, sizes, the results they read, and the parts they share.

A notebook begins with :func:`begin`, saves its figures with :func:`save`, and ends with :func:`answer`, which says in
words computed from the results what the figures show. Colours are those of Okabe and Ito (2008); where a colour has a
meaning, a marker or a line style has it too.
"""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from jaxtyping import Complex, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from ablations.statistics import MARGIN_DB
from twinsep.errors import InputError
from twinsep.utils.files import write_atomically

FIGURES, TABLES = Path("results/figures"), Path("results/tables")
STYLE = Path("notebooks/paper.mplstyle")
#: Widths in inches at which the paper shows figures in a column and across both, so that print has these sizes.
COLUMN, PAGE = 3.35, 5.95
#: Framework -> its name, its colour and its line style.
FRAMEWORKS = {"torch": "PyTorch", "jax": "JAX"}
FRAMEWORK_COLORS = {"torch": "C0", "jax": "C1"}
FRAMEWORK_LINES = {"torch": "-", "jax": (0, (4, 1.5))}
#: Levels in dB that spectrograms show, relative to the loudest cell of the mixture.
FLOOR_DB = -70


class Mark(NamedTuple):
    """Colour, marker and face of a verdict."""

    color: str
    marker: str
    face: str


#: Verdict of a table -> how it is drawn: filled for a verdict, open where there is none.
MARKS = {
    "better": Mark("C0", "^", "C0"),
    "worse": Mark("C1", "v", "C1"),
    "equivalent": Mark("C2", "o", "C2"),
    "undecided": Mark("0.35", "o", "white"),
    "not trained": Mark("0.1", "X", "0.1"),
    "one seed": Mark("0.35", "s", "white"),
    "one song": Mark("0.35", "s", "white"),
}


# ---------------------------------------------------------------------------- a notebook


def begin() -> None:
    """Go to the root of the repository and use the paper's style. Raises :class:`InputError` outside the repository."""
    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / "dvc.yaml").exists()), None)
    if root is None:
        raise InputError(f"{here} is not in the repository, whose results the notebooks read")
    os.chdir(root)
    plt.style.use(STYLE)


def save(figure: Figure, name: str) -> None:
    """Write ``results/figures/<name>.svg``, without a date: the same numbers give the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_atomically(FIGURES / f"{name}.svg", buffer.getvalue())


def answer(*sentences: str) -> None:
    """Show the answer to the notebook's question."""
    from IPython.display import Markdown, display

    display(Markdown("**Answer.** " + " ".join(sentence for sentence in sentences if sentence)))


# ---------------------------------------------------------------------------- results


def table(name: str) -> pd.DataFrame:
    """A table of ``results/tables``; an empty cell is NaN."""
    return pd.read_csv(TABLES / f"{name}.csv")


def score(found: pd.DataFrame, row: str, framework: str | None = None, column: str = "uSDR mean") -> float:
    """The score of a row, or of a floor or ceiling, which has no framework; NaN if the table lacks it."""
    own = found["framework"].isna() if framework is None else found["framework"] == framework
    values = found.loc[(found["row"] == row) & own, column]
    return float(values.iloc[0]) if len(values) else float("nan")


def curves() -> pd.DataFrame:
    """Validation curves of all runs: group, framework, row, seed, step, seconds, validation uSDR."""
    return pd.read_csv("results/curves.csv").dropna(subset="validation uSDR")


# ---------------------------------------------------------------------------- words


def listed(names: Iterable[str], none: str = "none") -> str:
    """Names as in a sentence: "a, b and c"."""
    *before, last = list(names) or [none]
    return f"{', '.join(before)} and {last}" if before else last


def decimal(value: float, digits: int = 2) -> str:
    """A number with a minus sign in place of a hyphen, and never a negative zero."""
    return f"{value:z.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign, and never a negative zero."""
    return f"{value:+z.{digits}f}".replace("-", "−")


# ---------------------------------------------------------------------------- parts


def fences(values: Iterable[float], reach: float = 1.5) -> tuple[float, float]:
    """Range of an axis that no outlier stretches: that of the values within Tukey's fences (1977).

    Fences are ``reach`` times the range between the quartiles outside of these.
    """
    found = np.asarray(list(values), dtype=float)
    found = found[np.isfinite(found)]
    if not len(found):
        return -1.0, 1.0
    low, high = np.quantile(found, [0.25, 0.75])
    slack = reach * (high - low)
    inside = found[(found >= low - slack) & (found <= high + slack)]
    return float(inside.min()), float(inside.max())


def draw_differences(axes: Axes, rows: pd.DataFrame, limits: tuple[float, float]) -> None:
    """Draw each row's difference with its 95 % interval; the marker says the verdict, shading what is equivalent.

    A row outside ``limits`` is an arrow at the edge with its value. Rows need the columns row, framework, difference,
    low, high, verdict and seeds needed of the tables.
    """
    low, high = limits
    axes.axvspan(-MARGIN_DB, MARGIN_DB, color="0.92", zorder=0, linewidth=0)
    axes.axvline(0, color="0.5", linewidth=0.6, zorder=1)
    labels = []
    for place, row in enumerate(rows.to_dict("records")):
        mark, middle = MARKS[row["verdict"]], row["difference"]
        labels.append(row["row"] + (f" ({FRAMEWORKS['jax']})" if row["framework"] == "jax" else ""))
        axes.plot(np.clip([row["low"], row["high"]], low, high), [place, place], color=mark.color, linewidth=1)
        if low <= middle <= high:
            axes.plot(middle, place, mark.marker, color=mark.color, markerfacecolor=mark.face, markersize=4)
        else:
            edge, direction = (low, -1) if middle < low else (high, 1)
            inner = edge - direction * 0.14 * (high - low)
            head: dict[str, Any] = {
                "arrowstyle": "-|>",
                "color": mark.color,
                "linewidth": 1,
                "shrinkA": 0,
                "shrinkB": 0,
            }
            axes.annotate("", (edge, place), (inner, place), arrowprops=head)
            axes.plot(inner, place, mark.marker, color=mark.color, markerfacecolor=mark.face, markersize=4)
            beside: dict[str, Any] = {
                "textcoords": "offset points",
                "xytext": (-5 * direction, 0),
                "va": "center",
                "fontsize": 6.5,
            }
            axes.annotate(signed(middle, 1), (inner, place), ha="left" if direction < 0 else "right", **beside)
        axes.annotate(
            _remark(row), (1.02, place), xycoords=axes.get_yaxis_transform(), va="center", fontsize=6.5, color="0.25"
        )
    axes.set(yticks=range(len(rows)), yticklabels=labels, xlim=limits, ylim=(len(rows) - 0.4, -0.6))
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=4, steps=[1, 2, 5, 10])


def _remark(row: dict[str, Any]) -> str:
    """Remark beside the marker: the row did not train, or the number of seeds that would decide."""
    if row["verdict"] == "undecided" and pd.notna(needed := row["seeds needed"]):
        return "more songs" if np.isinf(needed) else f"{needed:.0f} seeds"
    return row["verdict"] if row["verdict"] in ("not trained", "one seed", "one song") else ""


def verdict_handles(verdicts: Iterable[str]) -> list[Line2D]:
    """Entries of a legend for those of :data:`MARKS` that occur in ``verdicts``."""
    occurring = set(verdicts)
    return [
        plt.Line2D(
            [], [], color=m.color, marker=m.marker, markerfacecolor=m.face, markersize=4, linewidth=1, label=name
        )
        for name, m in MARKS.items()
        if name in occurring
    ]


def draw_curves(axes: Axes, runs: pd.DataFrame, x: str, label: str | None = None, **line: Any) -> None:
    """Draw the mean of a group's validation curves over seeds and shade the range of seeds; ``x``: step or seconds."""
    by_step = runs.groupby("step")
    places, scores = by_step[x].mean(), by_step["validation uSDR"].agg(["mean", "min", "max"])
    (drawn,) = axes.plot(places, scores["mean"], label=label, **line)
    axes.fill_between(places, scores["min"], scores["max"], color=drawn.get_color(), alpha=0.15, linewidth=0)


def draw_levels(axes: Axes, levels: dict[str, float], *, named: bool = True) -> None:
    """Draw floors or a ceiling as dotted lines where the axis shows them, ``named`` on the right of the axes."""
    low, high = axes.get_ylim()
    for name, level in levels.items():
        if low <= level <= high:
            axes.axhline(level, color="0.45", linestyle=":", linewidth=0.9, zorder=1)
            if named:
                beside: dict[str, Any] = {
                    "xycoords": axes.get_yaxis_transform(),
                    "va": "center",
                    "fontsize": 6.5,
                    "color": "0.25",
                }
                axes.annotate(textwrap.fill(name, 11), (1.02, level), linespacing=0.95, **beside)


def name_those_below(axes: Axes, scores: dict[str, float]) -> None:
    """Say which rows lie below the axis, and where."""
    bottom, _ = axes.get_ylim()
    below = [f"{row} {decimal(score, 1)}" for row, score in scores.items() if score < bottom]
    if below:
        axes.annotate(f"↓ {listed(below)}", (0.98, 0.02), xycoords="axes fraction", ha="right", fontsize=6.5)


def label_points(axes: Axes, points: Sequence[tuple[float, float, float, str]]) -> None:
    """Name each point (x, y, half its error bar, name) where its text covers other points, bars and texts least."""
    axes.figure.canvas.draw()  # makes the layout, in whose pixels texts are placed
    point = axes.figure.dpi / 72
    low, high = (axes.transData.transform([(x, y + sign * bar) for x, y, bar, _ in points]) for sign in (-1, 1))
    taken = [Bbox([a - 3 * point, b + 3 * point]) for a, b in zip(low, high, strict=True)]
    frame = axes.get_window_extent()
    for (x, y, _, name), centre in zip(points, (low + high) / 2, strict=True):
        text = axes.annotate(name, (x, y), (0, 0), textcoords="offset points", va="bottom", fontsize=6.5)
        text.set_in_layout(False)
        extent = text.get_window_extent()
        # A text a step farther away costs as much as one of which a twelfth is covered.
        boxes = [
            (step * extent.width * extent.height / 12, Bbox([centre + corner, centre + corner + extent.size]))
            for step, gap in enumerate((5, 9, 14))
            for corner in _around(extent.width, extent.height, gap * point)
        ]
        _, best = min(boxes, key=lambda found: found[0] + _covered(found[1].padded(point), taken, frame))
        text.set_position((best.min - centre) / point)
        taken.append(best)


def _around(width: float, height: float, gap: float) -> list[tuple[float, float]]:
    """Lower left corners of a text around a point at (0, 0): beside, below, above, and between these."""
    left, middle, right = -gap - width, -width / 2, gap
    below, level, above = -gap - height, -height / 2, gap
    sides = [(right, level), (left, level), (middle, below), (middle, above)]
    return sides + [(x, y) for x in (right, left) for y in (below / 2 - height / 4, above / 2)]


def _covered(box: Bbox, taken: Sequence[Bbox], frame: Bbox) -> float:
    """The area of ``box`` that others take or that lies outside ``frame``."""
    inside = Bbox.intersection(box, frame)
    outside = box.width * box.height - (inside.width * inside.height if inside else 0)
    shared = [Bbox.intersection(box, other) for other in taken]
    return outside + sum(found.width * found.height for found in shared if found)


def decibels(values: Float[np.ndarray, ...] | Complex[np.ndarray, ...], loudest: float) -> Float[np.ndarray, ...]:
    """Levels in dB relative to ``loudest``, not below :data:`FLOOR_DB`."""
    return 20 * np.log10(np.maximum(np.abs(values) / loudest, 10 ** (FLOOR_DB / 20)))


def draw_spectrogram(
    axes: Axes, cells: Float[np.ndarray, "f t"], seconds: float, hertz: float, **image: Any
) -> AxesImage:
    """Draw ``cells`` over ``seconds`` and up to ``hertz``, in kHz; by default as levels in dB."""
    shown: dict[str, Any] = {"cmap": "magma", "vmin": FLOOR_DB, "vmax": 0} | image
    return axes.imshow(cells, origin="lower", aspect="auto", extent=(0, seconds, 0, hertz / 1000), **shown)
