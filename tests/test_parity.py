"""The twins against each other: from the same weights and inputs the same numbers, forward, backward and in training.

One table of tolerances for all. Distances are ‖a − b‖ / ‖b‖ with b PyTorch's.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jax_impl
import torch_impl
from jax_impl.train import Trainer as JaxTrainer
from torch_impl.train import Trainer as TorchTrainer
from twinsep import checkpoint, losses
from twinsep.batches import TrainingBatches
from twinsep.config import preset
from twinsep.errors import InputError
from twinsep.separation import separate
from twinsep.training import LAST, train

TOLERANCE = {
    "block": {"float64": 1e-12, "float32": 2e-6},
    "network": {"float64": 1e-10, "float32": 1e-5},
    "gradients": {"float64": 1e-9, "float32": 1e-4},
    "steps": {"float64": 1e-8, "float32": 1e-3},
}
SONG_SNR_DB = 90

MICRO = {
    "model": {
        "d_model": 8,
        "n_heads": 2,
        "bands": "vocal18",
        "mixer": {"kind": "mamba", "d_state": 4},
        "memory_tokens": [16, 12, 8, 4],
    },
    "training": {"segment_seconds": 0.5},
}
#: Options of the model, and the type they are tried in.
CASES = {
    "default": ("float64", {}),
    "reference alignment, two stems and the rest": (
        "float64",
        {
            "memory_alignment": "reference",
            "bands": "reference68",
            "targets": ["drums", "bass"],
            "residual": True,
            "mid_side": True,
        },
    ),
    "transformer, bottleneck memory": (
        "float32",
        {"mixer": {"kind": "transformer"}, "memory_tokens": [0, 0, 0, 4], "mid_side": True, "n_bottleneck": 4},
    ),
}
DTYPES = ["float64", "float32"]


@pytest.fixture(autouse=True, scope="module")
def quick_compilation(tmp_path_factory):
    """Most of the time here is XLA's. What it leaves out makes programs slower, not different; equal ones are kept."""
    seconds = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


@pytest.fixture(params=DTYPES)
def dtype(request):
    """float64 exists in JAX only inside this fixture."""
    jax.config.update("jax_enable_x64", request.param == "float64")
    yield request.param
    jax.config.update("jax_enable_x64", False)


def configuration(**model):
    return preset("tiny").override(MICRO).override({"model": model})


def twins(config, dtype="float32", seed=0):
    """Both separators with the same weights; in every second bias and norm something else than its start."""
    pair = torch_impl.unet.Separator(config), jax_impl.unet.Separator(config)
    torch_impl.layers.initialise(pair[0], seed)
    rng = np.random.default_rng(seed)
    own = torch_impl.layers.named_parameters(pair[0])
    weights = {name: w.detach().numpy().astype(dtype) for name, w in own.items()}
    weights = {name: w + 0.05 * rng.standard_normal(w.shape).astype(dtype) for name, w in weights.items()}
    pair[0].to(getattr(torch, dtype))
    torch_impl.train.load_weights(pair[0], weights, "test")
    jax_impl.train.load_weights(pair[1], weights, "test")
    return pair


def noise(*shape, dtype="float32", seed=0):
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def distance(found, wanted):
    found, wanted = (np.asarray(x, np.complex128 if np.iscomplexobj(x) else np.float64) for x in (found, wanted))
    assert found.shape == wanted.shape
    return np.linalg.norm(found - wanted) / max(np.linalg.norm(wanted), 1e-30)


def assert_close(found, wanted, what, dtype):
    d = distance(found, wanted)
    assert d <= TOLERANCE[what][dtype], f"{d:.1e}"


BLOCKS = {
    "default": ["band_split", "mask_head", "down1", "enc1", "enc3", "bottleneck", "up3", "dec1"],
    "reference": ["band_split", "mask_head", "dec1"],
    "transformer": ["enc1"],
}
OPTIONS = {
    "default": {},
    "reference": {"memory_alignment": "reference", "bands": "reference68"},
    "transformer": {"mixer": {"kind": "transformer"}},
}


BLOCK_CASES = [
    pytest.param(case, name, dtype, id=f"{case}-{name}-{dtype}")
    for case, names in BLOCKS.items()
    for name in names
    for dtype in (DTYPES if case == "default" else DTYPES[:1])
]


@pytest.mark.parametrize(("case", "name", "dtype"), BLOCK_CASES, indirect=["dtype"])
def test_each_block(case, name, dtype):
    config = configuration(**OPTIONS[case])
    ours, theirs = twins(config, dtype)
    model = config.model
    k, d, t = model.n_bands, model.d_model, 19
    if name == "band_split":
        spectrum = noise(2, 2, model.n_bins, t, dtype=dtype) + 1j * noise(2, 2, model.n_bins, t, dtype=dtype, seed=1)
        inputs = [spectrum.astype("complex128" if dtype == "float64" else "complex64")]
    else:
        inputs = [noise(2, k, t, d, dtype=dtype)]
    if name.startswith("dec"):
        tokens = sum(model.memory_tokens)
        inputs += [noise(2, k, tokens, d, dtype=dtype, seed=2), noise(2, k, t, d, dtype=dtype, seed=3)]
    arguments = [40] if name.startswith("up") else []

    def run(model, arrays):
        block = getattr(model, name)
        x, *context = arrays
        for layer in block if hasattr(block, "__getitem__") else [block]:
            x = layer(x, *context, *arguments)
        return x

    wanted = run(ours, [torch.from_numpy(x) for x in inputs]).detach()
    assert_close(run(theirs, [jnp.asarray(x) for x in inputs]), wanted.numpy(), "block", dtype)


@pytest.mark.parametrize(("dtype", "model"), CASES.values(), ids=CASES, indirect=["dtype"])
def test_the_network_and_its_gradients_through_the_full_loss(dtype, model):
    config = configuration(**model)
    ours, theirs = twins(config, dtype)
    mixture, stems = noise(2, 2, 11_000, dtype=dtype), len(config.model.targets)
    target = noise(2, stems, 2, 11_000, dtype=dtype, seed=1) + 0.5 * mixture[:, None]
    x = torch.from_numpy(mixture).requires_grad_()
    estimate = ours(x)
    total, _ = losses.mix(estimate[:, :stems], torch.from_numpy(target), mixture=x, config=config)
    total.backward()
    wanted = {name: w.grad.numpy() for name, w in torch_impl.layers.named_parameters(ours).items()}

    functional = jax_impl.train.Functional(theirs)

    def loss(weights, x):
        estimate = functional(weights, x)
        return losses.mix(estimate[:, :stems], jnp.asarray(target), mixture=x, config=config)[0], estimate

    derivative = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (value, output), (found, dx) = derivative(functional.weights(theirs), jnp.asarray(mixture))
    assert output.dtype == dtype
    assert_close(output, estimate.detach().numpy(), "network", dtype)
    assert_close(value, total.item(), "network", dtype)
    assert_close(dx, x.grad.numpy(), "gradients", dtype)
    assert found.keys() == wanted.keys()
    tree = [np.concatenate([np.ravel(g[name]) for name in sorted(wanted)]) for g in (found, wanted)]
    assert_close(*tree, "gradients", dtype)
    worst = max(wanted, key=lambda name: distance(found[name], wanted[name]))
    assert distance(found[worst], wanted[worst]) <= 30 * TOLERANCE["gradients"][dtype], worst


def batches(config, count):
    with iter(TrainingBatches(config)) as stream:
        return [next(stream) for _ in range(count)]


def test_ten_optimiser_steps_and_the_average(micro):
    pair = TorchTrainer(micro), JaxTrainer(micro)
    # Full-band: on songs the gradient of a logarithm differs by a tenth between float32 and float64 (test_losses).
    noises = [(noise(1, 2, 22_050, seed=i), noise(1, 1, 2, 22_050, seed=i + 50)) for i in range(11)]
    found = [{"mixture": x, "target": 0.7 * x[:, None] + 0.5 * y} for x, y in noises]
    a, b = (trainer.state() for trainer in pair)
    assert all(np.array_equal(a[name], b[name]) for name in a)
    for step in range(10):
        together = found[:2] if step == 9 else [found[step + 1]]  # the last step accumulates two batches
        a, b = (trainer.step(together, 1e-3 * (1 + step % 3), 0.8) for trainer in pair)
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
    a, b = (trainer.state() for trainer in pair)
    assert a.keys() == b.keys()
    for prefix in ("model/", "ema/"):
        tree = [np.concatenate([np.ravel(s[n]) for n in sorted(a) if n.startswith(prefix)]) for s in (b, a)]
        assert_close(*tree, "steps", "float32")
    # a loss that is not finite changes nothing
    trainer, before = pair[1], b
    bad = dict(found[0], mixture=np.full_like(found[0]["mixture"], np.nan))
    assert np.isnan(trainer.step([bad], 1e-3, 0.5)["loss"])
    after = trainer.state()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert trainer.moments.count == 10


def test_rematerialisation_recomputes_each_stage(micro):
    stages = ["enc1", "enc2", "enc3", "bottleneck", "dec3", "dec2", "dec1"]
    trainer = JaxTrainer(micro.override({"training": {"rematerialise": stages}}))
    arrays = (jnp.asarray(batches(micro, 1)[0][key]) for key in ("mixture", "target"))
    assert str(jax.make_jaxpr(trainer.loss)(trainer.weights, *arrays)).count("remat") >= len(stages)


@pytest.mark.parametrize(("first", "then"), [("torch", "jax")])
def test_a_run_goes_on_in_the_other_framework(micro, tmp_path, first, then, monkeypatch):
    """Weights, average, moments, step and place in the data: the rest of the curve is what the first would have had."""
    whole = train(micro, tmp_path / "whole", framework=first)
    trainer = importlib.import_module(f"{first}_impl.train").Trainer
    step, calls = trainer.step, []

    def stop_in_the_fourth(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(trainer, "step", stop_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        train(micro, tmp_path / "parts", framework=first)
    assert checkpoint.read(tmp_path / "parts" / LAST).step == 2
    parts = train(micro, tmp_path / "parts", framework=then)
    assert parts["validation"] == pytest.approx(whole["validation"], rel=1e-3)
    a, b = (checkpoint.read(tmp_path / name / LAST) for name in ("whole", "parts"))
    assert (a.step, a.data, a.config) == (b.step, b.data, b.config)
    for prefix in ("model", "ema"):
        tree = [
            np.concatenate([np.ravel(x.tensors[n]) for n in sorted(a.tensors) if n.startswith(prefix)]) for x in (b, a)
        ]
        assert_close(*tree, "steps", "float32")


def test_a_checkpoint_passes_through_both_unchanged(micro, tmp_path):
    start = TorchTrainer(micro)
    start.step(batches(micro, 1), 1e-2, 0.5)
    tensors = start.state()
    for trainer in (JaxTrainer(micro), TorchTrainer(micro), JaxTrainer(micro)):
        checkpoint.write(tmp_path / "file", checkpoint.Checkpoint(micro, tensors, 1))
        trainer.restore(checkpoint.read(tmp_path / "file").tensors, 1)
        tensors = trainer.state()
    last = start.state()
    assert tensors.keys() == last.keys()
    assert all(np.array_equal(tensors[name], last[name]) for name in last)


def test_restoring_another_model_is_refused(micro):
    tensors = JaxTrainer(micro).state()
    with pytest.raises(InputError, match="has shape"):
        JaxTrainer(micro.override({"model": {"d_model": 12}})).restore(tensors, 1)


def test_a_song_separated(micro, tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.write(path, checkpoint.Checkpoint(micro, TorchTrainer(micro).state()))
    song = noise(2, 100_000)
    outputs = []
    for package in (torch_impl, jax_impl):
        model = package.load(path)
        function = package.layers.on_arrays(model, package.layers.device_named("cpu"))
        outputs.append(separate(function, song, segment=30_000, overlap=0.25))
    error = np.square(outputs[0] - outputs[1]).sum()
    assert 10 * np.log10(np.square(outputs[0]).sum() / error) >= SONG_SNR_DB


def test_load_of_a_preset_and_of_nothing():
    model = jax_impl.load("tiny", seed=1)
    assert model.stems == ("instrumental",)
    assert model.parameter_count == torch_impl.load("tiny").parameter_count
    with pytest.raises(InputError, match="does not exist"):
        jax_impl.load("no-such-thing")
    with pytest.raises(InputError, match="cannot be used here"):
        jax_impl.load("tiny", device="nonsense")
