"""Networks for other programs, in real numbers and standard operators: ONNX, and PyTorch's own format.

What is exported computes masks of a spectrum; STFT and inverse (:mod:`twinsep.stft`) remain with the program.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from torch_impl.bandsplit import MaskHead
from torch_impl.causal_unet import CausalBandSplitUNet
from torch_impl.kernels import standard_operations
from torch_impl.layers import Module
from torch_impl.network import BandSplitNetwork
from torch_impl.ops import concatenate, pad_axis, stack
from twinsep.errors import InputError
from twinsep.model.export import Program
from twinsep.model.features import REALS, log_levels_of_reals

#: Formats that this framework writes.
FORMATS = ("onnx", "torch")


class Masks(Module):
    """Spectra (b, 2, f, t, 2), real and imaginary parts last, to masks (b, targets, 2, f, t, 2)."""

    def __init__(self, model: BandSplitNetwork):
        super().__init__()
        self.model = model

    def forward(self, spectrum: Float[Tensor, "b 2 f t 2"]) -> Float[Tensor, "b s 2 f t 2"]:
        """Return the masks of a whole spectrum."""
        return masks(self.model, self.model.network(features(self.model, spectrum)))


class Step(Module):
    """One frame (b, 2, f, 2) and the state of a causal network to masks (b, targets, 2, f, 2) and the next state."""

    def __init__(self, model: CausalBandSplitUNet):
        super().__init__()
        self.model = model
        leaves, self.tree = tree_flatten(model.start().levels)
        #: Arrays of the state, flags included, before the first frame.
        # Cloned: the tracer takes two inputs that are one tensor for one input.
        known = [leaf for leaf in leaves if leaf is not None]
        self.first = [torch.tensor(leaf) if isinstance(leaf, bool) else leaf.clone() for leaf in known]
        self.missing = [leaf is None for leaf in leaves]

    def forward(self, frame: Float[Tensor, "b 2 f 2"], *state: Tensor) -> tuple[Tensor, ...]:
        """Return the masks of a frame, and the arrays of the next state in the order of ``state``."""
        given = iter(state)
        levels = tree_unflatten([None if missing else next(given) for missing in self.missing], self.tree)
        x = features(self.model, frame[:, :, :, None])[:, :, 0]
        if levels is not None:
            x, levels = self.model.step(1, x, levels, [])
        after = [leaf for leaf in tree_flatten(levels)[0] if leaf is not None]
        return (masks(self.model, x[:, :, None])[..., 0, :], *after)


def features(model: BandSplitNetwork, spectrum: Float[Tensor, "b 2 f t 2"]) -> Float[Tensor, "b k t d"]:
    """Return the features of every band and frame, as :class:`torch_impl.bandsplit.BandSplit` does."""
    split = model.band_split
    spectrum = spectrum[:, :, : split.n_bins]
    x = rearrange(spectrum, "b c f t ri -> b t f (c ri)")
    if split.reals > REALS:
        x = concatenate([x, rearrange(log_levels_of_reals(spectrum), "b l f t -> b t f l")], -1)
    return split.embed(x)


def masks(model: BandSplitNetwork, x: Float[Tensor, "b k t d"]) -> Float[Tensor, "b s 2 f t 2"]:
    """Return the masks of every target, channel and bin, real and imaginary parts last."""
    head = model.mask_head
    real, imaginary = head.parts(x)
    if isinstance(head, MaskHead):
        magnitude, phase = real, imaginary
        real, imaginary = magnitude * phase.cos(), magnitude * phase.sin()
    # A bin outside every band has the mask 0.5.
    return stack([pad_axis(real, -2, head.missing, 0.5), pad_axis(imaginary, -2, head.missing)], -1)


def export(model: BandSplitNetwork, form: str, frames: int) -> dict[str, Program]:
    """Export a network: "network", for spectra of ``frames`` frames, and of a causal network also "step".

    ``form`` is one of :data:`FORMATS`. Raises :class:`InputError` if a package is missing.
    """
    spectrum = torch.zeros(1, 2, model.model.n_bins, frames, 2)
    modules: dict[str, tuple[Any, list[Tensor]]] = {"network": (Masks(model), [spectrum])}
    if isinstance(model, CausalBandSplitUNet):
        step = Step(model)
        modules["step"] = step, [spectrum[:, :, :, 0], *step.first]
    write = {"onnx": _to_onnx, "torch": _to_torch}[form]
    found = {}
    for name, (module, inputs) in modules.items():
        names = ["spectrum", *(f"state_{i}" for i in range(len(inputs) - 1))]
        arrays = {key: x.numpy() for key, x in zip(names, inputs, strict=True)}
        with torch.no_grad(), standard_operations(), _quiet():
            found[name] = Program(write(module.eval().requires_grad_(False), inputs, names), arrays)
    return found


def _to_torch(module: Module, inputs: list[Tensor], _names: list[str]) -> bytes:
    file = io.BytesIO()
    torch.export.save(torch.export.export(module, tuple(inputs), strict=False), file)
    return file.getvalue()


def _to_onnx(module: Module, inputs: list[Tensor], names: list[str]) -> bytes:
    outputs = ["mask", *(f"next_{name}" for name in names[1:])]
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            "--to onnx needs the package onnxscript; install it with: pip install 'twinsep[export]'"
        ) from error
    program = torch.onnx.export(
        torch.export.export(module, tuple(inputs), strict=False), input_names=names, output_names=outputs, dynamo=True
    )
    assert program is not None
    return program.model_proto.SerializeToString()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep warnings and progress of the exporters from the screen."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
