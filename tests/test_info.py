"""``twinsep info``: versions, devices, presets and checkpoints, as tables and as JSON."""

import json
import re
import warnings
from importlib.metadata import version

import numpy as np
import pytest

from twinsep import checkpoints, info
from twinsep.checkpoints import Checkpoint, hub
from twinsep.config import PRESETS
from twinsep.errors import InputError
from twinsep.utils.backend import twin


@pytest.fixture(autouse=True)
def _unreleased(tmp_path, monkeypatch):
    """An installation without released weights."""
    monkeypatch.setattr("twinsep.checkpoints.released.PATH", tmp_path / "unreleased.safetensors")


@pytest.fixture
def models(micro, tmp_path, monkeypatch):
    """A folder with three runs, one with a damaged checkpoint and one with unreadable scores, and a released model."""
    made = Checkpoint(micro, {"model/w": np.ones(3, np.float32)}, 1234)
    for name in ("a", "broken", "c"):
        checkpoints.write(tmp_path / "results" / "weights" / f"[{name}]" / "0.safetensors", made)
    scores = {"usdr": {"median": 1.0, "mean": 7.256, "n": 3}, "csdr": {"median": None, "mean": None, "n": 0}}
    for name, content in {"a": json.dumps({"test": {"instrumental": scores}}), "c": "{"}.items():
        path = tmp_path / "results" / "runs" / f"[{name}]" / "scores" / "0" / "summary.json"
        path.parent.mkdir(parents=True)
        path.write_text(content)
    (tmp_path / "results/weights/[broken]/0.safetensors").write_bytes(b"no")
    hub.write(tmp_path / "results/released/small", made)
    (tmp_path / "results/released/summary.md").touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("models")
def test_json_holds_versions_frameworks_presets_and_checkpoints(capsys):
    info.print_info(True)
    found = json.loads(capsys.readouterr().out)
    assert found["versions"].keys() >= {"twinsep", "commit", "platform", "numpy", "torch", "jax", "numba"}
    for name in ("torch", "jax"):
        assert found["frameworks"][name] == twin(name, "devices").describe_machine() | {"notes": []}
    assert found["presets"].keys() == PRESETS.keys()
    counts = {
        "reference": 64_844_032,
        "reference-large": 82_246_912,
        "paper": 66_162_948,
        "small": 5_209_892,
        "tiny": 301_044,
        "bsmamba2": 48_138_376,
    }
    assert {name: found["presets"][name]["parameters"] for name in counts} == counts
    assert found["presets"]["htdemucs"]["mixer"] == "package"
    latencies = {name: found["presets"][name]["latency_ms"] for name in ("tiny", "tiny-causal", "htdemucs")}
    assert latencies == {"tiny": None, "tiny-causal": 46.4, "htdemucs": None}
    assert (found["presets"]["tiny"]["bands"], found["presets"]["tiny"]["mixer"]) == ("vocal72", "mamba")
    a, broken, c, released = found["checkpoints"]
    assert a["path"] == "results/weights/[a]/0.safetensors"
    assert (a["bands"], a["d_model"], a["step"]) == ("vocal18", 8, 1234)
    assert a["scores"]["test"]["instrumental"]["usdr"]["mean"] == 7.256
    assert "not a whole safetensors file" in broken["error"]
    assert "summary.json: cannot be read" in c["error"]
    assert (released["path"], released["step"], released["scores"]) == ("results/released/small", 1234, None)


@pytest.mark.usefixtures("models")
def test_the_tables_show_scores_and_the_package_version(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    info.print_info()
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if "[a]/0.safetensors" in line)
    assert [cell.strip() for cell in row.split("│")[2:-1]] == ["vocal18", "mamba", "8", "1,234", "7.26", "–"]
    assert "301,044" in out
    row = next(line for line in out.splitlines() if "tiny-causal" in line)
    assert row.split("│")[-2].strip() == "46.4"
    assert re.search(rf"twinsep +│ {re.escape(version('twinsep'))} ", out)
    assert "Numba kernel" in out
    assert any(line.startswith("results/weights/[broken]/0.safetensors: not a whole") for line in out.splitlines())


@pytest.mark.usefixtures("models")
def test_a_narrow_screen_shows_the_names_and_sizes_of_all_presets_whole(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    info.print_info()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    shown = {row[0]: row[1:] for row in rows if row}
    assert shown.keys() >= PRESETS.keys()
    assert shown["bs-roformer-tiny"] == ["743,848", "bsroformer62", "transformer", "16", "–"]
    assert shown["music-unet-tiny"] == ["121,412", "–", "–", "–", "–"]
    assert len(shown["moises-light/fullband_large_wide"]) == 1


def test_the_weights_of_the_installation_are_listed_where_no_others_are_released(micro, tmp_path, monkeypatch):
    made = Checkpoint(micro, {"model/w": np.ones(3, np.float32)}, 1234)
    checkpoints.write(tmp_path / "unreleased.safetensors", made)
    monkeypatch.chdir(tmp_path)
    assert [(r["path"], r["step"]) for r in map(info._checkpoint, info._paths())] == [
        (str(tmp_path / "unreleased.safetensors"), 1234)
    ]
    hub.write(tmp_path / "results/released/small", made)
    assert [str(path) for path in info._paths()] == ["results/released/small"]


def test_each_missing_or_broken_framework_is_reported_on_one_line(capsys, monkeypatch, tmp_path):
    def failing(name, *_):
        if name == "torch":
            raise InputError("framework torch needs the package torch; install it with: pip install 'twinsep[torch]'")
        raise OSError("libcuda.so:\ncannot be\nopened")

    monkeypatch.setattr(info, "twin", failing)
    monkeypatch.chdir(tmp_path)
    info.print_info()
    lines = capsys.readouterr().out.splitlines()
    assert "torch: framework torch needs the package torch; install it with: pip install 'twinsep[torch]'" in lines
    assert "jax: cannot be used: OSError: libcuda.so: cannot be opened" in lines
    assert any(line.startswith("no checkpoints under results/weights or results/released") for line in lines)
    info.print_info(True)
    found = json.loads(capsys.readouterr().out)
    assert found["presets"]["tiny"]["parameters"] is None
    assert found["checkpoints"] == []


def test_jax_with_an_accelerator_names_its_scan_for_the_cpu_too(monkeypatch):
    import jax

    devices = twin("jax", "devices")
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert devices.describe_machine()["scan"] == {"cpu": "Numba kernel"}
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    scan = "Pallas kernel or JAX's associative scan"
    assert devices.describe_machine()["scan"] == dict.fromkeys(("cpu", "gpu"), scan)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert devices.describe_machine()["scan"] == dict.fromkeys(("cpu", "tpu"), "JAX's associative scan")


def test_runtime_warnings_of_a_framework_become_notes(monkeypatch):
    class Twin:
        @staticmethod
        def describe_machine():
            warnings.warn("kernels need Numba", RuntimeWarning, stacklevel=1)
            warnings.warn("old", DeprecationWarning, stacklevel=1)
            return {"devices": {"cpu": "abacus"}, "threads": 1, "scan": {"cpu": "beads"}}

    monkeypatch.setattr(info, "twin", lambda *_: Twin)
    assert info._framework("torch")["notes"] == ["kernels need Numba"]
