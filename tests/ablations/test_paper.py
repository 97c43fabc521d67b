"""The paper agrees with the results, both as committed."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from ablations.stages import paper

ROOT = Path(__file__).parents[2]
SOURCE = (ROOT / paper.SOURCE).read_text()
#: Numbers that the text may contain: definitions and other people's results. All others are read from files.
DEFINED = {
    "2,048": "samples of the transform",
    "80": "Hz, the voice's range", "250": "Hz, of the reference's second stretch", "4": "kHz", "2": "kHz",
    "160": "tokens of the memory",
    "0": "dB, where the ramp is clipped",
    "95": "% of the intervals",
    "41": "bands of BSRNN", "6": "layers of BS-RoFormer", "12": "layers of BS-RoFormer",
    "18": "MUSDB18", "16": "bits of audio", "-2": "Mamba-2",
}  # fmt: skip


def prose(source):
    """The text without comments, code, maths, references and the table of published figures."""
    source = re.sub(r"//[^\n]*", "", source)
    source = re.sub(r"#figure\(\s*table\((?:(?!<published>).)*<published>", "", source, flags=re.DOTALL)
    body = source[source.index("*Abstract.*") :]
    body = re.sub(r"\$[^$]*\$", "", body)
    body = re.sub(r"`[^`]*`", "", body)
    body = re.sub(r"@\w+", "", body)
    lines = [line for line in body.splitlines() if not re.match(r"\s*(#|table|columns|caption|image|\.\.)", line)]
    text = "\n".join(lines)
    for _ in range(3):  # calls, from the innermost out
        text = re.sub(r"#?[\w.-]*\([^()]*\)", "", text)
    return re.sub(r"#[\w.]+", "", text)


def test_the_text_names_no_number_of_ours():
    found = set(re.findall(r"(?<![\w.])\d[\d,.]*\d|(?<![\w.])\d(?![\w.]*\w)", prose(SOURCE)))
    assert not found - set(DEFINED), "read these from a file, or say in DEFINED what they define"


@pytest.mark.parametrize("number", ["7.48 dB", "3,000 steps"])
def test_a_number_typed_by_hand_is_seen(number):
    assert re.search(r"\d", prose(SOURCE.replace("= Introduction", f"We reach {number} on songs.\n= Introduction", 1)))
    text = prose(SOURCE.replace("= Introduction", f"We reach {number} on songs.\n= Introduction", 1))
    assert number.split()[0] in text


def test_every_file_the_paper_reads_is_a_dependency_of_its_stage():
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["paper"]["deps"]
    read = re.findall(r'"\.\./([^"]+)"', SOURCE)
    assert read
    assert [path for path in read if not any(path == dep or path.startswith(f"{dep}/") for dep in deps)] == []


def test_the_committed_paper_is_that_of_the_committed_results(committed):
    assert (committed / paper.SOURCE).with_suffix(".pdf").read_bytes() == paper.compile_paper(committed)


def read_table(committed, name):
    return pd.read_csv(committed / "results" / "tables" / f"{name}.csv")


@pytest.fixture
def rows(committed):
    """Axis -> the lines of its table that were trained."""
    axes = yaml.safe_load((committed / "ablations" / "rows.yaml").read_text())["axes"]
    tables = {axis: read_table(committed, axis) for axis in axes}
    return {axis: table[table["seeds"].notna()] for axis, table in tables.items()}


def test_the_paper_says_which_row_is_lowest_and_whose_score_falls(committed, rows):
    trained = pd.concat(rows.values(), ignore_index=True)
    lowest = trained.loc[trained["uSDR mean"].idxmin()]
    assert (lowest["row"], lowest["framework"]) == ("magnitude-band", "torch")
    for row in ("default", "magnitude"):
        plots = committed / "results" / "runs" / f"torch-{row}-0" / "live" / "plots"
        score = pd.read_csv(plots / "metrics" / "valid" / "usdr.tsv", sep="\t")["usdr"]
        assert (score.diff().dropna() < 0).all()
    said = " ".join((committed / paper.SOURCE).read_text().split())
    assert "the lowest row is `magnitude-band`, which has no SI-SDR term" in said
    assert "uSDR also falls with the magnitude loss alone" in said


def test_the_table_of_costs_is_that_of_the_records(committed):
    table = (committed / "results/tables/bench.md").read_text()
    for name in ("scan", "step", "separate"):
        for f in json.loads((committed / f"results/bench/{name}.json").read_text())["figures"]:
            (line,) = (
                line
                for line in table.splitlines()
                if line.startswith(f"| {f['what']} | ") and f"{f['value']:g}" in line
            )
            assert line.endswith("| yes |" if f["reached"] else "| **no** |")
