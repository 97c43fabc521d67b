"""Loading models from files, folders, presets and the hub, and saving them as folders."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import twinsep
from twinsep import Chunking, checkpoints
from twinsep.checkpoints import Checkpoint
from twinsep.checkpoints import hub as hub_form
from twinsep.errors import InputError
from twinsep.stft import istft
from twinsep.utils.backend import twin

FRAMEWORKS = ["torch", "jax"]
RATE = 44_100


def noise(channels, samples, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal((channels, samples)).astype(np.float32)


@pytest.fixture
def micro(micro):
    """A configuration that XLA compiles quickly."""
    return micro.override({"model": {"mixer": {"kind": "conv"}, "memory_tokens": [0, 0, 0, 0]}})


@pytest.fixture
def weights(micro):
    """Weights of a model, and different ones for its average."""
    import torch

    from torch_impl.layers import initialise, named_parameters
    from torch_impl.networks import build

    found = {}
    with torch.no_grad():
        for seed, prefix in enumerate(("model", "ema")):
            model = build(micro)
            initialise(model, seed)
            found |= {f"{prefix}/{name}": w.numpy().copy() for name, w in named_parameters(model).items()}
    return found


@pytest.fixture
def file(micro, weights, tmp_path):
    path = tmp_path / "run" / "best.safetensors"
    checkpoints.write(path, Checkpoint(micro, weights, 7))
    record = {"hash": micro.hash, "framework": "torch", "command": "twinsep train --out run", "commit": "0123456789ab"}
    (path.parent / "run.json").write_text(json.dumps(record))
    return path


@pytest.fixture
def folder(micro, weights, tmp_path):
    hub_form.write(tmp_path / "saved", Checkpoint(micro, weights, 7))
    return tmp_path / "saved"


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_saved_model_is_loaded_unchanged(framework, file, weights, micro, tmp_path):
    separator = twinsep.load(file, framework, chunking=Chunking(segment=0.5))
    assert separator.grid.segment == RATE // 2
    x = noise(2, RATE // 3)
    before = separator(x, RATE)
    separator.save_pretrained(tmp_path / "saved")
    saved = hub_form.read(tmp_path / "saved")
    assert (saved.config, saved.step) == (micro, 7)
    assert saved.provenance == {"framework": "torch", "command": "twinsep train --out run", "commit": "0123456789ab"}
    average = {name.replace("ema/", "model/"): w for name, w in weights.items() if name.startswith("ema/")}
    assert saved.tensors.keys() == average.keys()
    assert all(saved.tensors[name].tobytes() == w.tobytes() for name, w in average.items())
    again = twinsep.Separator.from_pretrained(tmp_path / "saved", framework, chunking=Chunking(segment=0.5))
    again.save_pretrained(tmp_path / "again")
    for path in (tmp_path / "saved").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes().replace(b"saved", b"again")
    for stem, y in again(x, RATE).items():
        np.testing.assert_array_equal(y, before[stem])


@pytest.mark.parametrize(("framework", "mid_side"), [("torch", False), ("torch", True), ("jax", True)])
def test_auxiliary_outputs_reproduce_the_output(framework, mid_side, micro):
    layers = twin(framework, "layers")
    config = micro.override({"model": {"mid_side": mid_side, "targets": ["vocals", "drums"], "residual": True}})
    model = twin(framework, "networks").build(config)
    layers.initialise(model, 0)
    y, plain, auxiliary = called(framework, model, noise(2, 20_001)[None])
    np.testing.assert_array_equal(y, plain)
    assert auxiliary.keys() == {"mask", "spectrum"}
    assert auxiliary["mask"].shape == (1, 2, 2, 1025, 20)
    assert auxiliary["spectrum"].shape == (1, 2, 1025, 20)
    made = istft(auxiliary["mask"] * auxiliary["spectrum"][:, None], n_fft=2048, hop=config.model.hop, length=20_001)
    if mid_side:
        made = np.stack([made[:, :, 0] + made[:, :, 1], made[:, :, 0] - made[:, :, 1]], 2)
    np.testing.assert_allclose(made, y[:, :2], atol=1e-6)
    assert np.abs(y[:, :2]).max() > 0.01


def called(framework, model, x):
    """Return the output with auxiliary outputs, the output without them, and the auxiliary outputs, in NumPy."""
    if framework == "torch":
        import torch

        with torch.inference_mode():
            y, auxiliary = model(torch.from_numpy(x), return_auxiliary_outputs=True)
            plain = model(torch.from_numpy(x))
        return y.numpy(), plain.numpy(), {name: value.numpy() for name, value in auxiliary.items()}
    from flax import nnx

    def both(model, x):  # in one program, so that it is compiled once
        return *model(x, return_auxiliary_outputs=True), model(x)

    y, auxiliary, plain = nnx.jit(both)(model, x)
    return np.asarray(y), np.asarray(plain), {name: np.asarray(value) for name, value in auxiliary.items()}


def test_a_preset_is_initialised_from_seed_0(tmp_path):
    separator = twinsep.load("tiny")
    assert separator.grid.segment == separator.config.segment_samples
    separator.save_pretrained(tmp_path / "tiny")
    saved = hub_form.read(tmp_path / "tiny")
    from torch_impl import load

    initial = load("tiny", seed=0).state_dict()
    assert all(np.array_equal(saved.tensors[f"model/{name}"], w.numpy()) for name, w in initial.items())
    assert "Not trained" in (tmp_path / "tiny" / "README.md").read_text()


def test_importing_twinsep_loads_no_large_package():
    code = (
        "import sys, twinsep\n"
        "assert not {'numpy', 'pydantic', 'torch', 'jax'} & set(sys.modules)\n"
        "assert callable(twinsep.load) and twinsep.Separator\n"
        "assert not {'torch', 'jax', 'huggingface_hub'} & set(sys.modules)\n"
        "try:\n    twinsep.laod\nexcept AttributeError as error:\n    assert 'laod' in str(error)\n"
        "else:\n    raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_bad_options_are_refused(file):
    with pytest.raises(InputError, match="overlap 1"):
        twinsep.load(file, chunking=Chunking(overlap=1.0))
    with pytest.raises(InputError, match=r"segment of -1 s is out of range"):
        twinsep.load(file, chunking=Chunking(segment=-1.0))
    with pytest.raises(InputError, match="unknown framework 'numpy'"):
        twinsep.load(file, "numpy")
    with pytest.raises(InputError, match="device 'abacus'"):
        twinsep.load(file, device="abacus")
    with pytest.raises(InputError, match="huge is neither a checkpoint nor one of the presets reference"):
        twinsep.load("huge")
    with pytest.raises(InputError, match="tiny is a preset, whose weights are not trained: name a checkpoint"):
        twinsep.load(Path("tiny"))


# ---------------------------------------------------------------------------- folders


def edited(folder, **changes):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))


def cut(folder, name):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


def other_weights(folder, change):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def first_as(dtype):
    def change(tensors):
        name = min(tensors)
        tensors[name] = tensors[name].astype(dtype)

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "config.json").unlink(),
            "saved holds no config.json; choose a folder that save_pretrained wrote",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: cannot be read as safetensors"),
        (lambda f: cut(f, "config.json"), "config.json: not JSON"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{"), "config.json: not JSON"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json: not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json: not the configuration of a twinsep model"),
        (lambda f: edited(f, model_type="bert"), "config.json: not the configuration of a twinsep model"),
        (lambda f: edited(f, model={}), "config.json: configuration: model"),
        (lambda f: edited(f, training={"speed": 1}), r"config.json: configuration: training\.speed"),
        (lambda f: edited(f, step="many"), "step or provenance is damaged"),
        (lambda f: edited(f, provenance=[1]), "step or provenance is damaged"),
        (lambda f: cut(f, "model.safetensors"), "model.safetensors: cannot be read as safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors: cannot be read as safetensors"),
        (lambda f: other_weights(f, lambda w: w.pop("mask_head.bias2")), "saved: no weight 'mask_head.bias2'"),
        (lambda f: other_weights(f, lambda w: w.update(more=np.zeros(1, np.float32))), "saved: weight 'more' has no"),
        (lambda f: other_weights(f, first_as(np.float16)), "is of type F16, not F32"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused(damage, message, folder):
    damage(folder)
    with pytest.raises(InputError, match=message) as refused:
        twinsep.load(folder)
    assert "\n" not in str(refused.value)


def test_saving_replaces_a_saved_model_and_nothing_else(folder, micro, weights, tmp_path):
    made = Checkpoint(micro, {name: 2 * w for name, w in weights.items()}, 8)
    (folder / "README.md").write_text("mine")
    hub_form.write(folder, made)
    assert hub_form.read(folder).step == 8
    assert (folder / "README.md").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    hub_form.write(tmp_path / "empty", made)
    (tmp_path / "link").symlink_to(tmp_path / "saved")
    hub_form.write(tmp_path / "link", made)
    assert (tmp_path / "link").is_symlink()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="saved holds other files; choose a new or empty folder"):
        hub_form.write(folder, made)
    (tmp_path / "foreign").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "foreign" / name).write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match=r"foreign/config\.json: not the configuration of a twinsep model"):
        hub_form.write(tmp_path / "foreign", made)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file where a folder is needed"):
        hub_form.write(tmp_path / "file", made)
    with pytest.raises(InputError, match="file is a file where a folder is needed"):
        hub_form.write(tmp_path / "file" / "model", made)
    assert {path.name for path in tmp_path.iterdir()} == {"saved", "empty", "link", "foreign", "file"}
    assert (tmp_path / "foreign" / "config.json").read_text() == '{"model_type": "bert"}'


@pytest.mark.parametrize("failing", ["fsync", "rename"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_the_folder_unchanged(failing, error, folder, micro, weights, tmp_path, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    rename, calls = os.rename, []

    def fail(*arguments):
        calls.append(arguments)
        if failing == "rename" and len(calls) != 2:  # the first moves the old folder away, the third restores it
            return rename(*arguments)
        raise error

    monkeypatch.setattr(os, failing, fail)
    expected = InputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        hub_form.write(folder, Checkpoint(micro, {name: 2 * w for name, w in weights.items()}, 8))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_the_averaged_weights_are_saved(folder, weights):
    saved = hub_form.read(folder).tensors
    assert saved
    assert all(np.array_equal(w, weights[name.replace("model/", "ema/")]) for name, w in saved.items())


def test_the_model_card_describes_the_model(folder, micro, weights):
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\nlibrary_name: twinsep\n")
    assert "# saved\n" in card
    assert "instrumental at 44,100 Hz, mixer conv" in card
    assert f"Trained for 7 steps on the songs in `{micro.data.root}`." in card
    hub_form.write(folder.parent / "b", Checkpoint(micro, weights, provenance={"source": "r.pt", "sha256": "ab"}))
    card = (folder.parent / "b" / "README.md").read_text()
    assert "license" not in card
    assert "Converted from `r.pt`, SHA-256 `ab`." in card


def test_a_record_of_another_run_is_ignored(file):
    for text in ('{"hash": "other", "command": "x"}', "[]", "{", ""):
        (file.parent / "run.json").write_text(text)
        assert hub_form.origin(file, checkpoints.read(file)) == {}


# ---------------------------------------------------------------------------- the hub


@pytest.fixture
def hub(monkeypatch):
    """Stand-in for huggingface_hub; a test sets its ``snapshot_download``."""
    module = types.ModuleType("huggingface_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_a_repository_is_downloaded(hub, folder):
    asked = []

    def snapshot_download(name, *, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    hub.snapshot_download = snapshot_download
    separator = twinsep.Separator.from_pretrained("someone/karaoke", chunking=Chunking(segment=0.25))
    assert asked == [("someone/karaoke", ["config.json", "model.safetensors"])]
    assert separator.grid.segment == RATE // 4
    assert hub_form.fetch(folder) == folder  # a local folder needs no download
    assert len(asked) == 1


def test_a_failed_download_is_reported_in_one_sentence(hub, tmp_path, monkeypatch):
    def snapshot_download(*_, **__):
        raise ConnectionError("no route\nto the hub")

    hub.snapshot_download = snapshot_download
    with pytest.raises(
        InputError, match=r"^a/b is no folder, and its download failed \(no route\); check name and network"
    ):
        twinsep.Separator.from_pretrained("a/b")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file, not a folder"):
        hub_form.fetch(tmp_path / "file")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="a/b is no folder; to load it from the hub: pip install huggingface_hub"):
        hub_form.fetch("a/b")


def test_jax_caches_compiled_programs_and_uses_full_vectors(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not there yet"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "--mine")
    twin("jax")
    twin("jax")
    assert os.environ["XLA_FLAGS"] == "--mine --xla_cpu_prefer_vector_width=512"
    kept = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    assert kept.parent == tmp_path / "not there yet/twinsep/xla"  # one folder per processor model
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_prefer_vector_width=256")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    twin("jax")
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_prefer_vector_width=256"
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "mine"


def test_without_a_home_folder_jax_caches_nothing(monkeypatch):
    def none():
        raise RuntimeError("could not determine the home folder")

    monkeypatch.setattr(Path, "home", none)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "")
    twin("jax")
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_a_home_that_is_no_folder_makes_no_cache(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "")
    twin("jax")
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
