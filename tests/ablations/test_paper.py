"""The paper says what the results say."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from ablations import settings
from ablations.stages import paper

ROOT = Path(__file__).parents[2]
TABLES = ROOT / "results" / "tables"
SOURCE = paper.SOURCE.read_text()
#: Numbers that the text may name because they define something or are somebody else's; all others are read from files.
DEFINED = {
    "2,048": "samples of the transform",
    "80": "Hz, the voice's range", "250": "Hz, of the reference's second stretch", "4": "kHz", "2": "kHz",
    "160": "tokens of the memory", "64": "of level 1", "48": "of level 2", "32": "of level 3",
    "16": "of the bottleneck",
    "0": "dB, where the ramp is clipped", "1": "an encoder's number", "3": "an encoder's number",
    "95": "% of the intervals",
    "41": "bands of BSRNN", "6": "layers of BS-RoFormer", "12": "layers of BS-RoFormer",
    "18": "MUSDB18", "16-bit": "audio", "-2": "Mamba-2",
}  # fmt: skip


def prose(source):
    """The text without comments, code, maths, references and the table of published figures."""
    source = re.sub(r"//[^\n]*", "", source)
    source = re.sub(r"#figure\(\s*table\((?:(?!<published>).)*<published>", "", source, flags=re.DOTALL)
    body = source[source.index("*Abstract.*") :]
    body = re.sub(r"\$[^$]*\$", "", body)
    body = re.sub(r"`[^`]*`", "", body)
    body = re.sub(r"@\w+", "", body)
    lines = [
        line
        for line in body.splitlines()
        if not re.match(r"\s*(#|table|columns|caption|image|\.\.|box-of|align|block)", line)
    ]
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
    import yaml

    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["paper"]["deps"]
    read = re.findall(r'"\.\./([^"]+)"', SOURCE)
    assert read
    assert [path for path in read if not any(path == dep or path.startswith(f"{dep}/") for dep in deps)] == []


def test_the_committed_paper_is_that_of_the_committed_results():
    assert paper.SOURCE.with_suffix(".pdf").read_bytes() == paper.compiled()


def rows():
    """axis -> what was trained, of its table."""
    tables = {axis: pd.read_csv(TABLES / f"{axis}.csv", index_col="system") for axis in settings.table()["axes"]}
    return {axis: table[table["seeds"].notna()] for axis, table in tables.items()}


def test_the_paper_says_which_row_is_lowest_and_whose_score_falls():
    assert pd.concat(table["uSDR mean"] for table in rows().values()).idxmin() == "magnitude-band (torch)"
    for row in ("default", "magnitude"):
        plots = ROOT / "results" / "runs" / f"torch-{row}-0" / "live" / "plots"
        score = pd.read_csv(plots / "metrics" / "valid" / "usdr.tsv", sep="\t")["usdr"]
        assert (score.diff().dropna() < 0).all()
    said = " ".join(SOURCE.split())
    assert "the row without SI-SDR, `magnitude-band`, suggests, which is the lowest" in said
    assert "uSDR falls under the magnitude by itself too" in said


def test_the_table_of_costs_is_that_of_the_records():
    table = (TABLES / "bench.md").read_text()
    for name in ("scan", "step", "separate"):
        for f in json.loads((ROOT / f"results/bench/{name}.json").read_text())["figures"]:
            (line,) = (
                line
                for line in table.splitlines()
                if line.startswith(f"| {f['what']} | ") and f"{f['value']:g}" in line
            )
            assert line.endswith("| yes |" if f["reached"] else "| **no** |")
