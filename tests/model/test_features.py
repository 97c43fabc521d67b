"""Level features against their definition, in every array library."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from twinsep.model.features import log_levels, reals_per_bin


def spectra(seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, 2, 5, 3)) + 1j * rng.standard_normal((2, 2, 5, 3))


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy, jnp.asarray])
def test_levels_of_left_right_mid_and_side(convert):
    x = spectra()
    left, right = x[:, 0], x[:, 1]
    magnitudes = np.abs(np.stack([left, right, (left + right) / 2, (left - right) / 2], 1))
    np.testing.assert_allclose(np.asarray(log_levels(convert(x))), np.log(magnitudes + 1e-3) / 2, rtol=1e-5, atol=1e-6)


def test_silence_has_the_level_of_the_floor_and_no_gradient():
    reals = torch.zeros(1, 2, 5, 3, 2, requires_grad=True)
    levels = log_levels(torch.view_as_complex(reals))
    assert torch.allclose(levels, torch.full_like(levels, float(np.log(1e-3) / 2)))
    levels.sum().backward()
    assert torch.equal(reals.grad, torch.zeros_like(reals))

    def total(x):
        return log_levels(x[..., 0] + 1j * x[..., 1]).sum()

    assert not np.any(jax.grad(total)(jnp.zeros((1, 2, 5, 3, 2))))


def test_reals_of_a_bin():
    assert (reals_per_bin("complex"), reals_per_bin("complex+level")) == (4, 8)
