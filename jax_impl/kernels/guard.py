"""Check of the selective scan's GPU kernel against its definition, as :mod:`torch_impl.kernels.guard` does.

A kernel built for another GPU, or by another compiler, may run and return wrong numbers. It is therefore used only
after its values and gradients on small random inputs agree with JAX's own operations on the same device.
"""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from twinsep.kernels.agreement import disagreement, sentence

Kernel = Callable[..., Array]

NAMES = ("u", "delta", "A", "B", "C", "D", "z")
#: Shapes (b, l, e, n) of the check, with and without gate: more sequences than programs; several chunks and blocks.
SAMPLES = ((2050, 3, 40, 8), (2, 70, 144, 16))


def checked(name: str, load: Callable[[], Kernel], definition: Kernel) -> Kernel | None:
    """Return the kernel that ``load`` imports if it agrees with ``definition``; else None, with one warning."""
    # A thread of its own is outside of the transformations, meshes and default devices of the caller.
    with ThreadPoolExecutor(1) as thread:
        kernel, reason = thread.submit(_load_and_compare, load, definition).result()
    if reason is not None:
        warnings.warn(f"{name} is not used: {reason}.", RuntimeWarning, stacklevel=4)
        return None
    return kernel


def _load_and_compare(load: Callable[[], Kernel], definition: Kernel) -> tuple[Kernel | None, str | None]:
    try:
        kernel = load()
    except Exception as error:  # a JAX without this part of Pallas, or an incompatible one, can raise anything
        return None, f"it cannot be imported ({sentence(error)})"
    try:
        for gated, shape in zip((True, False), SAMPLES, strict=True):
            inputs = _sample(*shape, gated)
            found, exact = (_values_and_gradients(function, inputs) for function in (kernel, definition))
            reason = disagreement(found, exact, f"a test on {jax.local_devices()[0].device_kind}")
            if reason is not None:
                return kernel, reason
    except Exception as error:  # so can a kernel that the GPU cannot run
        return None, f"it fails on this device ({sentence(error)})"
    return kernel, None


def _sample(b: int, l: int, e: int, n: int, gated: bool) -> dict[str, np.ndarray]:
    """Random inputs with the value range of an initialised model, in float32."""
    rng = np.random.default_rng(2)
    A = -np.arange(1, n + 1) * np.exp(0.3 * rng.standard_normal((e, 1)))
    u, delta, z = rng.standard_normal((3, b, l, e))
    B, C = rng.standard_normal((2, b, l, n))
    arrays = (u, np.log1p(np.exp(delta - 2)), A, B, C, rng.standard_normal(e), z)
    named = dict(zip(NAMES, arrays[: 7 if gated else 6], strict=False))
    return {name: x.astype(np.float32) for name, x in named.items()}


def _values_and_gradients(function: Kernel, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """y, and the gradients of all inputs for a fixed random cotangent of y."""

    @jax.jit
    def run(dy: Array, *arrays: Array) -> tuple[Array, ...]:
        y, pull = jax.vjp(function, *arrays)
        return y, *pull(dy)

    dy = np.random.default_rng(1).standard_normal(inputs["u"].shape, np.float32)
    results = run(*(jnp.asarray(x) for x in (dy, *inputs.values())))
    return {name: np.asarray(x) for name, x in zip(("y", *inputs), results, strict=True)}
