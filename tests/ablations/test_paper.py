"""The paper and the README agree with the results, all as committed."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from ablations.stages import paper

ROOT = Path(__file__).parents[2]
RUNS = ("torch-base-0", "torch-default-0")
COUNTED = ("flop_per_audio_second", "kept_mib_per_audio_second")
SOURCE = (ROOT / paper.SOURCE).read_text()
#: Numbers that the text may contain: definitions and other people's results. All others are read from files.
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
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["paper"]["deps"]
    read = re.findall(r'"\.\./([^"]+)"', SOURCE)
    assert read
    assert [path for path in read if not any(path == dep or path.startswith(f"{dep}/") for dep in deps)] == []


def test_the_committed_paper_is_that_of_the_committed_results(committed):
    assert (committed / paper.SOURCE).with_suffix(".pdf").read_bytes() == paper.compile_paper(committed)


def test_readme_has_the_steps_of_every_profile(committed, readme):
    for name, profile in yaml.safe_load((committed / "ablations" / "params.yaml").read_text())["profiles"].items():
        steps = [profile[part]["steps"] for part in ("training", "rows")]
        cells = " | ".join(f"{n:,}" for n in steps)
        assert re.search(rf"\| `{name}`( \(default\))? \| `{profile['preset']}` \| {cells} \|", readme[1])


def test_readme_says_how_the_committed_runs_were_trained(committed, readme):
    base, row = (json.loads((committed / "results" / "runs" / run / "run.json").read_text()) for run in RUNS)
    long, short = (run["configuration"]["training"] for run in (base, row))
    assert f"({long['steps']:,} steps of {long['segment_seconds']} s)" in readme[1]
    assert f"after {short['steps']:,} steps" in readme[1]
    assert f"about {base['parameters']:,} parameters" in readme[1]


def test_readme_says_what_the_presets_for_gpus_take(committed, readme):
    presets = json.loads((committed / "results" / "cost.json").read_text())["presets"]
    said, text = readme
    for name, counted in presets.items():
        assert f"| `{name}` | {counted['parameters']:,} |" in text
    flop, kept = ([presets[name][key] for name in ("small", "paper")] for key in COUNTED)
    assert f"{flop[0] / 1e9:.0f} GFLOP a second of audio in `small` and {flop[1] / 1e9:.0f} in `paper`" in said
    assert f"{kept[0] / 1024:.1f} and {kept[1] / 1024:.1f} GiB a second of audio in float32" in said


def read_table(committed, name):
    return pd.read_csv(committed / "results" / "tables" / f"{name}.csv")


def test_readme_has_the_base_table(committed, readme):
    for row in read_table(committed, "base").to_dict("records"):
        scores = [row[name] for name in ("uSDR mean", "cSDR median", "leakage mean", "real uSDR")]
        (line,) = (line for line in readme[1].splitlines() if line.startswith(f"| {row['row']} "))
        assert line.endswith(f"| {' | '.join(f'{score:.2f}' for score in scores)} |")


@pytest.fixture
def rows(committed):
    """Axis -> the lines of its table that were trained."""
    axes = yaml.safe_load((committed / "ablations" / "rows.yaml").read_text())["axes"]
    tables = {axis: read_table(committed, axis) for axis in axes}
    return {axis: table[table["seeds"].notna()] for axis, table in tables.items()}


def test_readme_says_how_the_rows_came_out(committed, readme, rows):
    base = read_table(committed, "base").set_index("row")["uSDR mean"]
    floor = base["fixed gain per band"]
    assert base["base"] > floor
    assert all((table["uSDR mean"] < floor).all() for table in rows.values())
    differing = {axis for axis, table in rows.items() if table["verdict"].isin(["better", "worse"]).any()}
    assert differing == {"bands", "memory", "loss"}
    assert (
        "all end below the floor of one fixed gain for each band; what is compared is how near they have come by then: "
        "losses and bands differ in it, mixers do not"
    ) in readme[0]


def test_the_paper_says_which_row_is_lowest_and_whose_score_falls(committed, rows):
    trained = pd.concat(rows.values(), ignore_index=True)
    lowest = trained.loc[trained["uSDR mean"].idxmin()]
    assert (lowest["row"], lowest["framework"]) == ("magnitude-band", "torch")
    for row in ("default", "magnitude"):
        plots = committed / "results" / "runs" / f"torch-{row}-0" / "live" / "plots"
        score = pd.read_csv(plots / "metrics" / "valid" / "usdr.tsv", sep="\t")["usdr"]
        assert (score.diff().dropna() < 0).all()
    said = " ".join((committed / paper.SOURCE).read_text().split())
    assert "the row without SI-SDR, `magnitude-band`, suggests, which is the lowest" in said
    assert "uSDR falls under the magnitude by itself too" in said


def test_readme_says_what_the_second_processor_and_an_hour_took(committed, readme):
    said, _ = readme
    record = json.loads((committed / "results/second_processor.json").read_text())
    usdr = record["summary"]["test"]["instrumental"]["usdr"]
    assert f"it ended at a mean uSDR of {usdr['mean']:.2f} dB, median {usdr['median']:.2f}" in said
    assert f"moved the mean uSDR from 6.83 to {usdr['mean']:.2f}" in said
    assert record["run"]["commit"].startswith("82d0391")
    songs = json.loads((committed / "results/bench/length.json").read_text())["songs"]
    peaks = {song["seconds"]: song["peak_mib"] for song in songs if song["framework"] == "torch"}
    assert f"an hour takes {peaks[3600]:.0f} MiB, two minutes {peaks[120]:.0f}" in said


def test_readme_says_what_a_second_of_audio_takes(committed, readme):
    record = json.loads((committed / "results/bench/separate.json").read_text())
    assert "Xeon" in record["device"]
    rows = dict(re.findall(r"^\| (\S.*?) \| (\d+\.\d\d M \| .*?) \|$", readme[1], re.MULTILINE))
    for s in record["systems"]:
        name = f"`{s['system']}`" if s["system"] in record["counted"] else s["system"]
        weights, torch, jax = (cell.strip() for cell in rows[name].split("|"))
        assert weights == f"{s['parameters'] / 1e6:.2f} M"
        cell = jax if s["framework"] == "jax" else torch
        number = f"{s['seconds_per_audio_second']:.3g}"
        if name in record["counted"] or not s["keeps_freed_memory"] or s["framework"] == "jax":
            assert cell.split()[0] == number
        else:
            assert cell.startswith(f"{number} s") or cell.endswith(f"({number})")
    bs = {
        s["keeps_freed_memory"]: s["seconds_per_audio_second"]
        for s in record["systems"]
        if s["system"] == "bs-roformer"
    }
    assert bs[True] < bs[False] / 2


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
