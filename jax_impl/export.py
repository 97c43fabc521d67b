"""Networks for other programs, in real numbers and standard operators: StableHLO.

The exported program computes the masks of a spectrum; the program that calls it computes the STFT and its inverse
(:mod:`twinsep.stft`).
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array
from jaxtyping import Float

from jax_impl.bandsplit import MaskHead
from jax_impl.causal_unet import CausalBandSplitUNet
from jax_impl.kernels import own_operations
from jax_impl.network import BandSplitNetwork
from jax_impl.ops import concatenate, pad_axis, stack
from twinsep.errors import InputError
from twinsep.model.export import Program
from twinsep.model.features import REALS, log_levels_of_reals

#: Formats that this framework writes.
FORMATS = ("stablehlo",)
#: Where the programs run.
PLATFORMS = ("cpu", "cuda", "tpu")


class Masks:
    """Spectra (b, 2, f, t, 2), real and imaginary parts last, to masks (b, targets, 2, f, t, 2)."""

    def __init__(self, model: BandSplitNetwork):
        self.model = model

    def __call__(self, spectrum: Float[Array, "b 2 f t 2"]) -> Float[Array, "b s 2 f t 2"]:
        """Return the masks of a whole spectrum."""
        return masks(self.model, self.model.network(features(self.model, spectrum)))


class Step:
    """One frame (b, 2, f, 2) and the state of a causal network to masks (b, targets, 2, f, 2) and the next state."""

    def __init__(self, model: CausalBandSplitUNet):
        self.model = model
        #: Arrays of the state, flags included, before the first frame.
        self.first, self.tree = jax.tree.flatten(model.start().levels)

    def __call__(self, frame: Float[Array, "b 2 f 2"], *state: Array) -> tuple[Array, ...]:
        """Return the masks of a frame, and the arrays of the next state in the order of ``state``."""
        levels = jax.tree.unflatten(self.tree, state)
        x = features(self.model, frame[:, :, :, None])[:, :, 0]
        if levels is not None:
            x, levels = self.model.step(1, x, levels, [])
        return (masks(self.model, x[:, :, None])[..., 0, :], *jax.tree.leaves(levels))


def features(model: BandSplitNetwork, spectrum: Float[Array, "b 2 f t 2"]) -> Float[Array, "b k t d"]:
    """Return the features of every band and frame, as :class:`jax_impl.bandsplit.BandSplit` does."""
    split = model.band_split
    spectrum = spectrum[:, :, : split.n_bins]
    x = rearrange(spectrum, "b c f t ri -> b t f (c ri)")
    if split.reals > REALS:
        x = concatenate([x, rearrange(log_levels_of_reals(spectrum), "b l f t -> b t f l")], -1)
    return split.embed(x)


def masks(model: BandSplitNetwork, x: Float[Array, "b k t d"]) -> Float[Array, "b s 2 f t 2"]:
    """Return the masks of every target, channel and bin, real and imaginary parts last."""
    head = model.mask_head
    real, imaginary = head.parts(x)
    if isinstance(head, MaskHead):
        magnitude, phase = real, imaginary
        real, imaginary = magnitude * jnp.cos(phase), magnitude * jnp.sin(phase)
    # A bin outside every band has the mask 0.5.
    return stack([pad_axis(real, -2, head.missing, 0.5), pad_axis(imaginary, -2, head.missing)], -1)


def takes_any_length(model: BandSplitNetwork, form: str) -> bool:  # noqa: ARG001
    """Return False: the programs of this framework have one number of frames."""
    return False


def export(model: BandSplitNetwork, form: str, frames: int | None) -> dict[str, Program]:
    """Export a network: "network", for spectra of ``frames`` frames, and of a causal network also "step".

    ``form`` is one of :data:`FORMATS`. Raises :class:`InputError` if a package is missing.
    """
    assert form in FORMATS
    assert frames is not None
    if find_spec("flatbuffers") is None:
        raise InputError("--to stablehlo needs the package flatbuffers; install it with: pip install 'twinsep[export]'")
    spectrum = jnp.zeros((1, 2, model.model.n_bins, frames, 2))
    functions: dict[str, tuple[Any, list[Array]]] = {"network": (Masks(model), [spectrum])}
    if isinstance(model, CausalBandSplitUNet):
        step = Step(model)
        functions["step"] = step, [spectrum[:, :, :, 0], *step.first]
    found = {}
    for name, (function, inputs) in functions.items():
        names = ["spectrum", *(f"state_{i}" for i in range(len(inputs) - 1))]
        with own_operations():
            program = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*inputs)
        arrays = {key: np.asarray(x) for key, x in zip(names, inputs, strict=True)}
        found[name] = Program(bytes(program.serialize()), arrays)
    return found
