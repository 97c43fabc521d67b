"""Networks for other programs, in real numbers and standard operators: ONNX, and PyTorch's own format.

The exported program computes the masks of a spectrum; the program that calls it computes the STFT and its inverse
(:mod:`twinsep.stft`).
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from torch_impl import blocks, ops
from torch_impl.bandsplit import MaskHead
from torch_impl.causal_unet import CausalBandSplitUNet
from torch_impl.kernels import standard_operations
from torch_impl.layers import HalvingConv1d, Module
from torch_impl.mixers.transformer import Transformer
from torch_impl.network import BandSplitNetwork
from torch_impl.ops import concatenate, pad_axis, stack
from twinsep.errors import InputError
from twinsep.model.export import LEAST_FRAMES, Program
from twinsep.model.features import REALS, log_levels_of_reals
from twinsep.model.pooling import RADIUS

#: Formats that this framework writes.
FORMATS = ("onnx", "torch")
#: Frames of the spectrum that is traced for a program of any number, odd at each level.
_TRACED_FRAMES = 63


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


def takes_any_length(model: BandSplitNetwork, form: str) -> bool:
    """Return True if one program of this form computes spectra of any number of frames.

    Causal networks and Mamba-2 cut the frames into chunks, whose number the program would have to know. PyTorch's own
    format keeps conditions of the tracer, such as that there are not as many frames as bands.
    """
    return form == "onnx" and not isinstance(model, CausalBandSplitUNet) and model.model.mixer_kind != "mamba2"


def export(model: BandSplitNetwork, form: str, frames: int | None) -> dict[str, Program]:
    """Export a network: "network", for spectra of ``frames`` frames, and of a causal network also "step".

    Without ``frames``, for those of :data:`~twinsep.model.export.LEAST_FRAMES` or more; see :func:`takes_any_length`.
    ``form`` is one of :data:`FORMATS`. Raises :class:`InputError` if a package is missing.
    """
    spectrum = torch.zeros(1, 2, model.model.n_bins, frames or _TRACED_FRAMES, 2)
    modules: dict[str, tuple[Any, list[Tensor]]] = {"network": (Masks(model), [spectrum])}
    if isinstance(model, CausalBandSplitUNet):
        step = Step(model)
        modules["step"] = step, [spectrum[:, :, :, 0], *step.first]
    write = {"onnx": _to_onnx, "torch": _to_torch}[form]
    found = {}
    for name, (module, inputs) in modules.items():
        names = ["spectrum", *(f"state_{i}" for i in range(len(inputs) - 1))]
        arrays = {key: x.numpy() for key, x in zip(names, inputs, strict=True)}
        module.eval().requires_grad_(False)
        open_ended = frames is None and name == "network"
        with torch.no_grad(), standard_operations(), _quiet():
            with _any_number_of_frames(model) if open_ended else contextlib.nullcontext():
                traced = _trace(module, inputs, open_ended)
            found[name] = Program(write(traced, names), arrays, 3 if open_ended else None)
    return found


def _trace(module: Module, inputs: list[Tensor], open_ended: bool) -> torch.export.ExportedProgram:
    """Trace a module; with ``open_ended`` the frames, axis 3 of its only input, may be any number."""
    if not open_ended:
        return torch.export.export(module, tuple(inputs), strict=False)
    frames = torch.export.Dim("frames", min=LEAST_FRAMES, max=2**24)
    return torch.export.export(
        module,
        tuple(inputs),
        strict=False,
        dynamic_shapes=({3: frames},),
        # Conditions that the tracer cannot prove concern the order of numbers in memory alone; the exporter drops them.
        prefer_deferred_runtime_asserts_over_guards=True,
    )


def _to_torch(program: torch.export.ExportedProgram, _names: list[str]) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def _to_onnx(program: torch.export.ExportedProgram, names: list[str]) -> bytes:
    outputs = ["mask", *(f"next_{name}" for name in names[1:])]
    try:
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            "--to onnx needs the package onnxscript; install it with: pip install 'twinsep[export]'"
        ) from error
    written = torch.onnx.export(program, input_names=names, output_names=outputs, dynamo=True)
    assert written is not None
    return written.model_proto.SerializeToString()


# ---------------------------------------------------------------------------- any number of frames


@contextlib.contextmanager
def _any_number_of_frames(model: BandSplitNetwork) -> Iterator[None]:
    """Let ``model`` compute what depends on the number of frames in the program, where it is known, not while tracing.

    The replacements compute the same numbers. Elsewhere NumPy constants and views are faster.
    """
    changes: list[tuple[Any, str, Any]] = [
        (blocks, "pool_matrix", _pool_matrix),
        (blocks, "summary_matrix", _summary_matrix),
        (blocks, "constant", lambda x, like: x if isinstance(x, Tensor) else ops.constant(x, like)),
        (blocks, "pad_axis", _pad_axis),
        (HalvingConv1d, "forward", _halve),
    ]
    for module in model.modules():
        if isinstance(module, Transformer):
            changes.append((module, "rotate", partial(_rotate, **module.rotate.keywords)))
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _pool_matrix(frames: int, tokens: int) -> Float[Tensor, "m t"]:
    """:func:`twinsep.model.pooling.pool_matrix`."""
    t, i = torch.arange(frames), torch.arange(tokens)[:, None]
    lo, hi = i * frames // tokens, ((i + 1) * frames + tokens - 1) // tokens
    return ((t >= lo) & (t < hi)).float() / (hi - lo)


def _summary_matrix(alignment: str, tokens: tuple[int, ...], frames: int) -> Float[Tensor, "t m"]:
    """:func:`twinsep.model.pooling.summary_matrix`."""
    if alignment == "reference":
        return _windows(sum(tokens), frames) / (2 * RADIUS + 1)
    parts = [_windows(k, frames) for k in tokens if k]
    return torch.cat([part / part.sum(1, keepdim=True) for part in parts], 1) / len(parts)


def _windows(tokens: int, frames: int) -> Float[Tensor, "t m"]:
    """Ones for the tokens within ± RADIUS of the one nearest to a frame, t·(m − 1)/(T − 1) rounded half to even."""
    numerator, denominator = torch.arange(frames) * (tokens - 1), frames - 1
    quotient = numerator // denominator
    twice = 2 * (numerator - quotient * denominator)
    nearest = quotient + ((twice > denominator) | ((twice == denominator) & (quotient % 2 == 1))).long()
    return ((torch.arange(tokens) - nearest[:, None]).abs() <= RADIUS).float()


def _pad_axis(x: Tensor, axis: int, right: int) -> Tensor:
    """:func:`torch_impl.ops.pad_axis` by no frame or one, without a decision which."""
    longer = torch.cat([x, torch.zeros_like(x.narrow(axis, 0, 1))], axis)
    return longer.index_select(axis, torch.arange(x.shape[axis] + right))


def _halve(self: HalvingConv1d, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b m d"]:
    """:class:`torch_impl.layers.HalvingConv1d` by PyTorch's convolution, which drops an odd last frame itself."""
    return F.conv1d(x.mT, self.weight, self.bias, stride=2).mT


def _rotate(x: Float[Tensor, "*b l e"], base: float) -> Float[Tensor, "*b l e"]:
    """:func:`torch_impl.mixers.transformer.rotate` from position 0."""
    length, e = x.shape[-2:]
    angle = torch.arange(length)[:, None] * torch.from_numpy(base ** (-2 * np.arange(e // 2) / e)).float()
    cos, sin = angle.cos(), angle.sin()
    first, second = rearrange(x, "... l (two e) -> two ... l e", two=2)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


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
