"""The losses of magnitudes by the CPU kernel against their definitions: values and gradients."""

import numpy as np
import pytest
import torch

from torch_impl import kernels, train
from torch_impl.kernels.spectral_numba import SERIAL
from twinsep import losses
from twinsep.config import preset

CONFIG = preset("tiny")
TERMS = ("magnitude", "band")
SAMPLES = 9000
NOISE = np.random.default_rng(0).standard_normal((2, 3, 2, 2, SAMPLES)) * 0.1
PAIRS = {
    "noise": (NOISE[0], NOISE[1]),
    "full scale": (np.sign(NOISE[0]), np.sign(NOISE[1])),
    "equal": (NOISE[0], NOISE[0]),
    "one stem equal, one channel silent": (
        np.where(np.arange(3)[:, None, None, None] == 0, NOISE[0], NOISE[1] * [[0], [1]]),
        NOISE[0],
    ),
    "both silent": (0 * NOISE[0], 0 * NOISE[0]),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def config(term, bands="vocal72"):
    return CONFIG.override({"loss": {"weights": {term: 1.0}, "loudness_weighting": False, "bands": bands}})


def in_torch(term, estimate, target, *, kernel=True, **options):
    leaf = torch.tensor(estimate, requires_grad=True)
    own = kernels.cpu_kernels() if kernel else None
    total, _ = losses.mix(leaf, torch.tensor(target), mixture=None, config=config(term, **options), kernels=own)
    total.backward()
    return total.item(), leaf.grad.numpy()


def assert_agrees(found, wanted):
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-12, atol=1e-15)
    assert np.linalg.norm(found[1] - wanted[1]) <= 1e-11 * np.linalg.norm(wanted[1])


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("term", TERMS)
def test_agrees_with_the_definition(term, pair):
    """A gradient is 0 where the magnitudes are equal and where the estimate is silent."""
    assert_agrees(in_torch(term, *PAIRS[pair]), in_torch(term, *PAIRS[pair], kernel=False))


def test_bins_outside_every_band_do_not_count():
    arguments = "band", *PAIRS["noise"]
    wanted = in_torch(*arguments, kernel=False, bands="reference68")
    assert_agrees(in_torch(*arguments, bands="reference68"), wanted)


def test_the_two_gradients_add_up():
    both = {"weights": dict.fromkeys(TERMS, 0.5), "loudness_weighting": False}
    leaf = torch.tensor(NOISE[0], requires_grad=True)
    options = {"mixture": None, "config": CONFIG.override({"loss": both}), "kernels": kernels.cpu_kernels()}
    losses.mix(leaf, torch.tensor(NOISE[1]), **options)[0].backward()
    wanted = sum(0.5 * in_torch(term, *PAIRS["noise"], kernel=False)[1] for term in TERMS)
    np.testing.assert_allclose(leaf.grad.numpy(), wanted, atol=1e-12 * np.abs(wanted).max())


def test_the_sum_is_nan_if_a_sample_is():
    estimate = NOISE[0].copy()
    estimate[1, 0, 1, 5000] = np.nan
    assert all(np.isnan(in_torch(term, estimate, NOISE[1])[0]) for term in TERMS)


def test_training_uses_the_kernel_unless_own_operations_are_wanted(monkeypatch):
    trainer = train.Trainer(CONFIG.override({"model": {"levels": 0}}), "cpu")
    seen, mix_losses = [], losses.mix
    monkeypatch.setattr(losses, "mix", lambda *x, **given: seen.append(given["kernels"]) or mix_losses(*x, **given))
    batch = {"mixture": np.zeros((1, 2, SAMPLES), np.float32), "target": np.zeros((1, 1, 2, SAMPLES), np.float32)}
    trainer.loss(trainer.model, batch)
    with kernels.own_operations():
        trainer.loss(trainer.model, batch)
    assert seen == [kernels.cpu_kernels(), None]


def test_results_do_not_depend_on_the_number_of_threads():
    assert 3 * 2 * 2 * (1 + SAMPLES // CONFIG.model.hop) * CONFIG.model.n_bins > SERIAL
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append([in_torch(term, *PAIRS["noise"]) for term in TERMS])
    for other in results[1:]:
        for (value, gradient), (first, wanted) in zip(other, results[0], strict=True):
            assert value == first
            assert np.array_equal(gradient, wanted)


def test_operators_pass_opcheck():
    generator = torch.Generator().manual_seed(0)
    estimate, target = (torch.randn(5, 9, dtype=torch.complex128, generator=generator) for _ in range(2))
    weights = torch.rand(9, dtype=torch.float64, generator=generator)
    operators = torch.ops.twinsep
    torch.library.opcheck(operators.spectral_distances, (estimate.requires_grad_(), target, weights, 1e-3))
    slopes = torch.ones(2, dtype=torch.float64)
    arguments = slopes, estimate.detach(), target.abs(), weights, 1e-3
    torch.library.opcheck(operators.spectral_distances_backward, arguments)
