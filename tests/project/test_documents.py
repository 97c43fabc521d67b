"""The documents agree with the code, and with the results that are committed beside them."""

import io
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import typer
import yaml
from helpers.docstrings import undocumented

from ablations import settings
from ablations.comparison import SONG_SNR_DB, TOLERANCE
from ablations.stages import architecture
from twinsep import GLOSSARY
from twinsep.cli import _parse_setting as parse_setting
from twinsep.cli import app
from twinsep.config import PRESETS, FlatConfig, PackageConfig, SpectrogramUNetConfig, preset

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for pattern in ("README.md", "*/README.md", "twinsep/*/README.md")
    for path in sorted(ROOT.glob(pattern))
}
README, MODEL = PAGES["README.md"], PAGES["torch_impl/README.md"]
TRAINING, SEPARATION, COSTS = (PAGES[f"twinsep/{name}/README.md"] for name in ("training", "separation", "benchmarks"))
PACKAGES = ("twinsep", "torch_impl", "jax_impl", "ablations")
#: Pages whose Python code is complete; that of the guide to mixers is run by a test of its own.
RUN = ("README.md", "torch_impl/README.md", "twinsep/separation/README.md")
#: The presets of networks defined here.
OURS = [name for name, config in PRESETS.items() if not isinstance(config.model, PackageConfig)]


def git(*arguments):
    """The output of git in the repository; skips the test where there is none, as in an archive."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git repository")
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def committed(path):
    """The text of a file as committed: a pipeline may have changed the one in the tree."""
    return git("show", f"HEAD:{path}")


def record(path):
    return json.loads(committed(path))


def table(axis, index="row"):
    return pd.read_csv(io.StringIO(committed(f"results/tables/{axis}.csv")), index_col=index)


def joined(page):
    return " ".join(page.split())


# ---------------------------------------------------------------------------- form


def test_readme_is_short():
    assert len(README.splitlines()) <= 200


def links():
    for page, text in PAGES.items():
        prose = re.sub(r"```.*?```|`[^`]*`(?!\])", "", text, flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            if not re.match(r"[a-z]+:", target):
                yield page, target


def slugs(text):
    """The anchors that headings have on GitHub."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "target"), [*links()])
def test_every_link_resolves(page, target):
    name, _, anchor = target.partition("#")
    path = (ROOT / page).parent / name if name else ROOT / page
    assert path.exists()
    if anchor:
        assert anchor in slugs(path.read_text())


def command_lines():
    for page, text in PAGES.items():
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] == "twinsep":
                    yield page, words[1:]


def parse(words):
    """Parse a command line as ``twinsep`` would, without running it; raises what Typer raises for a wrong one."""
    name, *arguments = words
    commands = typer.main.get_command(app).commands
    if name not in commands:
        raise LookupError(f"No such command {name!r}")
    return commands[name].make_context(name, arguments)


@pytest.mark.parametrize(("page", "words"), [*command_lines()])
def test_every_command_line_is_accepted(page, words):  # noqa: ARG001  the page names the test
    parse(words)


@pytest.mark.parametrize(
    ("line", "fault"),
    {
        "separat song.mp3": "No such command",
        "separate song.mp3 --flak": "No such option",
        "train --preset tiny": "Missing parameter",
        "bench --out": "requires an argument",
    }.items(),
)
def test_a_wrong_command_line_is_noticed(line, fault):
    with pytest.raises(Exception, match=fault):
        parse(line.split())


@pytest.mark.parametrize(
    "code", [code for page in RUN for code in re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)]
)
def test_python_code_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(code, {})


def test_the_two_commands_stand_in_the_readme_in_order():
    first, second = "pip install -r requirements.lock -e . && dvc repro base", "\npytest "
    assert 0 <= README.index(first) < README.index(second)


# ---------------------------------------------------------------------------- code


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_definition_has_a_docstring(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    assert not [
        f"{file.relative_to(ROOT)}:{line} {name}" for file in files for line, name in undocumented(file.read_text())
    ]


@pytest.mark.parametrize(
    ("source", "names"),
    {
        "def f(): ...": ["f"],
        "class C: ...": ["C"],
        "class _C:\n def f(self): ...\n def _f(self): ...\n def __call__(self): ...": ["_C.f", "_C.__call__"],
        "class _C:\n class D:\n  'D.'\n  def f(self): ...": ["_C.D.f"],
        "def f():\n 'f.'\n def g(): ...\n def h(): ...\n return g": ["f.g"],
        "def f():\n 'f.'\n def g(): ...\n def h(): ...\n return 1, h": ["f.h"],
        "def _f():\n def g(): ...\n return g": [],
        "def f(k):\n 'f.'\n @wraps(k)\n def g(): ...\n return g": [],
        "@intrinsic\ndef f():\n 'f.'\n def g(): ...\n return 1, g": [],
    }.items(),
)
def test_a_missing_docstring_is_noticed(source, names):
    assert [name for _, name in undocumented(source)] == names


@pytest.mark.parametrize("symbol", GLOSSARY)
def test_the_definition_has_the_glossary(symbol):
    axis, meaning = GLOSSARY[symbol]
    assert f"| {symbol} | {f'`{axis}`' if axis else ''} | {meaning} |".replace("|  |", "| |") in MODEL


@pytest.mark.parametrize("name", OURS)
def test_the_definition_has_the_sizes_of_every_preset(name):
    m = PRESETS[name].model
    if isinstance(m, SpectrogramUNetConfig):
        assert re.search(rf"\| `{name}` \| [\d,]+ \| {re.escape(str(m.widths))} \| {m.hop} \|", MODEL)
        return
    if isinstance(m, FlatConfig):
        ff = "yes" if m.feed_forward else "no"
        row = (m.d_model, m.n_heads, m.n_layers, f"`{m.mixer.kind}`", ff, m.hop, f"`{m.bands}`")
        assert re.search(rf"\| `{name}` \| [\d,]+ \| {re.escape(' | '.join(map(str, row)))} \|", MODEL)
        return
    layers = f"{m.n_enc} / {m.n_bottleneck} / {m.n_dec}"
    row = (f"`{name}`", m.d_model, m.n_heads, layers, m.mixer.d_state, m.hop, f"`{m.bands}`", f"`{m.memory_alignment}`")
    assert f"| {' | '.join(map(str, row))} |" in MODEL


def test_the_table_of_faults_says_which_are_fixed_by_default():
    rows = re.findall(r"\| (fixed|present) \| `--set '?([^`']+?)'?` (brings it back|fixes it) \|$", MODEL, re.MULTILINE)
    assert [state for state, *_ in rows] == ["fixed"] * 4 + ["present"]
    base, reference = preset("paper"), preset("reference")
    for state, setting, effect in rows:
        section, field = setting.partition("=")[0].split(".")
        changed = getattr(getattr(base.override(parse_setting(setting)), section), field)
        default = getattr(getattr(base, section), field)
        assert changed != default
        if field == "weights":
            assert "si_sdr" in default
            assert (changed == reference.loss.weights) == (state == "fixed")
            assert ("si_sdr" in changed) == (state == "fixed")
        assert effect == ("brings it back" if state == "fixed" else "fixes it")


def test_readme_has_the_tolerances_of_the_twins():
    names = {
        "block": "each module",
        "network": "the network",
        "gradients": "gradients of all",
        "steps": "weights after ten",
    }
    section = README[README.index("## PyTorch and JAX") : README.index("## Limits")]
    for key, bars in TOLERANCE.items():
        (line,) = (line for line in section.splitlines() if line.startswith(f"| {names[key]}"))
        assert [float(cell) for cell in line.split("|")[2:4]] == [bars["float64"], bars["float32"]]
    assert f"| {SONG_SNR_DB:.0f} dB below the song |" in README


@pytest.mark.parametrize("name", sorted(set(PRESETS) - set(OURS)))
def test_the_definition_names_every_system_of_a_package(name):
    assert f"`{name}`" in MODEL


@pytest.mark.parametrize("name", OURS)
def test_documents_have_every_preset_with_its_parameters(name):
    import torch

    from torch_impl.networks import build

    with torch.device("meta"):
        count = build(PRESETS[name]).parameter_count
    assert re.search(rf"\| `{name}` \| {count:,} \|", README + MODEL)


def test_readme_has_the_steps_of_every_profile():
    for name, profile in settings.params()["profiles"].items():
        steps = [profile[part]["steps"] for part in ("training", "rows")]
        cells = " | ".join(f"{n:,}" for n in steps)
        assert re.search(rf"\| `{name}`( \(default\))? \| `{profile['preset']}` \| {cells} \|", README)


def test_every_run_has_a_configuration_of_its_own_in_every_profile(monkeypatch):
    params = settings.params()
    for profile in params["profiles"]:
        monkeypatch.setitem(params, "profile", profile)
        groups = settings.trained_groups().items()
        runs = [
            (group.framework, settings.configuration(name, seed).hash) for name, group in groups for seed in group.seeds
        ]
        assert len(set(runs)) == len(runs) > 1


def test_citation_and_package_agree():
    from importlib.metadata import version

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version("twinsep")
    assert f"title   = {{{citation['title']}}}" in README
    assert f"version = {{{citation['version']}}}" in README


# ---------------------------------------------------------------------------- figure


def drawn(name, tmp_path, monkeypatch):
    """The figure as SVG, and the texts in it."""
    import matplotlib.pyplot as plt

    monkeypatch.setattr(architecture, "OUT", tmp_path / "architecture.svg")
    monkeypatch.setattr(architecture, "preset", lambda _: preset(name))
    monkeypatch.chdir(ROOT)
    architecture.main()
    with plt.style.context(architecture.STYLE):
        figure = architecture.draw(preset(name).model)
    texts = [text.get_text() for text in figure.axes[0].texts]
    plt.close("all")
    return architecture.OUT.read_bytes(), texts


def test_the_architecture_figure_has_the_numbers_of_the_configuration(tmp_path, monkeypatch):
    first, texts = drawn("paper", tmp_path, monkeypatch)
    again, _ = drawn("paper", tmp_path, monkeypatch)
    assert first == again
    assert {"(72, T/8, 256)", "3 × (DualPath, GlobalAttention)", "4 × DecoderBlock", "2048, hop 256"} <= set(texts)
    other, texts = drawn("tiny", tmp_path, monkeypatch)
    assert other != first
    assert {"(72, T/8, 16)", "1 × DecoderBlock", "2048, hop 1024"} <= set(texts)


def test_texts_of_the_architecture_figure_neither_overlap_nor_leave_the_canvas():
    import matplotlib.pyplot as plt

    with plt.style.context(ROOT / architecture.STYLE):
        figure = architecture.draw(preset("paper").model)
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
        canvas = figure.bbox
        plt.close("all")
    assert all(canvas.x0 <= b.x0 and b.x1 <= canvas.x1 and canvas.y0 <= b.y0 and b.y1 <= canvas.y1 for b in boxes)
    pairs = ((a, b) for i, a in enumerate(boxes) for b in boxes[:i])
    # Lines of one box touch; a quarter of a line is not an overlap that anybody sees.
    assert not [(a, b) for a, b in pairs if a.overlaps(b) and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.25 * a.height]


# ---------------------------------------------------------------------------- results


def test_the_memory_of_long_songs_is_reported():
    songs = record("results/bench/length.json")["songs"]
    peaks = {song["seconds"]: song["peak_mib"] for song in songs if song["framework"] == "torch"}
    assert f"an hour takes {peaks[3600]:.0f} MiB, two minutes {peaks[120]:.0f}" in joined(SEPARATION)


def test_the_cost_of_the_presets_for_gpus_is_reported():
    presets = record("results/cost.json")["presets"]
    for name, counted in presets.items():
        assert f"| `{name}` | {counted['parameters']:,} |" in README
    flop, kept = (
        [presets[name][key] for name in ("small", "paper")]
        for key in ("flop_per_audio_second", "kept_mib_per_audio_second")
    )
    text = joined(COSTS)
    assert f"{flop[0] / 1e9:.0f} GFLOP a second of audio in `small` and {flop[1] / 1e9:.0f} in `paper`" in text
    assert f"{kept[0] / 1024:.1f} and {kept[1] / 1024:.1f} GiB a second of audio in float32" in text


def test_the_time_of_a_second_of_audio_is_reported():
    found = record("results/bench/separate.json")
    assert "AMD EPYC" in found["device"]
    rows = dict(re.findall(r"^\| (\S.*?) \| (\d+\.\d\d M \| .*?) \|$", COSTS, re.MULTILINE))
    for s in found["systems"]:
        name = f"`{s['system']}`" if s["system"] in found["counted"] else s["system"]
        weights, torch, jax = (cell.strip() for cell in rows[name].split("|"))
        assert weights == f"{s['parameters'] / 1e6:.2f} M"
        cell = jax if s["framework"] == "jax" else torch
        number = f"{s['seconds_per_audio_second']:.3g}"
        if name in found["counted"] or not s["keeps_freed_memory"] or s["framework"] == "jax":
            assert cell.split()[0] == number
        else:
            assert cell.startswith(f"{number} s") or cell.endswith(f"({number})")
    others = {
        s["keeps_freed_memory"]: s["seconds_per_audio_second"]
        for s in found["systems"]
        if s["system"].startswith("bs-roformer")
    }
    assert others[True] < others[False] / 2


def test_the_figures_of_the_gpu_are_those_of_the_record():
    found = record("results/bench/gpu.json")
    assert "H100" in found["device"]
    trainings = {(t["options"].get("batch_size"), t["preset"]): t for t in found["trainings"]}
    assert len(trainings) == len(found["trainings"]) == 3
    for (batch, name), training in trainings.items():
        time, memory = f"{training['median_s']:.2f} s", f"{training['peak_mib'] / 1024:.1f} GiB"
        rows = [line for line in COSTS.splitlines() if f"of `{name}`, batch {batch} " in line]
        assert [row.endswith(f"| {time} | {memory} |") for row in rows] == [True]
        if name == "paper":
            assert f"{memory} (measured)" in MODEL
    large = {(s["way"], s["backward"]): s["median_s"] for s in found["scans"] if s["shape"] == [68, 517, 512, 32]}
    for way, row in (
        ("default", "JAX, scan (68, 517, 512, 32), Pallas kernel"),
        ("associative", "the same, associative"),
    ):
        forward, backward = (f"{1e3 * large[way, either]:.3g} ms" for either in (False, True))
        (cells,) = (line for line in COSTS.splitlines() if line.startswith(f"| {row}"))
        assert cells.endswith(f"| {forward}; {backward} | |")


def test_the_gain_of_two_processes_and_the_cost_of_a_cluster_are_those_of_the_record():
    found = record("results/bench/processes.json")
    shared, own, cluster = (figure["value"] for figure in found["figures"])
    apart = 2 * found["steps"]["one_s"] / found["steps"]["alone_s"]
    for sentence in (
        f"Two processes of one thread on two cores took {shared:.2f} times the steps of one when they shared",
        f"{own:.2f} times the batches of two when each had its own; two that exchanged nothing took {apart:.2f}",
    ):
        assert sentence in joined(MODEL)
    text, songs = joined(PAGES["ablations/README.md"]), found["songs"]
    assert f"20 songs of a minute took {cluster:.2f} times as long as in one process" in text
    factor = songs["batch_s"]["local"] / (songs["count"] * songs["seconds"])
    assert f"10⁶ · 240 s · {factor:.3f} (released weights" in text
    hours = 1e6 * 240 * round(factor, 3) / 3600
    assert f"= {round(hours, -2):,.0f} hours of such a machine" in text
    pace = 8e3 / (hours / 100 * 3600)  # GB/s
    assert f"{hours / 100:.0f} hours of 100 machines at {factor:.3f} read {pace:.3f} GB/s" in text
    assert f"50 TB, at {50 / 8 * pace:.2g} GB/s" in text


def test_the_scores_of_four_stems_are_those_of_the_table():
    table = pd.read_csv(io.StringIO(committed("results/tables/systems_stems.csv")))
    scores = table[table.system == "tiny"].set_index("SI-SDR")["uSDR instrumental"]
    better, worse = (f"{scores[way]:.2f}".replace("-", "−") for way in ("not clipped", "clipped"))
    assert f"(instrumental of `tiny`: {better} dB, {worse} dB with the clipped one;" in joined(
        PAGES["ablations/README.md"]
    )


def test_the_times_of_a_live_signal_are_those_of_the_record():
    found = record("results/bench/stream.json")
    torch, jax = found["streams"]
    assert (torch["framework"], jax["framework"]) == ("torch", "jax")
    (a, b) = (next(x for x in stream["blocks"] if x["samples"] == 1024) for stream in (torch, jax))
    for name, key in (("median", "median"), ("99.9th percentile", "p999"), (f"worst of {a['count']:,}", "worst")):
        assert f"| {name} | {a[key]:.2f} | {b[key]:.2f} |" in COSTS
    grown = [stream["memory_mib"]["3600"] / stream["memory_mib"]["60"] for stream in (torch, jax)]
    apart = max(stream["drift"]["3600"] for stream in (torch, jax))
    assert f"{grown[0]:.3f} (PyTorch) and {grown[1]:.3f} (JAX) times the memory of the first minute" in joined(COSTS)
    assert f"the hour is within {apart:.1e} of the same stream in float64" in joined(COSTS)
    assert f"whose latency is {found['latency_ms']:.0f} ms" in joined(COSTS)


def test_the_effect_of_another_processor_is_that_of_the_record():
    found = record("results/noise.json")["processor"]["all rows"]
    others = found["other verdicts"]
    wanted = f"{found['rms']:.2f} dB apart (root mean square), and {len(others)} of {found['verdicts']} verdicts"
    assert f"gave means {wanted} were others" in joined(README)


def test_the_scores_of_the_released_weights_are_those_of_their_proof():
    table = pd.read_csv(io.StringIO(committed("results/released/proof.csv")))
    means = table[table.score == "uSDR, mean"].set_index("songs")
    text = joined(README)
    for songs, sentence in (
        ("the real excerpt", "real excerpt below from {} dB to {} (Spleeter, with 20 million weights: {})"),
        (
            "real singers over real instrumentals",
            "singers with held-out metal by one author from {} dB to {} (Spleeter: {})",
        ),
    ):
        scores = means.loc[songs, ["mixture", "twinsep", "spleeter"]]
        assert sentence.format(*(f"{score:.2f}" for score in scores)) in text
    mixes = means.loc["real singers over real instrumentals"]
    packages = yaml.safe_load(committed("ablations/release/recordings.yaml"))
    singers = [p for p in packages.values() if isinstance(p, dict) and p.get("sings")]
    assert f"its mean over {mixes['n']:.0f} mixes of two held-out singers" in text
    assert sum(len(p["files"]) for p in singers if p["test"] == ["*"]) == 2
    run = record("results/released/run.json")
    minutes = sum(phase["seconds"] for phase in run["phases"]) / 60
    assert f"trained for {minutes:.0f} minutes on a GPU" in text
    assert f"{run['phases'][-1]['parameters'] / 1e6:.1f} million" in text


def test_the_scores_of_systems_in_the_readme_are_those_of_the_table():
    section = README.partition("## Results")[2].partition("\n## ")[0]
    lines = table("systems", index=["system", "budget"])
    rows = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.count("|") == 9
    ]
    (_, *systems), _, *scores = rows
    assert [budget for budget, *_ in scores] == ["equal steps", "equal time"]
    assert set(systems) == {system for system, budget in lines.index if isinstance(budget, str)}
    for budget, *found in scores:
        for system, score in zip(systems, found, strict=True):
            own = next(b for b in (budget, "equal steps", "its own weights") if (system, b) in lines.index)
            assert score == f"{lines.loc[(system, own), 'uSDR']:.2f}", (system, budget)
    assert f"mean uSDR after {lines.loc[('tiny', 'equal steps'), 'steps']:,.0f} steps" in joined(section)


def test_the_scores_in_the_readme_are_those_of_the_tables():
    section = README.partition("## Results")[2].partition("\n## ")[0]
    bounds = table("base")["uSDR mean"]
    for sentence, rows in (
        ("the mixture {} dB, a fixed gain per band {}", ("mixture", "fixed gain per band")),
        ("linear regressions on log levels {} and {}", ("level regression", "weighted regression")),
        ("ceiling: the ideal ratio mask {}.", ("ideal ratio mask",)),
    ):
        assert sentence.format(*(f"{bounds[row]:.2f}" for row in rows)) in joined(section)
    real = table("base")["real uSDR"]
    sentence = f"`base` scores {real['base']:.2f} dB, less than the mixture ({real['mixture']:.2f})"
    assert sentence in joined(README)
    assert real["base"] < real["mixture"]
    lines = re.findall(r"^\| ([^|]+) \| ([\d.]+) \| ([^|]*) \|$", section, re.MULTILINE)
    assert len(lines) >= 10
    scores = {}
    for axis in ("base", *settings.row_table()["axes"]):
        for row, line in table(axis).iterrows():
            scores[f"{row}, JAX" if line["framework"] == "jax" else row] = line
    for name, score, against in lines:
        line = scores[name.replace("`", "")]
        assert score == f"{line['uSDR mean']:.2f}", name
        judged = line.get("verdict")
        if isinstance(judged, str) and judged not in ("", "–"):
            assert against.strip() == f"{line['difference']:+.2f}, {judged}".replace("-", "−"), name
        else:
            assert not against.strip(), name
