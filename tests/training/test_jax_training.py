"""Training in JAX, and runs and checkpoints that pass from one framework to the other."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ablations.comparison import TOLERANCE, distance
from jax_impl.network import BandSplitNetwork
from jax_impl.train import Trainer as JaxTrainer
from torch_impl.train import Trainer as TorchTrainer
from twinsep import checkpoints
from twinsep.data.loader import TrainingBatches
from twinsep.errors import InputError
from twinsep.separation.overlap_add import ChunkGrid, apply_model
from twinsep.training.loop import RunOptions, train
from twinsep.training.run_dir import LAST

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def micro(micro):
    """The mixer that compiles fastest; other tests compare every mixer."""
    return micro.override({"model": {"mixer": {"kind": "conv", "kernel": 3}, "memory_tokens": [0, 0, 0, 0]}})


def first_batch(config):
    with iter(TrainingBatches(config)) as stream:
        return next(stream)


@pytest.mark.parametrize(("first", "then"), [("torch", "jax"), ("jax", "torch")])
def test_a_run_resumes_in_the_other_framework(micro, tmp_path, first, then, stopping):
    """Weights, average, moments, step and data position carry over: the run ends as in the first framework."""
    whole = train(micro, tmp_path / "whole", RunOptions(framework=first))
    trainer = importlib.import_module(f"{first}_impl.train").Trainer
    with stopping(trainer, 4):
        train(micro, tmp_path / "parts", RunOptions(framework=first))
    assert checkpoints.read(tmp_path / "parts" / LAST).step == 2
    parts = train(micro, tmp_path / "parts", RunOptions(framework=then))
    assert parts["validation"] == pytest.approx(whole["validation"], rel=1e-3)
    wanted, found = (checkpoints.read(tmp_path / name / LAST) for name in ("whole", "parts"))
    assert (found.step, found.data, found.config) == (wanted.step, wanted.data, wanted.config)
    for prefix in ("model/", "ema/"):
        assert distance(found.tensors, wanted.tensors, prefix) <= TOLERANCE["steps"]["float32"]


def test_a_checkpoint_passes_through_both_frameworks_unchanged(micro, tmp_path):
    start = TorchTrainer(micro)
    start.step([first_batch(micro)], 1e-2, 0.5)
    tensors = start.state()
    for trainer in (JaxTrainer(micro), TorchTrainer(micro), JaxTrainer(micro)):
        checkpoints.write(tmp_path / "file", checkpoints.Checkpoint(micro, tensors, 1))
        trainer.restore(checkpoints.read(tmp_path / "file").tensors, 1)
        tensors = trainer.state()
    last = start.state()
    assert tensors.keys() == last.keys()
    assert all(np.array_equal(tensors[name], last[name]) for name in last)


def test_a_loss_that_is_not_finite_changes_nothing_in_jax(micro):
    trainer = JaxTrainer(micro)
    batch = first_batch(micro)
    trainer.step([batch], 1e-3, 0.5)
    before = trainer.state()
    bad = dict(batch, mixture=np.full_like(batch["mixture"], np.nan))
    assert np.isnan(trainer.step([bad], 1e-3, 0.5)["loss"])
    after = trainer.state()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert trainer.moments.count == 1


def test_the_model_is_compiled_once_for_a_song(micro, monkeypatch):
    """All chunks have one shape, including the last one."""
    traced = []
    call = BandSplitNetwork.__call__
    monkeypatch.setattr(BandSplitNetwork, "__call__", lambda self, x: (traced.append(x.shape), call(self, x))[1])
    trainer = JaxTrainer(micro)
    song = (0.1 * np.random.default_rng(0).standard_normal((2, 47_111))).astype(np.float32)
    assert apply_model(trainer.estimate, song, ChunkGrid(15_000)).shape == (1, 2, 47_111)
    assert len(traced) == 1


def test_both_twins_start_from_the_same_weights(micro):
    a, b = TorchTrainer(micro).state(), JaxTrainer(micro).state()
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_rematerialisation_recomputes_each_stage(micro):
    stages = ["enc1", "enc2", "enc3", "bottleneck", "dec3", "dec2", "dec1"]
    trainer = JaxTrainer(micro.override({"model": {"levels": 3}, "training": {"rematerialise": stages}}))
    batch = first_batch(micro)
    arrays = (jnp.asarray(batch[key]) for key in ("mixture", "target"))
    assert str(jax.make_jaxpr(trainer.loss)(trainer.weights, {}, *arrays)).count("remat") >= len(stages)


def test_restoring_another_model_is_refused(micro):
    tensors = JaxTrainer(micro).state()
    with pytest.raises(InputError, match="has shape"):
        JaxTrainer(micro.override({"model": {"d_model": 12}})).restore(tensors, 1)
