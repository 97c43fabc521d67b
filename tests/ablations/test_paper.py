"""The paper says what its results say, on made-up results and on those of the last commit."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import typst
import yaml
from helpers import fabricated
from helpers.typst_prose import prose
from scipy.stats import spearmanr

from ablations import figures
from ablations.stages import paper

ROOT = Path(__file__).parents[2]
SOURCE = (ROOT / paper.SOURCE).read_text()
DATA = (ROOT / paper.SOURCE.parent / "data.typ").read_text()
ROWS = yaml.safe_load((ROOT / "ablations" / "rows.yaml").read_text())
#: Numbers that the text may contain: definitions, facts about the public code, and other people's results.
DEFINED = {
    "0.2": "dB, margin of equivalence",
    "0.1": "scale of the identity start",
    "0.05": "level of the tests", "90": "% interval of equivalence", "95": "% intervals", "0.8": "power",
    "1": "dB, level of the voice", "6": "dB, level of the voice", "12": "kHz",
    "20": "kHz, highest low-pass", "11": "kHz, lowest low-pass",
    "0.02": "standard deviation of the bands' embedding", "0.03": "dB of three other trainings of BSRNN",
    "512": "samples", "1,024": "samples", "2,048": "samples, windows of a loss", "40": "dB, where it ends",
    "3": "Mamba-3", "8": "kHz, upper edge of a figure",
    "100": "ms, frames of the leakage; dB, largest ratio", "60": "dB of full scale, silence",
    "2": "kHz; tokens on each side; Mamba-2", "80": "Hz", "250": "Hz, range with missing bands",
    "16": "bits of audio",
    "41": "bands of BSRNN",
    "7.4": "dB", "7.7": "dB", "8.1": "dB of three trainings of BSRNN",
    "129": "line", "135": "line", "161": "line", "168": "line", "235": "line", "238": "line of the public code",
    "69": "Falcon 69",
}  # fmt: skip
#: Words of a verdict, which the text must compute,
JUDGING = (
    r"better|worse|best|worst|lowest|highest|higher|lower|equivalent|undecided|significant\w*|outperform\w*|beats?|"
    r"exceeds?|improve\w*|fails?|largest|smallest|most|faster|slower|always|never|ranks?"
)
#: except in these places: definitions, counts, computed names, and what holds whatever the results are.
NOT_JUDGED = (
    r"best (constant|static|real)", "loss's best", r"\*(better|worse|equivalent|undecided)\*",
    "call a difference undecided", "Between the lowest and the highest row",
    r"‹› (better|worse|equivalent|undecided)\b", "report that it outperforms", "We never compare", "must exceed",
    "which vocals lower", "The largest is that of ‹›", "row with the largest variance is ‹›",
    "shows the largest distances", "largest relative distance",
    "at most", "could exceed", "largest of its three terms", "slower rows", "rank correlation", "the undecided rows",
    "make these tests fail", "fails when it is run alone", "Nothing here ranks",
)  # fmt: skip


def readable(source):
    """What a reader sees, without the table of published results."""
    return prose(re.sub(r"#figure\(\s*table\((?:(?!<published>).)*<published>", "", source, flags=re.DOTALL))


def numbers(source):
    return set(re.findall(r"(?<![\w.])\d[\d,.]*\d|(?<![\w.])\d(?![\w.]*\w)", readable(source)))


def judgements(source):
    """Words of a verdict that stand nowhere in NOT_JUDGED, each with its surroundings."""
    text = " ".join(readable(source).split())
    allowed = [m.span() for place in NOT_JUDGED for m in re.finditer(place, text)]
    return [
        text[max(0, m.start() - 40) : m.end() + 40]
        for m in re.finditer(rf"\b(?:{JUDGING})\b", text)
        if not any(start <= m.start() and m.end() <= end for start, end in allowed)
    ]


def query(root, selector, source=paper.SOURCE):
    """The value of the metadata ``selector`` in a document below ``root``."""
    return json.loads(typst.query(root / source, selector, field="value", one=True, root=root))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A paper with made-up results of the profile cpu."""
    return fabricated.write_results(tmp_path_factory.mktemp("cpu"))


@pytest.fixture(scope="module")
def claims(results):
    return query(results, "<claims>")


def read_tables(root):
    counts = {"seeds": "Int64", "parameters": "Int64"}
    return {axis: pd.read_csv(root / f"results/tables/{axis}.csv", dtype=counts) for axis in ROWS["axes"]}


def compared(table):
    """The lines with a verdict."""
    return table[table["verdict"].notna() & (table["row"] != "default")]


# ---------------------------------------------------------------------------- the text


def test_the_text_names_no_number_of_ours():
    assert not numbers(SOURCE) - set(DEFINED), "read these from a file, or say in DEFINED what they define"


@pytest.mark.parametrize(
    "typed",
    ["We reach 7.48 dB.", "It took 3,000 steps.", "It gains $9.5$ dB.", "#if clips-si-sdr [It gains 9.5 dB.]",
     "#wide(table([a]), caption: [All 47 rows.])"],
)  # fmt: skip
def test_a_number_typed_by_hand_is_seen(typed):
    assert numbers(SOURCE.replace("= Introduction", f"{typed}\n\n= Introduction", 1)) - set(DEFINED)


def test_no_number_is_allowed_that_the_text_does_not_have():
    assert set(DEFINED) <= numbers(SOURCE)


def test_published_scores_are_those_of_their_table():
    (table,) = re.findall(r"columns: 2, align: \(left, right\),(.*?)<published>", SOURCE, re.DOTALL)
    shown = sorted(re.findall(r"\d+\.\d\d", table), key=float)
    listed = pd.read_csv(ROOT / "results/tables/published.csv").set_index("system")["cSDR vocals"].dropna()
    wanted = listed.drop("BS-RoFormer, retrained")  # by the authors of BSMamba2
    assert shown == [f"{score:.2f}" for score in sorted(wanted)]


def test_the_text_states_no_verdict_by_hand():
    assert judgements(SOURCE) == []


@pytest.mark.parametrize(
    "typed",
    ["Mamba is better than an LSTM.", "The lowest row is `magnitude`.", "#if has-real [The memory never helps.]",
     "#drawing(\"noise\", caption: [Seeds are the largest part.])"],
)  # fmt: skip
def test_a_verdict_typed_by_hand_is_seen(typed):
    assert len(judgements(SOURCE.replace("= Introduction", f"{typed}\n\n= Introduction", 1))) == 1


@pytest.mark.parametrize("place", NOT_JUDGED)
def test_no_place_is_excepted_that_the_text_does_not_have(place):
    assert re.search(place, " ".join(readable(SOURCE).split()))


# ---------------------------------------------------------------------------- made-up results


def test_verdicts_are_those_of_the_tables(results, claims):
    tables = read_tables(results)
    for axis, table in tables.items():
        named = compared(table).assign(group=lambda t: t["framework"] + "-" + t["row"])
        assert claims["verdicts"][axis] == named.groupby("verdict")["group"].agg(list).to_dict()
    verdicts = pd.concat(map(compared, tables.values())).drop_duplicates(["framework", "row"])["verdict"]
    assert "compressed" in set(tables["start"]["row"]) & set(tables["loss"]["row"])  # and counts once
    assert claims["comparisons"] == len(verdicts)
    assert claims["decided"] == verdicts.isin(["better", "worse", "equivalent"]).sum()


def test_runs_songs_and_seeds_are_counted(results, claims):
    records = json.loads((results / "results/records.json").read_text())
    assert claims["runs"] == sum(map(len, records.values()))
    assert claims["songs"] == 3
    assert claims["least-seeds"] == 9  # the rows that need more songs do not count
    assert claims["finest-effect"] == "0.5"  # of 0.2 dB no number is enough


def test_the_default_bands_are_counted_by_range(claims):
    assert claims["bands"] == [
        ["80", 2], ["250", 8], ["500", 12], ["2,000", 24], ["4,000", 12], ["8,000", 8], ["22,050", 6],
    ]  # fmt: skip


def test_main_effects_are_those_of_the_noise_study(results, claims):
    effects = json.loads((results / "results/noise.json").read_text())["main effects"]
    assert claims["main-effects"] == {name: effect["mean"] for name, effect in effects.items()}
    assert len(effects) == 3


def test_static_optima_are_ranked_against_trained_scores(results, claims):
    optima = pd.read_csv(results / "results/tables/static_optimum.csv").set_index("loss")["test uSDR"]
    rows = read_tables(results)["loss"].query("framework == 'torch'").set_index("row")["uSDR mean"]
    both = [name for name in optima.index if name in rows.index]
    assert len(both) >= 4
    rank = spearmanr(optima[both], rows[both]).statistic
    assert claims["optimum-rank-correlation"] == pytest.approx(rank)


def test_losses_near_the_mixture_are_those_whose_gains_score_little(claims):
    assert claims["near-identity"] == ["reference-mix", "magnitude", "band alone"]


def test_a_clipped_loss_is_admitted(results, tmp_path, claims):
    assert claims["kept-faults"] == ["the clipped SI-SDR"]
    root = copy(results, tmp_path)
    records = json.loads((root / "results/records.json").read_text())
    for run in records["torch-default"].values():
        weights = run["configuration"]["loss"]["weights"]
        weights["si_sdr_unclipped"] = weights.pop("si_sdr")
    (root / "results/records.json").write_text(json.dumps(records))
    assert query(root, "<claims>")["kept-faults"] == []


def test_words_follow_the_scores(results, tmp_path, claims):
    assert (claims["default-above-floor"], claims["default-above-regression"]) == ("1.75 dB above", "0.75 dB above")
    root = copy(results, tmp_path)
    for axis, table in read_tables(root).items():
        table.loc[table["row"] == "default", "uSDR mean"] = 7.0
        table.loc[table["row"] == "log-floor", ["verdict", "difference"]] = ["equivalent", 0.0]
        table.loc[table["row"] == "reference-memory", "verdict"] = "worse"
        table.to_csv(root / f"results/tables/{axis}.csv", index=False)
    found = query(root, "<claims>")
    assert (found["default-above-floor"], found["default-above-regression"]) == ("0.50 dB above", "0.50 dB below")
    assert "log-floor" not in found["harmful-faults"]
    assert "reference-memory" in found["harmful-faults"]


@pytest.mark.parametrize(
    ("number", "shown"),
    [("-0.004", "0.00"), ("0.004", "0.00"), ("-0.006", "−0.01"), ("12", "12.00"), ("-1.5", "−1.50"), ("none", "–")],
)
def test_numbers_have_two_decimals_and_no_negative_zero(results, number, shown):
    source = paper.SOURCE.with_name("number.typ")
    (results / source).write_text(f'#import "data.typ": fixed\n#metadata(fixed({number})) <shown>\n')
    assert query(results, "<shown>", source) == shown


@pytest.mark.parametrize(
    ("profile", "data"), [("smoke", fabricated.GENERATED), ("musdb", "/data/musdb18hq"), ("paper", "/data/musdb18hq")]
)
def test_a_profile_with_fewer_rows_has_a_paper_too(tmp_path, profile, data):
    assert paper.compile_paper(fabricated.write_results(tmp_path, profile, data)).startswith(b"%PDF")


def copy(results, folder):
    return Path(shutil.copytree(results, folder / "copy"))


# ---------------------------------------------------------------------------- files


def test_every_file_the_paper_reads_is_a_dependency_of_its_stage():
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["paper"]["deps"]
    read = [*re.findall(r'"\.\./([^"]+\.\w+)"', DATA), "paper/data.typ"]
    read += [f"results/figures/{name}.svg" for name in re.findall(r'#drawing\("(\w+)"', SOURCE)]
    assert len(read) > 20
    assert [path for path in read if not any(path == dep or path.startswith(f"{dep}/") for dep in deps)] == []
    figures = {dep for dep in deps if dep.startswith("results/figures/")}
    assert figures <= set(read)


def test_the_committed_paper_is_that_of_the_committed_results(committed_results):
    committed = (committed_results / paper.SOURCE).with_suffix(".pdf").read_bytes()
    # Not `assert a == b`: pytest would spend an hour on showing how two PDFs of this size differ.
    same = committed == paper.compile_paper(committed_results)
    assert same, "the stage `paper` makes another PDF of the committed results"


def test_the_committed_paper_has_six_to_eight_pages(committed_results):
    pages = typst.compile(committed_results / paper.SOURCE, root=committed_results, format="png", ppi=10)
    assert 6 <= len(pages) <= 8


def test_the_table_of_costs_is_that_of_the_records(committed):
    lines = (committed / "results/tables/bench.md").read_text().splitlines()
    records = {path.stem: json.loads(path.read_text()) for path in (committed / "results/bench").glob("*.json")}
    del records["gpu"]  # measured in pieces; the table has its times without a bound
    wanted = [f for record in records.values() for f in record.get("figures", ())]
    assert len(wanted) > 30
    for f in wanted:
        start = f"| {f['what']} | {figures.FRAMEWORKS[f['framework']]} | {f['value']:g} | "
        (line,) = (line for line in lines if line.startswith(start))
        assert line.endswith("| yes |" if f["reached"] else "| **no** |")
