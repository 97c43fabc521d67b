"""Published separators from their own packages, with random weights, for comparisons of speed.

Each has the standard arguments of its package or paper, and is timed on chunks of the length it was designed for.
``pip install 'twinsep[peers]'`` installs the packages.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from twinsep.errors import InputError

RATE = 44_100


class Package(NamedTuple):
    """A stereo model at 44.1 kHz: how to build it from a module, the module's name, its chunk length and the reason."""

    build: Callable[[Any], nn.Module]
    module: str
    samples: int
    why: str


#: Name → package.
PACKAGES = {
    # Lu et al. 2023, arXiv 2309.02612: dimension 384, 6 layers of one Transformer along time and one along bands, and
    # segments of 8 s.
    "bs-roformer": Package(
        lambda package: package.BSRoformer(
            dim=384, depth=6, stereo=True, time_transformer_depth=1, freq_transformer_depth=1
        ),
        "bs_roformer",
        8 * RATE,
        "8 s, its paper's segment",
    ),
    "moises-light paper_large": Package(
        lambda package: package.MoisesLight(**package.configs["paper_large"]), "moises_light", 6 * RATE, "6 s"
    ),
    "moises-light paper_small": Package(
        lambda package: package.MoisesLight(**package.configs["paper_small"]), "moises_light", 6 * RATE, "6 s"
    ),
    "htdemucs": Package(
        # the configuration of its released weights (41,984,456 parameters)
        lambda package: package.HTDemucs(
            ["drums", "bass", "other", "vocals"], segment=7.8, bottom_channels=512, dconv_mode=3
        ),
        "demucs.htdemucs",
        round(7.8 * RATE),
        "7.8 s, the length its released weights are bound to",
    ),
}


def missing() -> list[str]:
    """Return the names of the models whose package is not installed."""
    return [name for name, entry in PACKAGES.items() if not _installed(entry.module.partition(".")[0])]


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # a test hides the package: sys.modules[name] is None
        return False


def build(name: str, seed: int = 0) -> nn.Module:
    """Build a model in evaluation mode, with input (b, 2, s); raises :class:`InputError` if its package is missing."""
    entry = PACKAGES[name]
    try:
        package = importlib.import_module(entry.module)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{name} needs the package {error.name}; install it with: pip install 'twinsep[peers]'"
        ) from error
    torch.manual_seed(seed)
    return entry.build(package).eval()


def on_numpy(name: str) -> tuple[Callable[[np.ndarray], np.ndarray], int]:
    """Return a model as a function from NumPy arrays to NumPy arrays, without gradients, and its parameter count."""
    model = build(name)

    @torch.inference_mode()
    def function(x: np.ndarray) -> np.ndarray:
        """Return the output for ``x`` (b, 2, s)."""
        with warnings.catch_warnings(action="ignore"):  # deprecation warnings of the packages themselves
            return model(torch.from_numpy(x)).numpy()

    return function, sum(weight.numel() for weight in model.parameters())
