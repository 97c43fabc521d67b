"""``twinsep train --init``: where a run starts, what its record says, and what resumes."""

import json

import numpy as np
import pytest

from twinsep import checkpoints
from twinsep.checkpoints import Checkpoint, strip
from twinsep.errors import InputError
from twinsep.training.loop import RunOptions, train
from twinsep.utils.backend import twin

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def weights(micro, tmp_path):
    """A checkpoint of other weights than those that the seed draws."""
    path, trainer = tmp_path / "weights.safetensors", twin("torch", "train").Trainer
    checkpoints.write(path, Checkpoint(micro, trainer(micro.override({"training": {"seed": 5}})).state()))
    return path


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_trainer_takes_weights_and_average(micro, weights, framework):
    trainer = twin(framework, "train").Trainer(micro)
    wanted = strip(checkpoints.read(weights).tensors, "ema")
    assert any(not np.array_equal(w, wanted[name]) for name, w in strip(trainer.state(), "model").items())
    trainer.start_from(wanted, "weights")
    for prefix in ("model", "ema"):
        found = strip(trainer.state(), prefix)
        assert all(np.array_equal(w, wanted[name]) for name, w in found.items())
    with pytest.raises(InputError, match=r"^weights: no weight"):
        trainer.start_from({}, "weights")


def test_a_run_starts_from_the_weights_and_says_so(micro, weights, tmp_path, capsys, stopping):
    config = micro.override({"training": {"learning_rate": 1e-12, "steps": 4}})
    options, folder = RunOptions(init=weights), tmp_path / "run"
    with stopping(twin("torch", "train").Trainer, 3):
        train(config, folder, options)
    assert f"starting from the weights of {weights}" in capsys.readouterr().err.replace("\n", "")
    with pytest.raises(InputError, match=r"unfinished run of other initial weights \(--init\)"):
        train(config, folder)
    train(config, folder, options)
    assert "resuming" in capsys.readouterr().err
    record = json.loads((folder / "run.json").read_text())
    assert record["init"]["file"] == str(weights)
    assert len(record["init"]["sha256"]) == 64
    wanted = strip(checkpoints.read(weights).tensors, "model")
    found = checkpoints.read(folder / "final.safetensors").weights("ema")
    assert all(np.abs(found[name] - w).max() < 1e-6 for name, w in wanted.items())


def test_a_model_with_other_settings_is_named(micro, weights, tmp_path, capsys):
    other = micro.override({"model": {"hop": micro.model.hop // 2}, "training": {"steps": 1, "validate_every": 1}})
    train(other, tmp_path / "run", RunOptions(init=weights))
    said = capsys.readouterr().err.replace("\n", "")
    assert f"was trained with model.hop {micro.model.hop}, this run has {other.model.hop}" in said
