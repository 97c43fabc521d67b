"""Figures of the paper: the shared parts, and the notebooks that draw them from what the pipeline writes."""

import json
import re
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml

from ablations import figures, settings
from ablations.stages import noise, tabulate
from ablations.verdicts import NOT_TRAINED
from twinsep.errors import InputError

ROOT = Path(__file__).parents[2]
NOTEBOOKS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
SONGS = 20


@pytest.fixture(autouse=True)
def drawing():
    """No test leaves a figure or a style behind."""
    with plt.rc_context():
        plt.switch_backend("agg")
        yield
        plt.close("all")


def source(cell):
    return "".join(cell["source"])


def code(name):
    return [source(cell) for cell in NOTEBOOKS[name]["cells"] if cell["cell_type"] == "code"]


# ---------------------------------------------------------------------------- words


def test_a_difference_has_a_sign_and_zero_none_of_its_own():
    assert [figures.signed(value) for value in (0.304, -0.304, -0.001)] == ["+0.30", "−0.30", "+0.00"]
    assert [figures.decimal(value, 1) for value in (-7.13, -0.04)] == ["−7.1", "0.0"]


def test_names_are_listed_as_in_a_sentence():
    assert [figures.listed(names) for names in ((), ("a",), ("a", "b"), "abc")] == [
        "none",
        "a",
        "a and b",
        "a, b and c",
    ]


# ---------------------------------------------------------------------------- parts


def test_no_outlier_stretches_an_axis():
    values = [*np.linspace(-0.4, 0.4, 20), -30.0, np.nan]
    assert figures.fences(values) == (-0.4, 0.4)
    assert figures.fences([0.1, 0.2, 0.3]) == (0.1, 0.3)


def rows(**columns):
    usual = {"row": "a", "framework": "torch", "difference": 0.1, "low": 0.0, "high": 0.2, "verdict": "undecided"}
    return pd.DataFrame([{**usual, "seeds needed": 7.0, **columns}])


def texts(axes):
    return [text.get_text() for text in axes.texts if text.get_text()]


def test_a_row_within_the_axis_is_its_interval_and_the_marker_of_its_verdict():
    _, axes = plt.subplots()
    figures.draw_differences(axes, rows(verdict="worse", difference=-0.3, low=-0.4, high=-0.2), (-1, 1))
    interval, point = axes.lines[1:]
    assert interval.get_xdata().tolist() == [-0.4, -0.2]
    assert (point.get_xdata()[0], point.get_marker()) == (-0.3, figures.MARKS["worse"].marker)
    assert axes.patches[0].get_x() == -figures.MARGIN_DB
    assert texts(axes) == []


def test_a_row_beyond_the_axis_is_an_arrow_with_its_value():
    _, axes = plt.subplots()
    figures.draw_differences(axes, rows(verdict="not trained", difference=-3.2, low=-3.4, high=-3.0), (-1, 1))
    assert all(-1 <= x <= 1 for line in axes.lines for x in np.asarray(line.get_xdata()) if line.get_marker() != "None")
    assert texts(axes) == ["−3.2", "not trained"]
    (arrow,) = (text.arrow_patch for text in axes.texts if text.arrow_patch)
    assert arrow.get_path().vertices is not None
    assert axes.get_xlim() == (-1, 1)


def test_beside_an_undecided_row_stand_the_seeds_that_would_decide_it():
    _, axes = plt.subplots()
    shown = pd.concat([rows(), rows(**{"seeds needed": np.inf}), rows(framework="jax", verdict="equivalent")])
    figures.draw_differences(axes, shown, (-1, 1))
    assert texts(axes) == ["7 seeds", "more songs"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "a", "a (JAX)"]


def test_every_verdict_has_a_mark_that_differs_without_its_colour():
    told = {"better", "worse", "equivalent", "undecided", "one seed", "one song", NOT_TRAINED}
    assert set(figures.MARKS) == told
    shapes = {name: (mark.marker, mark.face == mark.color) for name, mark in figures.MARKS.items()}
    shapes.pop("one song")  # as "one seed": no verdict for want of data
    assert len(set(shapes.values())) == len(shapes)


def test_a_curve_is_the_mean_over_seeds_in_their_range():
    lines = [(0, 10, 1.0, 4.0), (0, 20, 2.0, 6.0), (1, 10, 3.0, 5.0), (1, 20, 4.0, 9.0)]
    runs = pd.DataFrame(lines, columns=["seed", "step", "seconds", "validation uSDR"])
    _, axes = plt.subplots()
    figures.draw_curves(axes, runs, "seconds")
    assert axes.lines[0].get_xydata().tolist() == [[2, 4.5], [3, 7.5]]
    (band,) = axes.collections
    assert {tuple(point) for point in band.get_paths()[0].vertices} == {(2, 4), (2, 5), (3, 6), (3, 9)}


def test_levels_beyond_the_axis_are_left_out():
    _, axes = plt.subplots()
    axes.set_ylim(5, 10)
    figures.draw_levels(axes, {"mixture": 4.5, "fixed gain per band": 7.0, "unknown": float("nan")})
    assert texts(axes) == ["fixed gain\nper band"]
    figures.name_those_below(axes, {"low": -3.25, "high": 6})
    assert texts(axes)[1:] == ["↓ low −3.2"]


def test_names_of_points_cover_neither_each_other_nor_points():
    _, axes = plt.subplots(figsize=(3.3, 2.5), dpi=100)
    rng = np.random.default_rng(0)
    points = [(x, y, 0.02, f"row-{i}") for i, (x, y) in enumerate(rng.uniform(0.1, 0.9, (10, 2)))]
    axes.set(xlim=(0, 1), ylim=(0, 1))
    figures.label_points(axes, points)
    boxes = [text.get_window_extent() for text in axes.texts]
    centres = axes.transData.transform([point[:2] for point in points])
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert not [box for box in boxes for centre in centres if box.contains(*centre)]
    assert all(axes.get_window_extent().contains(*box.min) for box in boxes)


def test_levels_of_a_spectrogram_end_at_its_floor():
    assert figures.decibels(np.array([1j, 0.1, 0.0]), 1.0).tolist() == [0, -20, figures.FLOOR_DB]


def test_the_same_figure_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    figures.begin()
    monkeypatch.chdir(tmp_path)
    figures.FIGURES.mkdir(parents=True)
    written = []
    for _ in range(2):
        figure, axes = plt.subplots()
        axes.plot([1, 2], label="line")
        axes.legend()
        figures.save(figure, "drawn")
        written.append((figures.FIGURES / "drawn.svg").read_bytes())
    assert written[0] == written[1]


def test_a_notebook_outside_the_repository_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is not in the repository"):
        figures.begin()


# ---------------------------------------------------------------------------- the notebooks as committed


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_opens_with_a_question_and_ends_with_the_answer(name):
    first, *_, last = NOTEBOOKS[name]["cells"]
    title, _, text = source(first).partition("\n")
    assert re.fullmatch(r"# .+\?", title)
    assert text.strip()
    assert "figures.answer(" in source(last)
    for cell in NOTEBOOKS[name]["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_stage_of_a_notebook_names_what_it_draws_and_what_it_is_drawn_with(name):
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    (stage,) = (s for s in stages if s.get("cmd") == f"python -m ablations.stages.notebook {name}")
    text = "\n".join(code(name))
    drawn = {f"results/figures/{figure}.svg" for figure in re.findall(r'figures\.save\(\w+, "(\w+)"\)', text)}
    assert {path for out in stage["outs"] for path in out if path.endswith(".svg")} == drawn != set()
    shared = {"ablations/figures.py", "ablations/stages/notebook.py", "notebooks/paper.mplstyle"}
    tables = {f"results/tables/{table}.csv" for table in re.findall(r'figures\.table\("(\w+)"\)', text)}
    assert shared | tables | {f"notebooks/{name}.ipynb"} <= set(stage["deps"])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_no_bar_stands_on_a_logarithmic_axis(name):
    """A bar's length means nothing there."""
    for text in code(name):
        bars = set(re.findall(r"(\w+)\.barh?\(", text))
        assert not bars & set(re.findall(r'(\w+)\.(?:loglog|set_xscale|set\(xscale="log")', text))


# ---------------------------------------------------------------------------- the notebooks on results


def entry(axis, framework="torch", seeds=(0, 1), **override):
    return {"framework": framework, "seeds": list(seeds), "axis": axis, "question": "Is it?", "override": override}


GROUPS = {
    "torch-base": entry("base", seeds=[0]),
    "torch-default": entry("all"),
    "jax-default": {"framework": "jax", "seeds": [0, 1]},
    "torch-plain": entry("start", model={"features": "complex", "init": "default"}),
    "torch-identity-start": entry("start", model={"features": "complex"}),
    "torch-compressed": entry(["start", "loss"], loss={"weights": {"compressed": 1.0}}),
    "torch-no-unet": entry("size", model={"levels": 0}),
    "torch-d32": entry("size", model={"d_model": 32}),
    "torch-conv": entry("mixer", model={"mixer": {"kind": "conv"}}),
}
LEVELS = {"torch-plain": 3.2, "torch-d32": 9.5, "torch-conv": 7.0}
OPTIMA = """loss,mean gain,valid uSDR,test uSDR
mixture,1.0,1.1,1.0
default,0.7,2.5,2.4
magnitude,0.98,1.2,1.1
least squares,0.5,3.1,3.0
"""


@pytest.fixture
def execute(finish, monkeypatch):
    """A function that runs the notebooks about runs on the results of a small grid and returns their answers."""

    def run(songs=SONGS, seeds=2):
        rng = np.random.default_rng(0)
        groups = {group: found | {"seeds": found["seeds"][:seeds]} for group, found in GROUPS.items()}
        song = rng.standard_normal(songs)
        levels = {
            group: LEVELS.get(group, 8.0) + song + 0.02 * rng.standard_normal((len(found["seeds"]), songs))
            for group, found in groups.items()
        }
        root = finish(groups, levels)
        made = {"flop_per_audio_second": 8e8, "peak_memory_mib": 700.0}
        cost = {group.removeprefix("torch-"): made | {"step_s": 0.1 + 0.02 * i} for i, group in enumerate(groups)}
        tabulate.COST.write_text(json.dumps({"rows": cost}))
        for axis in settings.row_table()["axes"]:
            tabulate.main(axis)
        (tabulate.TABLES / "static_optimum.csv").write_text(OPTIMA)
        for file in ("parity.json", "second_processor.json"):
            shutil.copy(ROOT / "results" / file, root / "results")
        noise.main()
        prepare(root)
        return {name: answered(name, monkeypatch) for name in ("ablations", "learning", "noise", "parity")}

    return run


def prepare(root):
    """Make ``root`` a place where notebooks run."""
    (root / "dvc.yaml").touch()
    (root / "notebooks").mkdir()
    shutil.copy(ROOT / figures.STYLE, root / figures.STYLE)
    (root / figures.FIGURES).mkdir(parents=True)


def answered(name, monkeypatch):
    """Run a notebook and return its answer."""
    answers = []
    monkeypatch.setattr(figures, "answer", lambda *sentences: answers.append(" ".join(filter(None, sentences))))
    variables = {}
    for cell in code(name):
        exec(compile(cell, name, "exec"), variables)
    (said,) = answers
    assert not re.search(r"\bnan\b", said)
    return said


def test_the_notebooks_draw_and_tell_what_came_out(execute):
    said = execute()
    assert "6 rows, 5 with a verdict" in said["ablations"]
    assert "Better (1): d32 (+1.49)" in said["ablations"]
    assert "Worse (1): conv (−1.01)" in said["ablations"]
    assert "not trained (1): plain (−4.81)" in said["ablations"]
    assert "score what the mixture does, to 0.2 dB, under magnitude" in said["learning"]
    assert "those of default score highest (2.50 dB on validation songs)" in said["learning"]
    assert "After 1,000 steps plain did not exceed the level regression (4.00 dB on test songs)" in said["learning"]
    assert "Alone, each from the row plain, gain on test songs: identity-start +4.8" in said["learning"]
    assert re.search(r"Songs differ by a standard deviation of 0\.\d\d dB", said["noise"])
    assert re.search(r"Two rows alone need \d+ seeds for 0.1 dB", said["noise"])
    assert "all within their tolerances" in said["parity"]
    assert "JAX minus PyTorch is +0.00 and +0.00 dB on the validation songs by seed" in said["parity"]
    drawn = {"ablations", "learning", "mixers", "noise", "parity", "static_optimum", "training_curves"}
    assert {path.stem for path in figures.FIGURES.iterdir()} == drawn


def test_one_seed_and_two_songs_are_enough_to_draw(execute):
    said = execute(songs=2, seeds=1)
    assert "0 with a verdict" in said["ablations"]
    assert "JAX minus PyTorch on the same seeds" in said["noise"]
    assert "one seed" in said["noise"]


def test_the_bands_are_drawn_and_told(tmp_path, monkeypatch):
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert "68 bands in place of 72, and bin 1024 (22,050 Hz) belongs to none" in answered("bands", monkeypatch)
