"""Initial weights of a training: ours, and files of other trainers with their prefixes."""

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from torch_impl.train import Trainer
from twinsep import checkpoints
from twinsep.checkpoints import Checkpoint, strip
from twinsep.checkpoints.initial import read_initial_weights, unwrap
from twinsep.errors import InputError


@pytest.fixture
def weights(micro):
    return strip(Trainer(micro).state(), "model")


def tensors(weights, prefix="", factor=1):
    return {f"{prefix}{name}": factor * torch.from_numpy(array) for name, array in weights.items()}


WRAPPED = {
    "DistributedDataParallel": lambda w: tensors(w, "module."),
    "torch.compile": lambda w: {"model": tensors(w, "_orig_mod.")},
    "both": lambda w: {"model_state_dict": tensors(w, "module._orig_mod.")},
    "compiled parts": lambda w: {name.replace(".", "._orig_mod.", 1): x for name, x in tensors(w).items()},
    "Lightning": lambda w: {"state_dict": tensors(w, "model.") | {"loss.window": torch.ones(4)}, "epoch": 3},
    "AveragedModel": lambda w: {"n_averaged": torch.tensor(7)} | tensors(w, "module."),
    "ema_pytorch": lambda w: (
        {"initted": torch.ones(1), "step": torch.tensor([9])}
        | tensors(w, "online_model.", 2)
        | tensors(w, "ema_model.")
    ),
    "two models": lambda w: {"model": tensors(w, "", 2), "ema": {"shadow": tensors(w)}, "optimizer": {"state": {0: 1}}},
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_prefixes_of_other_trainers_are_understood(weights, tmp_path, wrapped):
    torch.save(WRAPPED[wrapped](weights), tmp_path / "other.ckpt")
    found, config = read_initial_weights(tmp_path / "other.ckpt", list(weights))
    assert config is None
    checkpoints.check_names(found, {name: w.shape for name, w in weights.items()}, "other.ckpt")
    assert all(np.array_equal(found[name], weights[name]) for name in weights)


def test_weights_in_half_precision_without_metadata_are_read(weights, tmp_path):
    save_file({f"module.{name}": w.astype(np.float16) for name, w in weights.items()}, tmp_path / "w.safetensors")
    found, _ = read_initial_weights(tmp_path / "w.safetensors", list(weights))
    assert found.keys() == weights.keys()
    assert {w.dtype for w in found.values()} == {np.dtype("float32")}


def test_averaged_weights_of_our_checkpoints_are_taken_with_their_configuration(micro, tmp_path):
    state = {name: w + name.startswith("ema/") for name, w in Trainer(micro).state().items()}
    checkpoints.write(tmp_path / "w.safetensors", Checkpoint(micro, state))
    found, config = read_initial_weights(tmp_path / "w.safetensors", [])
    assert config == micro
    assert all(np.array_equal(w, state[f"ema/{name}"]) for name, w in found.items())


def test_what_belongs_to_another_model_is_kept_for_the_check_of_names(weights, micro):
    found = unwrap({f"module.{name}": w for name, w in weights.items()} | {"module.extra": np.ones(1)}, min(weights))
    with pytest.raises(InputError, match="weight 'extra' has no place"):
        Trainer(micro).start_from(found, "x")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("w.ckpt", {"state_dict": {"conv.weight": torch.ones(2)}}, "holds no weight of this model; run `twinsep conv"),
        ("w.npz", {}, "unknown kind of file; choose one of .safetensors, .bin"),
        (None, {}, "does not exist"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, sentence):
    if name:
        torch.save(content, tmp_path / name)
    with pytest.raises(InputError, match=sentence):
        read_initial_weights(tmp_path / (name or "w.ckpt"), ["band_split.weight"])
