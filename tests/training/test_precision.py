"""Three precisions on extreme inputs in both twins: losses and gradients stay finite, and float16 finds its scale."""

import importlib

import numpy as np
import pytest

from ablations.comparison import distance
from twinsep.data.loader import TrainingBatches
from twinsep.training.loss_scale import LossScale


@pytest.fixture
def micro(micro):
    """The smallest model with a scan and all levels, because sums of attention can overflow too."""
    mixer = {"kind": "mamba", "d_state": 4, "directions": 1}
    model = {"mixer": mixer, "memory_tokens": [0, 0, 0, 0], "levels": 3}
    return micro.override({"model": model, "training": {"segment_seconds": 0.2}})


def trainer(framework, config):
    return importlib.import_module(f"{framework}_impl.train").Trainer(config)


@pytest.fixture(scope="module")
def in_float32():
    """in_float32(framework, config): the float32 trainer, made once and reset to its initial state."""
    made = {}

    def find(framework, config):
        if framework not in made:
            new = trainer(framework, config)
            made[framework] = new, new.state()
        exact, start = made[framework]
        exact.restore(start, 0)
        return exact

    return find


def first_batch(config):
    with iter(TrainingBatches(config)) as stream:
        return next(stream)


def extremes(config):
    """Silence, a square wave at full scale, and noise below the last bit of 16-bit sound."""
    shape = (1, 2, config.segment_samples)
    square = np.sign(np.sin(2 * np.pi * 110 * np.arange(shape[2]) / 44_100))
    rng = np.random.default_rng(0)
    signals = (np.zeros(shape), np.broadcast_to(square, shape), 1e-6 * rng.standard_normal(shape))
    return [{"mixture": x.astype(np.float32), "target": 0.5 * x[:, None].astype(np.float32)} for x in signals]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_extreme_inputs_give_finite_losses_and_gradients(micro, in_float32, framework, precision):
    config = micro.override({"training": {"precision": precision}})
    subject, exact = trainer(framework, config), in_float32(framework, micro)
    check_finite(subject, config)
    if precision == "bfloat16":  # float32 needs checking only once
        check_finite(exact, micro)
    check_near_float32(subject, exact, first_batch(config))
    if precision == "float16":
        check_scale_is_kept_and_restored(subject, first_batch(config))


def check_finite(subject, config):
    for batch in extremes(config):
        for _ in range(20):  # float16 may have to find its scale first
            report = subject.step([batch], 1e-4, 0.5)
            assert np.isfinite(report["loss"])
            if np.isfinite(report["gradient_norm"]):
                break
        assert np.isfinite(list(report.values())).all()
    assert all(np.isfinite(x).all() for x in subject.state().values())
    assert ("loss_scale" in report) == (config.training.precision == "float16")


def check_near_float32(subject, exact, batch):
    """One step from equal weights ends near the float32 step, in float16 at any scale."""
    state = exact.state()
    for scale in (LossScale(1.0), LossScale(2.0**10)) if subject.scale else (None,):
        subject.restore(state | (scale.tensors() if scale else {}), 0)
        found = subject.step([batch], 1e-3, 0.5)
        exact.restore(state, 0)
        wanted = exact.step([batch], 1e-3, 0.5)
        assert found["loss"] == pytest.approx(wanted["loss"], rel=0.02)
        assert found["loss"] != wanted["loss"]
        after = {name: x for name, x in subject.state().items() if not name.startswith("scaler/")}
        assert 0 < distance(after, exact.state(), "model/") < 1e-2
        assert all(x.dtype == np.float32 for x in after.values())


def check_scale_is_kept_and_restored(subject, batch):
    # A step whose gradients overflow changes only the scale.
    subject.scale = LossScale(2.0**100, 5, 1)
    before = subject.state()
    report = subject.step([batch], 1e-3, 0.5)
    assert np.isfinite(report["loss"])
    assert not np.isfinite(report["gradient_norm"])
    after = subject.state()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"scaler/scale", "scaler/good"}
    assert subject.scale == LossScale(2.0**99, 0, 1)
    # A restored trainer continues identically, including the count of Adam's updates.
    results = []
    for step in (0, 2):
        if step:
            subject.restore(after, step)
        subject.scale = LossScale(1.0, 0, 1)
        subject.step([batch], 1e-3, 0.5)
        results.append(subject.state())
    assert distance(*results) == 0


def test_the_scale_doubles_after_2000_finite_steps_and_halves_after_an_overflow():
    scale = LossScale(4.0)
    for _ in range(1999):
        scale = scale.after(True)
    assert scale == LossScale(4.0, 1999, 1999)
    assert scale.after(True) == LossScale(8.0, 0, 2000)
    assert scale.after(False) == LossScale(2.0, 0, 1999)
    assert LossScale.restored(scale.tensors()) == scale
