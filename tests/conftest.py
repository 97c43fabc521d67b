"""Fixtures that several test files share."""

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("twinsep", deadline=None, derandomize=True)
settings.load_profile("twinsep")


def _numpy():
    import array_api_compat.numpy as xp

    return xp, lambda a: np.asarray(a)


def _torch():
    import array_api_compat.torch as xp
    import torch

    return xp, lambda a: torch.from_numpy(np.array(a))


def _jax():
    import jax.numpy as xp

    return xp, lambda a: xp.asarray(a)


@pytest.fixture(params=["numpy", "torch", "jax"])
def xp(request):
    """(namespace, converter from NumPy) of one array library; JAX in float64 as well as float32."""
    if request.param == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
        yield _jax()
        jax.config.update("jax_enable_x64", False)
    else:
        yield {"numpy": _numpy, "torch": _torch}[request.param]()
