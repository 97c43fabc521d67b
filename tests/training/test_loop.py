"""A twin's training step against its definition, and the training loop around it."""

import json

import numpy as np
import pytest
import torch

from torch_impl import load
from torch_impl.layers import named_parameters
from torch_impl.train import Trainer
from twinsep import checkpoints, losses
from twinsep.data.loader import TrainingBatches
from twinsep.errors import InputError, NonFiniteLossError
from twinsep.training.loop import RunOptions, train
from twinsep.training.run_dir import BEST, LAST


def first_batch(config):
    with iter(TrainingBatches(config)) as stream:
        return next(stream)


def test_a_step_is_clipped_adamw_and_updates_the_average(micro):
    config = micro.override({"training": {"clip_norm": 0.01, "weight_decay": 0.1, "beta2": 0.95, "eps": 1e-4}})
    t = config.training
    trainer, batch = Trainer(config), first_batch(config)
    names = named_parameters(trainer.model)
    before = {name: w.detach().double().clone() for name, w in names.items()}
    total, _ = trainer.loss(trainer.model, batch)
    grads = dict(zip(names, (g.double() for g in torch.autograd.grad(total, list(names.values()))), strict=True))
    norm = torch.sqrt(sum(g.square().sum() for g in grads.values()))
    report = trainer.step([batch], 0.01, 0.75)
    assert report["loss"] == pytest.approx(total.item(), rel=1e-6)
    assert report["gradient_norm"] == pytest.approx(norm.item(), rel=1e-5)
    assert norm > t.clip_norm
    for name, w in names.items():
        g = grads[name] * t.clip_norm / norm
        # first step: m̂ = g, v̂ = g²
        expected = before[name] * (1 - 0.01 * t.weight_decay * w.decay) - 0.01 * g / (g.abs() + t.eps)
        error = (w.detach().double() - expected).abs()
        # eps is as large as the gradient, or Adam's first step would not depend on the scale of the clipped gradient
        assert error.max() < 2e-5
        average = 0.75 * before[name] + 0.25 * w.detach().double()
        assert (named_parameters(trainer.average)[name].double() - average).abs().max() < 1e-6


def test_accumulation_averages_gradients(micro):
    # Without the loudness weight, which depends on the whole batch, two halves equal one whole.
    whole = micro.override({"loss": {"loudness_weighting": False}, "training": {"batch_size": 2}})
    batch = first_batch(whole)
    halves = [{key: batch[key][i : i + 1] for key in ("mixture", "target", "song")} for i in (0, 1)]
    a, b = Trainer(whole), Trainer(whole)
    ra, rb = a.step([batch], 1e-3, 0.5), b.step(halves, 1e-3, 0.5)
    assert ra["loss"] == pytest.approx(rb["loss"], rel=1e-5)
    assert ra["gradient_norm"] == pytest.approx(rb["gradient_norm"], rel=1e-4)


def test_a_loss_that_is_not_finite_changes_nothing(micro):
    trainer, batch = Trainer(micro), first_batch(micro)
    before = trainer.state()
    bad = dict(batch, mixture=np.full_like(batch["mixture"], np.nan))
    assert np.isnan(trainer.step([bad], 1e-3, 0.5)["loss"])
    after = trainer.state()
    assert all(np.array_equal(before[name], after[name]) for name in before)


def test_training_in_bfloat16_lowers_the_loss(micro):
    config = micro.override({"training": {"precision": "bfloat16"}})
    trainer, batch = Trainer(config), first_batch(config)
    reports = [trainer.step([batch], 3e-3, 0.5) for _ in range(8)]
    assert all(np.isfinite(list(r.values())).all() for r in reports)
    assert reports[-1]["loss"] < reports[0]["loss"]


@pytest.mark.parametrize("kind", ["mamba", "transformer"])
def test_repeated_steps_on_one_batch_lower_its_loss(micro, kind):
    config = micro.override({"model": {"mixer": {"kind": kind}}})
    trainer, batch = Trainer(config), first_batch(config)
    values = [trainer.step([batch], 1e-2, 0.5)["loss"] for _ in range(40)]
    assert values[-1] < 0.8 * values[0]


def test_a_run_writes_its_checkpoints_record_and_logs(micro, tmp_path, capsys):
    record = train(micro, tmp_path / "run")
    found = {path.relative_to(tmp_path / "run").as_posix() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert {LAST, BEST, "run.json", "live/metrics.json", "live/plots/metrics/train/loss.tsv"} <= found
    assert record == json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["hash"] == micro.hash
    assert {"command", "commit", "device", "versions", "configuration", "peak_memory_mib"} <= record.keys()
    last, best = (checkpoints.read(tmp_path / "run" / name) for name in (LAST, BEST))
    assert last.step == 4
    assert {name.split("/")[0] for name in last.tensors} == {"model", "ema", "adam_m", "adam_v"}
    assert {name.split("/")[0] for name in best.tensors} == {"ema"}
    assert load(tmp_path / "run" / BEST).config == micro
    assert "4/4" in capsys.readouterr().err


def test_a_resumed_run_ends_like_an_uninterrupted_one(micro, tmp_path, stopping, capsys):
    train(micro, tmp_path / "whole")
    with stopping(Trainer, 4) as ended:
        train(micro, tmp_path / "parts")
    assert str(ended.value) == "interrupted at step 3 of 4: the same command resumes from the last checkpoint"
    assert checkpoints.read(tmp_path / "parts" / LAST).step == 2
    train(micro, tmp_path / "parts")
    assert "at step 2 of 4" in capsys.readouterr().err
    a, b = (checkpoints.read(tmp_path / name / LAST) for name in ("whole", "parts"))
    assert (a.step, a.data) == (b.step, b.data)
    assert all(np.array_equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_interrupted_before_its_first_checkpoint_starts_again(micro, tmp_path, stopping, finished):
    """Even if an older run is to be overwritten: its checkpoint is not the new one's."""
    if finished:
        train(micro, tmp_path / "run")
    with stopping(Trainer, 2) as ended:
        train(micro, tmp_path / "run", RunOptions(overwrite=True))
    assert str(ended.value) == "interrupted at step 1 of 4, before the first checkpoint: the same command starts again"
    assert not (tmp_path / "run").exists()


def test_an_occupied_folder_is_left_alone_without_overwrite(micro, tmp_path):
    train(micro, tmp_path)
    written = (tmp_path / LAST).read_bytes()
    other = micro.override({"training": {"seed": 1}})
    for config, sentence in [(micro, "a finished run"), (other, "a run of another configuration")]:
        with pytest.raises(InputError, match=f"holds {sentence}: choose another --out, or pass --overwrite"):
            train(config, tmp_path)
    assert (tmp_path / LAST).read_bytes() == written
    train(other, tmp_path, RunOptions(overwrite=True))
    assert checkpoints.read(tmp_path / LAST).config == other


def test_a_loss_of_nan_ends_the_run_and_names_step_and_songs(micro, tmp_path, monkeypatch):
    step = Trainer.step
    monkeypatch.setattr(
        Trainer,
        "step",
        lambda self, batches, *rest: step(
            self,
            [dict(b, mixture=b["mixture"] * (np.nan if sum(b["index"]) == 2 else 1)) for b in batches],
            *rest,
        ),
    )
    with pytest.raises(NonFiniteLossError, match=r"step 3: loss nan.*batch of .*last good checkpoint is"):
        train(micro, tmp_path)
    assert checkpoints.read(tmp_path / LAST).step == 2


def test_a_run_that_fails_before_its_first_checkpoint_leaves_nothing(micro, tmp_path, monkeypatch):
    def fail(*_):
        raise InputError("a song is damaged")

    monkeypatch.setattr(Trainer, "step", fail)
    with pytest.raises(InputError, match="damaged"):
        train(micro, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_data_is_reported_before_anything_is_written(micro, tmp_path):
    missing = micro.override({"data": {"root": str(tmp_path / "nowhere")}})
    with pytest.raises(InputError, match="nowhere"):
        train(missing, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_loss_of_a_residual_model_is_that_of_its_targets(micro):
    batch = first_batch(micro)
    plain, residual = Trainer(micro), Trainer(micro.override({"model": {"residual": True}}))
    assert plain.loss(plain.model, batch)[0].item() == residual.loss(residual.model, batch)[0].item()
    estimate = plain.model(torch.from_numpy(batch["mixture"]))
    total, _ = losses.mix(
        estimate, torch.from_numpy(batch["target"]), mixture=torch.from_numpy(batch["mixture"]), config=micro
    )
    assert plain.loss(plain.model, batch)[0].item() == total.item()
