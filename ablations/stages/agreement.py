"""Stage ``agreement``: measure the distances between the frameworks' losses, on noise and on songs.

The tests hold the frameworks to a tolerance on full-band noise. In band-limited songs the logarithm of an empty bin is
rounding noise, the more so the lower its floor, so the distance there is recorded without a tolerance. Distances are
relative: float32 against float64 (NumPy's for values, PyTorch's for gradients, by norm), and PyTorch against JAX.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from ablations import settings
from ablations.stages import run_stage
from twinsep.config import Config, preset
from twinsep.data import dataset
from twinsep.losses import LOSSES
from twinsep.utils import provenance
from twinsep.utils.files import write_json

OUT = Path("results/agreement.json")
SECONDS = 3


def main() -> None:
    """Write ``results/agreement.json``."""
    jax.config.update("jax_enable_x64", True)
    config = preset(settings.profile()["preset"])
    distances = {
        kind: {name: _distances(name, signals, config) for name in LOSSES} for kind, signals in _signals().items()
    }
    write_json(OUT, {"distances": distances, **provenance.describe("cpu")})


def _signals() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Name -> (estimate, target, mixture), each (1, 2, s) in float64: noise, and songs with the mixture as estimate."""
    rng = np.random.default_rng(0)
    target, rest = 0.1 * rng.standard_normal((2, 1, 2, SECONDS * 44_100))
    signals = {"noise, 0.1 rms": (target + rest, target, target + rest)}
    for split in settings.splits():
        song = dataset.tracks(settings.data_root(), split)[0]
        stems = ("mixture", "instrumental")
        mixture, wanted = (song.read(stem, 0, SECONDS * 44_100)[None].astype(np.float64) for stem in stems)
        signals[f"{split}: {song.name}"] = (mixture, wanted, mixture)
    return signals


def _distances(name: str, signals: tuple[np.ndarray, ...], config: Config) -> dict[str, float]:
    estimate, target, mixture = signals
    exact = float(LOSSES[name](estimate, target, mixture=mixture, config=config))
    found = {bits: _both(name, signals, config, bits) for bits in (32, 64)}
    (t32, gt32), (j32, gj32) = found[32]
    (_, gt64), (_, gj64) = found[64]
    return {
        "value, torch": _relative(t32, exact),
        "value, jax": _relative(j32, exact),
        "gradient, torch": _relative(gt32, gt64),
        "gradient, jax": _relative(gj32, gt64),
        "gradient, torch against jax": _relative(gt32, gj32),
        "gradient, torch against jax, float64": _relative(gt64, gj64),
    }


def _both(name: str, signals: tuple[np.ndarray, ...], config: Config, bits: int) -> tuple[tuple, tuple]:
    """(value, gradient) of the loss in PyTorch and in JAX."""
    arrays = [a.astype(f"float{bits}") for a in signals]
    estimate, target, mixture = (torch.from_numpy(a) for a in arrays)
    estimate.requires_grad_()
    value = LOSSES[name](estimate, target, mixture=mixture, config=config)
    (gradient,) = torch.autograd.grad(value, estimate)
    jv, jg = jax.value_and_grad(lambda e, t, m: LOSSES[name](e, t, mixture=m, config=config))(*map(jnp.asarray, arrays))
    return (value.item(), gradient.numpy()), (float(jv), np.asarray(jg))


def _relative(a: Any, b: Any) -> float:
    difference, size = (float(np.linalg.norm(np.asarray(x, np.float64))) for x in (np.subtract(a, b), b))
    return float(f"{difference / size:.2e}") if size else difference


if __name__ == "__main__":
    run_stage(main)
