"""Mid and side of stereo signals."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from twinsep.model.stereo import left_right, mid_side


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy, jnp.asarray], ids=["numpy", "torch", "jax"])
def test_mid_and_side_are_half_sum_and_half_difference(convert):
    left, right = np.float32([1, 2, 3]), np.float32([1, 0, -3])
    x = convert(np.stack([left, right])[None])  # (1, 2, 3)
    np.testing.assert_array_equal(np.asarray(mid_side(x))[0], [[1, 1, 0], [0, 1, 3]])
    np.testing.assert_array_equal(np.asarray(left_right(mid_side(x))), np.asarray(x))


def test_autocast_does_not_round_them():
    x = torch.rand(2, 2, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert left_right(mid_side(x)).dtype == torch.float32
        torch.testing.assert_close(left_right(mid_side(x)), x, rtol=1e-6, atol=1e-6)
