"""The PyTorch twin. :func:`load` is all that is public."""

from __future__ import annotations

from pathlib import Path

from torch_impl.devices import find_device
from torch_impl.layers import initialise
from torch_impl.train import load_weights
from torch_impl.unet import BandSplitUNet
from twinsep import checkpoints
from twinsep.config import PRESETS, preset

__all__ = ["load"]


def load(path_or_preset: str | Path, *, weights: str = "ema", seed: int = 0, device: str = "cpu") -> BandSplitUNet:
    """A separator in evaluation mode: float32 (b, 2, s) in, (b, stems, 2, s) out, at ``.config.model.sample_rate``.

    ``path_or_preset`` is a checkpoint file, whose ``weights`` ("ema" or "model") are taken, or the name of
    a preset, whose weights are drawn from ``seed``. Raises :class:`twinsep.errors.InputError` for anything else.
    """
    if isinstance(path_or_preset, str) and path_or_preset in PRESETS:
        model = BandSplitUNet(preset(path_or_preset))
        initialise(model, seed)
    else:
        found = checkpoints.read(path_or_preset, prefixes=("model/", "ema/"))
        model = BandSplitUNet(found.config)
        load_weights(model, found.weights(weights), str(path_or_preset))
    return model.to(find_device(device)).eval()
