"""The mixer that ``ablations/README.md`` adds, with the code taken from that page."""

import __future__

import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from helpers import outline as outlines

import jax_impl
import torch_impl
from ablations import comparison, settings
from ablations.comparison import TOLERANCE, distance
from twinsep.config import mixers, preset
from twinsep.errors import InputError

TWINS = ("torch_impl", "jax_impl")
GUIDE = (Path(comparison.__file__).parent / "README.md").read_text()
CHOICES, IN_TORCH, IN_JAX, LINE = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
(ROW,) = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)


@pytest.fixture
def add(monkeypatch):
    """A function that follows the guide until the test ends, with the guide's JAX file or another."""

    def register(package, mean):
        for kind, found in eval(f"{{{LINE}}}", {"Mean": mean}).items():
            monkeypatch.setitem(package.MIXERS, kind, found)

    def follow(in_jax=IN_JAX):
        monkeypatch.setattr(mixers, "Mean", None, raising=False)
        exec(compile(CHOICES, "guide", "exec", __future__.annotations.compiler_flag), vars(mixers))
        register(mixers, mixers.Mean)
        for package, source in ((torch_impl.mixers, IN_TORCH), (jax_impl.mixers, in_jax)):
            name = f"{package.__name__}.mean"
            assert f"`from {name} import Mean`" in GUIDE
            module = ModuleType(name)
            exec(source, vars(module))
            register(package, module.Mean)

    return follow


def check_parity():
    (name, *_) = [name for name in comparison.cases() if name.startswith("mean; ")]
    config = comparison.configuration(comparison.cases()[name])
    found, wanted = (
        of_modules(config, "float64", ["Mixer"])["Mixer"]
        for of_modules in (comparison.modules_in_jax, comparison.modules_in_torch)
    )
    assert len(wanted) == 3  # output, gradients of gain and input
    assert distance(found, wanted, "y") <= TOLERANCE["block"]["float64"]
    assert distance(found, wanted, "d ") <= TOLERANCE["gradients"]["float64"]


@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
@pytest.mark.usefixtures("dtype")
def test_the_guides_mixer_joins_the_cases_and_agrees_in_both_twins(add):
    add()
    check_parity()


@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
@pytest.mark.parametrize(
    ("right", "wrong"),
    [("self.gain[...] * ", ""), ("arange(1, x.shape[1] + 1)", "arange(2, x.shape[1] + 2)"), ("cumsum(x, 1)", "x")],
)
@pytest.mark.usefixtures("dtype")
def test_a_wrong_twin_is_caught(add, right, wrong):
    assert right in IN_JAX
    add(IN_JAX.replace(right, wrong))
    with pytest.raises(AssertionError):
        check_parity()


def test_the_guides_files_mirror_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(outlines, "ROOT", tmp_path)
    for twin, source in zip(TWINS, (IN_TORCH, IN_JAX), strict=True):
        (tmp_path / twin).mkdir()
        (tmp_path / twin / "mean.py").write_text(source)
    torch, jax = (outlines.outline(twin, "mean.py") for twin in TWINS)
    assert torch == jax == [("Mean", [("__init__", ["self", "model"]), ("__call__", ["self", "x"])])]


def test_the_configuration_and_a_row_accept_the_kind(add, monkeypatch):
    with pytest.raises(InputError, match="unknown mixer kind 'mean'"):
        preset("tiny").override({"model": {"mixer": {"kind": "mean"}}})
    add()
    chosen = preset("tiny").override({"model": {"mixer": {"kind": "mean"}}})
    assert chosen.model.mixer == mixers.MIXERS["mean"](directions=2)
    for name, run in yaml.safe_load(ROW).items():
        monkeypatch.setitem(settings.row_table()["groups"], name, run)
    assert settings.configuration("torch-mean", 0).model.mixer == chosen.model.mixer
