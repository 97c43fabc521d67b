"""What the documents claim."""

import re
from pathlib import Path

import pytest
import yaml

from ablations import settings
from ablations.comparison import SONG_SNR_DB, TOLERANCE
from twinsep import GLOSSARY
from twinsep.config import PRESETS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("symbol", GLOSSARY)
def test_readme_has_the_glossary(symbol):
    axis, meaning = GLOSSARY[symbol]
    assert f"| {symbol} | {f'`{axis}`' if axis else ''} | {meaning} |".replace("|  |", "| |") in README


def test_readme_has_the_tolerances_of_the_twins():
    names = {
        "block": "each module",
        "network": "the network",
        "gradients": "gradients of all",
        "steps": "weights after ten",
    }
    for key, bars in TOLERANCE.items():
        (line,) = (line for line in README.splitlines() if line.startswith(f"| {names[key]}"))
        assert [float(cell) for cell in line.split("|")[2:4]] == [bars["float64"], bars["float32"]]
    assert f"| {SONG_SNR_DB:.0f} dB below it |" in README


@pytest.mark.parametrize("name", PRESETS)
def test_readme_has_every_preset_with_its_parameters(name):
    import torch

    from torch_impl.unet import BandSplitUNet

    with torch.device("meta"):
        count = BandSplitUNet(PRESETS[name]).parameter_count
    assert re.search(rf"\| `{name}` \| {count:,} \|", README)


def test_every_run_has_a_valid_configuration_in_every_profile(monkeypatch):
    params = settings.params()
    for profile in params["profiles"]:
        monkeypatch.setitem(params, "profile", profile)
        hashes = {(run.framework, settings.configuration(name).hash) for name, run in settings.runs().items()}
        assert len(hashes) == len(settings.runs())


def test_root_holds_nothing_that_is_not_in_the_layout():
    import subprocess

    if not (ROOT / ".git").exists():
        pytest.skip("needs a git clone")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    allowed = {
        "README.md", "pyproject.toml", "dvc.yaml", "dvc.lock", "LICENSE", "CITATION.cff", "CHANGELOG.md",
        "requirements.lock", "paper", "torch_impl", "jax_impl", "ablations", "results", "notebooks", "tests", "twinsep",
    }  # fmt: skip
    assert {f.split("/")[0] for f in files if not f.startswith(".")} <= allowed


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_code_of_the_readme_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(code, {})


def test_citation_and_package_agree():
    from importlib.metadata import version

    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version("twinsep")
