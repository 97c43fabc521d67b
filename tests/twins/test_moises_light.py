"""Moises-Light in JAX: by itself, and beside the package moises-light where that is installed."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from test_packages import PARAMETERS

import jax_impl
import torch_impl
import twinsep
from jax_impl.baselines import moises_light
from jax_impl.baselines.moises_light import SIZES, MoisesLight, Sizes
from jax_impl.networks import build
from twinsep import Chunking, checkpoints
from twinsep.checkpoints import Checkpoint
from twinsep.config import preset
from twinsep.errors import InputError
from twinsep.stft import stft

README = Path(jax_impl.__file__).with_name("README.md")
SMALL = Sizes(G=8, n_bands=4, freq_dim=96, n_rope=2, n_fft=256, hop=64)


def noise(*shape, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@nnx.jit
def output(model, x):
    return model(x)


@pytest.fixture
def few_weights(monkeypatch):
    """The preset paper_small has a network that XLA compiles in seconds."""
    monkeypatch.setitem(SIZES, "moises-light/paper_small", SMALL)


@pytest.fixture
def few_layers(few_weights, monkeypatch):  # noqa: ARG001
    """Besides, each level has one convolution in place of three, unlike in the package."""
    monkeypatch.setattr(moises_light, "ENCODER_CONVS", 1)


def disturb_statistics(model):
    rng = np.random.default_rng(0)
    for buffer in jax_impl.layers.named_statistics(model).values():
        buffer.set_value(buffer[...] * rng.uniform(0.5, 1.5, buffer.shape) + rng.uniform(0, 0.5, buffer.shape))


# ---------------------------------------------------------------------------- by itself


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_those_of_the_pinned_release_without_statistics(name):
    network = build(preset(name))
    assert network.parameter_count == PARAMETERS[name]
    assert jax_impl.layers.named_statistics(network)


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"G": 57}, "G 57 is not divisible by n_bands 4: choose a multiple of it"),
        ({"freq_dim": 2050}, "freq_dim 2050 is not divisible by n_bands 4: choose a multiple of it"),
    ],
)
def test_channels_and_bins_are_divisible_by_the_bands(sizes, sentence):
    with pytest.raises(InputError, match=f"^{sentence}$"):
        Sizes(**{"G": 56, "n_bands": 4, "freq_dim": 2048, "n_rope": 5} | sizes)


def test_stems_are_silent_above_the_processed_bins():
    model = MoisesLight(SMALL, 2)
    jax_impl.layers.initialise(model, 0)
    x = noise(1, 2, 6000)
    y = np.asarray(output(model, x))
    assert y.shape == (1, 2, 2, 6000)
    inner = stft(y, n_fft=256, hop=64)[..., 8:-8]  # reflection makes kinks at both ends
    power = (np.abs(inner) ** 2).mean((0, 1, 2, 4))
    assert power[SMALL.freq_dim + 16 :].max() < 1e-4 * power[: SMALL.freq_dim].min()
    assert not np.asarray(output(model, 0 * x)).any()


@pytest.mark.usefixtures("few_layers")
def test_auxiliary_outputs_are_an_empty_dictionary_and_the_residual_is_the_rest():
    network = build(preset("moises-light/paper_small").override({"model": {"targets": ["bass"], "residual": True}}))
    jax_impl.layers.initialise(network, 0)
    x = noise(1, 2, 100)
    y, auxiliary = nnx.jit(lambda network, x: network(x, return_auxiliary_outputs=True))(network, x)
    assert y.shape == (1, 2, 2, 100)
    assert auxiliary == {}
    np.testing.assert_allclose(y.sum(1), x, atol=1e-6)
    assert network.inner.source_head is None
    assert np.abs(y).max() > 1e-3


@pytest.mark.usefixtures("few_layers")
def test_running_statistics_are_saved_and_loaded(tmp_path):
    config = preset("moises-light/paper_small")
    network = build(config)
    jax_impl.layers.initialise(network, 0)
    disturb_statistics(network)
    named = jax_impl.layers.named_parameters(network) | jax_impl.layers.named_statistics(network)
    tensors = {f"model/{name}": np.asarray(w[...]) for name, w in named.items()}
    checkpoints.write(tmp_path / "a.safetensors", Checkpoint(config, tensors))
    twinsep.load(tmp_path / "a.safetensors", "jax").save_pretrained(tmp_path / "b")
    saved = checkpoints.read(tmp_path / "b").tensors
    assert saved.keys() == tensors.keys()
    assert all(np.array_equal(saved[name], w) for name, w in tensors.items())
    assert f"{network.parameter_count:,} parameters" in (tmp_path / "b" / "README.md").read_text()
    del tensors["model/inner.first_conv.bn.running_var"]
    checkpoints.write(tmp_path / "c.safetensors", Checkpoint(config, tensors))
    with pytest.raises(InputError, match=r"no weight 'inner\.first_conv\.bn\.running_var'; it belongs to"):
        jax_impl.load(tmp_path / "c.safetensors")


@pytest.mark.usefixtures("few_layers")
def test_it_trains_and_updates_its_statistics():
    config = preset("moises-light/paper_small").override({"training": {"segment_seconds": 0.1, "learning_rate": 0.01}})
    trainer = jax_impl.train.Trainer(config)
    before = trainer.state()
    mixture = noise(1, 2, config.segment_samples)
    batch = {"mixture": mixture, "target": 0.25 * mixture[:, None].repeat(4, 1)}
    losses = [trainer.step([batch], 0.01, 0.5)["loss"] for _ in range(4)]
    assert losses[-1] < losses[0]
    changed = [name for name, x in trainer.state().items() if name.startswith("model/") and (x != before[name]).any()]
    assert any(name.endswith("running_mean") for name in changed)
    # The frequencies of rotary positions are weights by name, but not trained.
    assert not any(name.endswith("freqs") for name in changed)


# ---------------------------------------------------------------------------- beside the package


def enliven(model, samples):
    """Weights and statistics of which each matters: a change by 1 % changes the output by more than 1e-4.

    From initial weights only the last biases matter: without statistics of its own, no level passes much on.
    """
    g = torch.Generator().manual_seed(0)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for name, w in model.named_parameters():
            if name.endswith("freqs"):
                w.mul_(1.05)
            elif w.ndim == 1:
                w.add_(0.1 * torch.randn(w.shape, generator=g))
            elif "to_qkv" in name:
                w.mul_(2)
        for conv in (model.final_conv, model.source_head):
            if conv is not None:
                conv.bias.mul_(0.1)
        for norm in norms:
            norm.momentum = 1.0
        model.train()(0.1 * torch.randn(1, 2, samples, generator=g))
        for norm in norms:
            # A mean far above the deviation cancels: of two correct programs in float32 each is then 5e-6 off.
            norm.running_var += norm.running_mean**2
            norm.running_mean += 0.2 * norm.running_var.sqrt() * torch.randn(norm.running_mean.shape, generator=g)
            norm.running_var *= 0.7 + 0.6 * torch.rand(norm.running_var.shape, generator=g)
    for module in model.modules():  # angles of the old frequencies
        if hasattr(module, "cached_freqs_seq_len"):
            module.cached_freqs_seq_len = 0
    return model.eval()


def tensors_of(model):
    """Weights and running statistics of a module in PyTorch."""
    constants = ("num_batches_tracked", "stft_window", "freq_pad")
    return {name: w.numpy() for name, w in model.state_dict().items() if not name.endswith(constants)}


def distance(found, wanted):
    """Largest difference, relative to the largest value."""
    assert found.shape == wanted.shape
    return np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["float64"], indirect=True)
@pytest.mark.parametrize(
    ("bands", "stems", "batch", "samples"),
    [
        (4, 3, 2, 447),  # one sample short of eight frames
        (4, 1, 1, 448),  # whole hops, to which one more is added; no head for several stems
        (6, 2, 1, 61),  # shorter than half a window
    ],
)
def test_the_package_gives_the_same_numbers_in_double_precision(bands, stems, batch, samples, dtype):
    package = pytest.importorskip("moises_light")
    s = Sizes(G=12, n_bands=bands, freq_dim=96, n_rope=2, n_fft=256, hop=64)
    torch.manual_seed(0)
    names = {"n_bands": s.n_bands, "freq_dim": s.freq_dim, "G": s.G, "n_rope": s.n_rope}
    signal = {"n_fft": s.n_fft, "win_size": s.n_fft, "hop_size": s.hop}
    theirs = package.MoisesLight(sources=["a", "b", "c"][:stems], **names, **signal).double()
    theirs.stft_window = torch.hann_window(s.n_fft, dtype=torch.float64)
    torch.set_default_dtype(torch.float64)
    try:
        enliven(theirs, samples=3000)
    finally:
        torch.set_default_dtype(torch.float32)
    ours = MoisesLight(s, stems)
    tensors = tensors_of(theirs)
    named = jax_impl.layers.named_parameters(ours) | jax_impl.layers.named_statistics(ours)
    assert {name: w.shape for name, w in named.items()} == {name: w.shape for name, w in tensors.items()}
    for name, w in named.items():
        w.set_value(jnp.asarray(tensors[name]))
    x = noise(batch, 2, samples).astype(dtype)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(x)).numpy()
    found = output(ours, x)
    assert found.dtype == dtype
    assert distance(found, wanted) < 1e-11


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SIZES)
def test_a_checkpoint_of_the_package_gives_its_output(name, tmp_path):
    pytest.importorskip("moises_light")
    targets = {"paper_small": ["vocals"], "fullband_small": ["bass", "vocals"]}.get(name.partition("/")[2])
    config = preset(name).override({"model": {"targets": targets, "residual": True}} if targets else {})
    theirs = torch_impl.networks.build(config).eval()
    enliven(theirs.inner, samples=30_000)
    tensors = {f"model/{name}": w for name, w in tensors_of(theirs).items()}
    checkpoints.write(tmp_path / "a.safetensors", Checkpoint(config, tensors))
    ours = jax_impl.load(tmp_path / "a.safetensors")
    decays = [
        {n: w.decay for n, w in twin.layers.named_parameters(model).items()}
        for twin, model in ((torch_impl, theirs), (jax_impl, ours))
    ]
    assert decays[0] == decays[1]
    x = noise(1, 2, 9001)
    with torch.no_grad():
        wanted, auxiliary = theirs(torch.from_numpy(x), return_auxiliary_outputs=True)
    assert auxiliary == {}
    assert distance(output(ours, x), wanted.numpy()) < 1e-5


@pytest.fixture
def small_package(few_weights, monkeypatch):  # noqa: ARG001
    """The package, whose preset paper_small has a small network too."""
    package = pytest.importorskip("moises_light")
    signal = {"n_fft": SMALL.n_fft, "win_size": SMALL.n_fft, "hop_size": SMALL.hop}
    sizes = {"n_bands": SMALL.n_bands, "freq_dim": SMALL.freq_dim, "G": SMALL.G, "n_rope": SMALL.n_rope}
    monkeypatch.setitem(package.configs, "paper_small", {**signal, **sizes})
    return package


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("small_package")
def test_a_model_saved_from_pytorch_separates_songs_in_jax(tmp_path):
    chunking = Chunking(segment=0.5)
    theirs = twinsep.load("moises-light/paper_small", chunking=chunking)
    theirs.save_pretrained(tmp_path / "saved")
    ours = twinsep.load(tmp_path / "saved", "jax", chunking=chunking)
    x = noise(2, 30_000)
    found, wanted = ours(x, 44_100), theirs(x, 44_100)
    assert list(found) == list(wanted) == ["drums", "bass", "other", "vocals"]
    assert all(distance(found[stem], wanted[stem]) < 1e-5 for stem in wanted)


@pytest.mark.filterwarnings("ignore")
def test_the_code_in_the_readme_converts_a_state_dict_of_the_package(small_package, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs = small_package.MoisesLight(**small_package.configs["paper_small"])
    enliven(theirs, samples=9000)
    torch.save(theirs.state_dict(), "moises.pt")
    exec(re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1], {})
    ours = jax_impl.load("moises.safetensors")
    assert ours.stems == ("vocals", "drums", "bass", "other")
    x = noise(1, 2, 9000)
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(x)).numpy()
    assert distance(output(ours, x), wanted) < 1e-5
