"""The released weights: half precision in the file, the default of the command and of ``twinsep.load``."""

from pathlib import Path

import numpy as np
import pytest

import twinsep
from twinsep import checkpoints
from twinsep.checkpoints import Checkpoint, released
from twinsep.checkpoints.initial import read_initial_weights
from twinsep.cli import _choose_weights as choose_weights
from twinsep.config import preset
from twinsep.errors import InputError
from twinsep.separation import batch
from twinsep.utils.backend import twin

CONFIG = preset("tiny").override({"model": {"d_model": 8, "n_heads": 2, "bands": "vocal18", "mixer": {"kind": "conv"}}})


@pytest.fixture
def half(tmp_path, monkeypatch):
    """A checkpoint in float16 in the place of the released one, and the same weights in float32."""
    from torch_impl.layers import initialise, named_parameters
    from torch_impl.networks import build

    model = build(CONFIG)
    initialise(model, 0, CONFIG.model.init)
    rng = np.random.default_rng(0)
    weights = {k: w.detach().numpy() + 0.01 * rng.standard_normal(w.shape) for k, w in named_parameters(model).items()}
    rounded = released.half_precision(weights)
    path = tmp_path / "package" / "twinsep.safetensors"
    checkpoints.write(path, Checkpoint(CONFIG, {f"model/{k}": w for k, w in rounded.items()}, 7))
    monkeypatch.setattr(released, "PATH", path)
    full = tmp_path / "full.safetensors"
    single = {f"model/{k}": w.astype(np.float32) for k, w in rounded.items()}
    checkpoints.write(full, Checkpoint(CONFIG, single, 7))
    return path, full


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_half_precision_is_a_matter_of_the_file_alone(half, framework):
    assert {t.dtype for t in checkpoints.read(half[0]).tensors.values()} == {np.dtype(np.float16)}
    found = []
    for path in half:
        model = twin(framework).load(path)
        found.append(
            {
                k: np.asarray(w[...].detach() if framework == "torch" else w[...])
                for k, w in _parameters(model, framework)
            }
        )
    for name, w in found[0].items():
        assert w.dtype == np.float32
        assert np.array_equal(w, found[1][name])


def _parameters(model, framework):
    return twin(framework, "layers").named_parameters(model).items()


def test_training_starts_from_half_precision_in_full(half):
    names = [key.removeprefix("model/") for key in checkpoints.read(half[0]).tensors]
    weights, config = read_initial_weights(half[0], names)
    assert config == CONFIG
    assert {w.dtype for w in weights.values()} == {np.dtype(np.float32)}


def test_the_released_weights_are_the_default(half, capsys):
    separator = twinsep.load()
    assert separator.config == CONFIG
    song = np.zeros((2, 3000), np.float32)
    assert not any(stem.any() for stem in separator(song, 44_100).values())
    assert batch.choose_checkpoint(None) == half[0]
    assert batch.choose_checkpoint(Path("other.safetensors")) == Path("other.safetensors")
    assert capsys.readouterr().err == ""


def test_saved_again_they_keep_a_licence_of_their_own(tmp_path, half):
    found = checkpoints.read(half[0])
    licensed = Checkpoint(found.config, found.tensors, 7, provenance={"licence": "see the model card"})
    checkpoints.write(half[0], licensed)
    twinsep.load().save_pretrained(tmp_path / "saved")
    assert "license: mit" not in (tmp_path / "saved" / "README.md").read_text()
    checkpoints.write(half[0], found)
    twinsep.load().save_pretrained(tmp_path / "mine")
    assert "license: mit" in (tmp_path / "mine" / "README.md").read_text()


def test_without_released_weights_a_sentence_says_what_to_name(tmp_path, monkeypatch):
    monkeypatch.setattr(released, "PATH", tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="comes without trained weights: name a checkpoint or a preset"):
        twinsep.load()
    monkeypatch.setattr(batch, "BASE_CHECKPOINT", Path("base.safetensors"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="train it with"):
        batch.choose_checkpoint(None)
    Path("base.safetensors").touch()
    assert batch.choose_checkpoint(None) == Path("base.safetensors")


def test_a_weight_beyond_float16_is_refused():
    with pytest.raises(InputError, match="'b' does not fit"):
        released.half_precision({"a": np.ones(2, np.float32), "b": np.full(2, 1e5, np.float32)})


def test_weights_come_from_a_checkpoint_or_a_system():
    assert choose_weights(None, None) is None
    assert choose_weights(Path("a"), None) == Path("a")
    assert choose_weights(None, "htdemucs") == Path("htdemucs")
    assert batch.choose_checkpoint(choose_weights(None, "htdemucs")) == "htdemucs"
    with pytest.raises(InputError, match="exclude each other"):
        choose_weights(Path("a"), "htdemucs")
