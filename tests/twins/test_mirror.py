"""The twins have the same files, with the same classes, methods and parameters in the same order."""

import difflib
import re
import subprocess
import sys

import pytest
from helpers import outline as outlines
from helpers.outline import ROOT, docstrings, files, outline

import jax_impl
import torch_impl

TWINS = ("torch_impl", "jax_impl")
#: Files in which the frameworks may differ, each with helpers that the other twin does not need.
FRAMEWORK = {"devices.py", "distributed.py", "export.py", "ops.py", "scan.py", "train.py"}
EXPECTED = {
    "devices.py": {"on_numpy", "stream_on_numpy", "find_device", "describe_machine"},
    "distributed.py": {"Workers"},
    "export.py": {"Masks", "Step", "features", "masks", "takes_any_length", "export"},
    "ops.py": {
        *("constant", "rematerialised", "full_precision", "softplus", "rms_norm", "silu_gate", "depthwise"),
        *("depthwise_silu", "fused_mamba", "batched_linear", "band_outputs", "split_complex", "polar", "pad_axis"),
        *("attention", "masked_attention", "lstm", "lstm_step", "zeros", "take", "flag", "choose"),
    },
    "scan.py": {"selective_scan", "selective_scan_sequential", "selective_scan_step", "selective_scan_chunked"},
    "train.py": {"Trainer", "load_weights"},
}


def test_same_files():
    assert files("torch_impl") == files("jax_impl")


@pytest.mark.parametrize("name", sorted(files("torch_impl")))
def test_same_outline(name):
    torch, jax = (outline(twin, name) for twin in TWINS)
    if name not in FRAMEWORK:
        assert torch == jax
        return
    # Helpers and the arguments of methods may differ; shared classes and functions and their order may not.
    shared = {n for n, _ in torch if not n.startswith("_")} & {n for n, _ in jax}
    assert [n for n, _ in torch if n in shared] == [n for n, _ in jax if n in shared]
    assert EXPECTED[name] <= shared
    for (n, ours), (_, theirs) in zip(*([x for x in y if x[0] in shared] for y in (torch, jax)), strict=True):
        if ours and isinstance(ours[0], tuple):
            assert {method for method, _ in ours} <= {method for method, _ in theirs}, n
        else:
            assert [a for a in ours if a != "device"] == [a for a in theirs if a not in ("device", "method")], n


@pytest.mark.parametrize("name", sorted(files("torch_impl") - FRAMEWORK - {"__init__.py"}))
def test_same_docstrings(name):
    assert docstrings("torch_impl", name) == docstrings("jax_impl", name)


@pytest.mark.parametrize("name", ["torch_impl", "jax_impl"])
def test_the_outline_shows_a_missing_method(name, tmp_path, monkeypatch):
    source = (ROOT / name / "blocks.py").read_text()
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    (tmp_path / "whole" / "blocks.py").write_text(source)
    (tmp_path / "cut" / "blocks.py").write_text(re.sub(r"def (forward|__call__)\(", "def other(", source, count=1))
    monkeypatch.setattr(outlines, "ROOT", tmp_path)
    assert outline("whole", "blocks.py") != outline("cut", "blocks.py")


def test_share_of_identical_lines(capsys):
    """Print the share; below half, the twins have drifted apart."""
    same = total = 0
    with capsys.disabled():
        for name in sorted(files("torch_impl") - FRAMEWORK):
            a, b = ((ROOT / twin / name).read_text().replace(twin, "impl").splitlines() for twin in TWINS)
            matching = sum(block.size for block in difflib.SequenceMatcher(None, a, b).get_matching_blocks())
            same, total = same + 2 * matching, total + len(a) + len(b)
        print(f" [{same / total:.0%} of the lines of the twins are identical]", end="")
    assert same / total > 0.5


@pytest.mark.parametrize("twin", TWINS)
def test_ops_import_no_layers(twin):
    assert "layers import" not in (ROOT / twin / "ops.py").read_text()


@pytest.mark.parametrize("preset", ["tiny", "reference"])
def test_same_parameters(preset):
    import torch

    from twinsep.config import PRESETS

    with torch.device("meta"):
        ours = torch_impl.layers.named_parameters(torch_impl.networks.build(PRESETS[preset]))
    theirs = jax_impl.layers.named_parameters(jax_impl.networks.build(PRESETS[preset]))
    assert {n: (tuple(w.shape), w.decay) for n, w in ours.items()} == {
        n: (tuple(w.shape), w.decay) for n, w in theirs.items()
    }


@pytest.mark.parametrize(("twin", "other"), [("torch_impl", ("jax", "jaxlib", "flax")), ("jax_impl", ("torch",))])
def test_each_twin_works_without_the_other_framework(twin, other):
    code = (
        "import sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {other!r}:\n"
        "            raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Hidden())\n"
        "import numpy as np\n"
        "from twinsep import load\n"
        f"separate = load('tiny', framework={twin.removesuffix('_impl')!r})\n"
        "stems = separate(np.zeros((2, 4000), np.float32), 44100)\n"
        "assert {stem: estimate.shape for stem, estimate in stems.items()} == {\n"
        "    'vocals': (2, 4000), 'instrumental': (2, 4000)\n"
        "}, stems\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("framework", "missing"), [("torch", "torch"), ("jax", "flax")])
def test_the_error_for_a_missing_framework_says_how_to_install_it(framework, missing):
    code = f"import sys; sys.modules[{missing!r}] = None\nfrom twinsep.utils.backend import twin\ntwin({framework!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert f"pip install 'twinsep[{framework}]'" in done.stderr
