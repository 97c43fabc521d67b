"""Computations that a worker prepares once and calls repeatedly; each function here returns one, without arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from twinsep.config import from_dict
from twinsep.utils.backend import twin

#: A prepared computation; it returns when its result is ready.
Compute = Callable[[], Any]


def noise(*shape: int, seed: int) -> np.ndarray:
    """White noise of ``shape`` in float32, with a root mean square of 0.1."""
    return (0.1 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def scan(
    framework: str, shape: list[int], way: str, backward: bool, device: str = "cpu", dtype: str = "float32"
) -> Compute:
    """Prepare the selective scan at ``shape`` (b, l, e, n), forward only or with all gradients.

    ``way`` names the implementation: "default", "definition", one of JAX's chunked scans, or in PyTorch "chunked" or
    the scan of another package, see ``torch_impl/baselines/scans.py``. ``dtype`` is that of u, Δ, B, C and z. On a GPU
    the function may return before its result is ready, see :func:`waiter`.
    """
    module = twin(framework, "scan")
    named = {"default": module.selective_scan, "definition": module.selective_scan_sequential}
    if framework == "torch":
        named["chunked"] = module.selective_scan_chunked
    if framework == "torch" and way not in named:
        function = twin("torch", "baselines.scans").load_scan(way)
    else:
        function = named.get(way) or partial(module.selective_scan_chunked, method=way)
    b, l, e, n = shape
    u, z, dy = (noise(b, l, e, seed=seed) for seed in range(3))
    B, C = noise(b, l, n, seed=3), noise(b, l, n, seed=4)
    delta, A = np.abs(noise(b, l, e, seed=5)), -1 - np.abs(noise(e, n, seed=6))
    arrays = [u, delta, A, B, C, noise(e, seed=7), z]
    if framework == "jax":
        return _scan_in_jax(function, arrays, dy, backward, dtype)
    return _scan_in_torch(function, arrays, dy, backward, device, dtype)


def waiter(framework: str) -> Callable[[Any], Any]:
    """Return the function that waits until a computation's results are ready."""
    if framework == "jax":
        import jax

        return jax.block_until_ready
    import torch

    return lambda _: torch.cuda.synchronize() if torch.cuda.is_available() else None


def _scan_in_torch(
    function: Any, arrays: list[np.ndarray], dy: np.ndarray, backward: bool, device: str, dtype: str
) -> Compute:
    import torch

    kinds = [getattr(torch, dtype if x.ndim == 3 else "float32") for x in arrays]
    inputs = [
        torch.from_numpy(x).to(device, kind).requires_grad_(backward) for x, kind in zip(arrays, kinds, strict=True)
    ]
    dy_t = torch.from_numpy(dy).to(device, getattr(torch, dtype))
    return lambda: torch.autograd.grad(function(*inputs), inputs, dy_t) if backward else function(*inputs)


def _scan_in_jax(function: Any, arrays: list[np.ndarray], dy: np.ndarray, backward: bool, dtype: str) -> Compute:
    import jax
    import jax.numpy as jnp

    typed = [jnp.asarray(x, dtype if x.ndim == 3 else "float32") for x in arrays]
    inputs, dy_j = jax.block_until_ready((typed, jnp.asarray(dy, dtype)))
    forward = jax.jit(function)
    both = jax.jit(lambda inputs, dy: jax.vjp(function, *inputs)[1](dy))
    return lambda: jax.block_until_ready(both(inputs, dy_j) if backward else forward(*inputs))


def block(framework: str, config: dict[str, Any], frames: int, backward: bool, looped: bool = False) -> Compute:
    """Prepare a dual-path block on noise (1, K, ``frames``, D), forward only or with all gradients.

    ``looped`` replaces Mamba's scan by its definition, which PyTorch computes frame by frame.
    """
    model: Any = from_dict(config).model
    module = twin(framework, "blocks").DualPath(model)
    twin(framework, "layers").initialise(module, 0)
    shape = (1, len(model.band_table), frames, model.d_model)
    arrays = noise(*shape, seed=0), noise(*shape, seed=1)
    if looped:
        mixer: Any = twin(framework, "mixers.mamba")
        mixer.fused_mamba = lambda *_: None
        mixer.selective_scan = twin(framework, "scan").selective_scan_sequential
    if framework == "torch":
        import torch

        if backward:
            return layer_in_torch(module, *arrays, ahead=False)()
        x = torch.from_numpy(arrays[0])
        return torch.inference_mode()(lambda: module(x))
    import jax
    from flax import nnx

    if backward:
        return layer_in_jax(module, *arrays)()
    definition, weights = nnx.split(module)
    forward = jax.jit(lambda weights, x: nnx.merge(definition, weights)(x))
    weights, x_j = jax.block_until_ready((weights, jax.device_put(arrays[0])))
    return lambda: jax.block_until_ready(forward(weights, x_j))


def layer_in_torch(module: Any, x: np.ndarray, dy: np.ndarray, *, ahead: bool = True) -> Callable[[], Compute]:
    """Return a function that prepares forward and gradients of ``module`` at ``x``; ``dy`` is the output's gradient.

    With ``ahead`` it first calls them on eight frames of one sequence, which compiles the kernels.
    """
    import torch

    x_t, dy_t = torch.from_numpy(x).requires_grad_(), torch.from_numpy(dy)

    def both(x: Any, dy: Any) -> Any:
        y = module(x)
        return y, torch.autograd.grad(y, [x, *module.parameters()], dy)

    def prepare() -> Compute:
        """Return the computation, called once on the short sequence if ``ahead``."""
        if ahead:
            both(x_t[:1, :8], dy_t[:1, :8])
        return lambda: both(x_t, dy_t)

    return prepare


def layer_in_jax(module: Any, x: np.ndarray, dy: np.ndarray) -> Callable[[], Compute]:
    """Return a function that prepares forward and gradients of ``module`` at ``x``; ``dy`` is the output's gradient.

    It compiles the program, and the kernels by a call on eight frames of one sequence.
    """
    import jax
    from flax import nnx

    definition, weights = nnx.split(module)
    arguments = jax.block_until_ready((weights, *jax.device_put((x, dy))))

    def both(weights: Any, x: Any, dy: Any) -> Any:
        y, pull = jax.vjp(lambda weights, x: nnx.merge(definition, weights)(x), weights, x)
        return y, pull(dy)

    def prepare() -> Compute:
        """Return the compiled computation."""
        jax.block_until_ready(jax.jit(both)(arguments[0], x[:1, :8], dy[:1, :8]))  # the kernels
        compiled = jax.jit(both).lower(*arguments).compile()
        return lambda: jax.block_until_ready(compiled(*arguments))

    return prepare
