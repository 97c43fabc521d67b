"""Base classes of the networks: STFT, band split, mask head and inverse STFT."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal, overload

from einops import einsum
from jaxtyping import Complex, Float
from torch import Tensor

from torch_impl.bandsplit import BandSplit, GLUMaskHead, MaskHead
from torch_impl.layers import Module, named_parameters
from torch_impl.ops import concatenate, constant, pad_axis
from twinsep.config import BandSplitConfig, Config
from twinsep.errors import InputError
from twinsep.model.stereo import MID_SIDE
from twinsep.model.stream import Stream
from twinsep.stft import istft, stft


class Network(Module):
    """Mixture (b, 2, s) to stems (b, stems, 2, s), float32 at ``config.model.sample_rate``, s ≥ 1."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of the stems along the second axis of the output."""
        return self.config.model.stems

    @property
    def parameter_count(self) -> int:
        """Number of scalar weights."""
        return sum(math.prod(weight.shape) for weight in named_parameters(self).values())

    def stream(self) -> Stream:
        """Return the stems of a live signal; raises :class:`InputError` unless ``config.model.causal``."""
        raise InputError("this network reads the future of a frame: take one with model.causal, such as tiny-causal")


class BandSplitNetwork(Network):
    """A network between band split and mask head.

    A subclass defines :meth:`network`, from band features to band features.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        model = config.model
        assert isinstance(model, BandSplitConfig)
        self.model: BandSplitConfig = model
        self.band_split = BandSplit(model)
        self.mask_head = MaskHead(model) if model.mask == "polar" else GLUMaskHead(model)

    @overload
    def forward(self, mixture: Tensor, *, return_auxiliary_outputs: Literal[False] = False) -> Tensor: ...

    @overload
    def forward(
        self, mixture: Tensor, *, return_auxiliary_outputs: Literal[True]
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    def forward(
        self, mixture: Float[Tensor, "b 2 s"], *, return_auxiliary_outputs: bool = False
    ) -> Float[Tensor, "b stems 2 s"] | tuple[Float[Tensor, "b stems 2 s"], dict[str, Tensor]]:
        """Separate the mixture into stems.

        With ``return_auxiliary_outputs``, also return the complex "mask" (b, targets, c, f, t) and the "spectrum" of
        the mixture (b, c, f, t), both of mid and side for a model with ``mid_side``.
        """
        samples = mixture.shape[-1]
        x = pad_axis(mixture, -1, max(0, self.model.min_samples - samples))
        if self.model.mid_side:
            x = einsum(constant(MID_SIDE, x), x, "m c, b c s -> b m s")
        spectrum = self.spectrum(x)  # (b, c, f, t)
        mask = self.mask_head(self.network(self.band_split(spectrum)))  # (b, targets, c, f, t)
        masked = mask * spectrum[:, None]
        y = self.to_stems(self.signal(masked, x.shape[-1])[..., :samples], mixture)
        return (y, {"mask": mask, "spectrum": spectrum}) if return_auxiliary_outputs else y

    def spectrum(self, x: Float[Tensor, "b 2 s"]) -> Complex[Tensor, "b 2 f t"]:
        """Transform a signal to a spectrum."""
        return stft(x, n_fft=self.model.n_fft, hop=self.model.hop)

    def signal(self, spectra: Complex[Tensor, "b stems 2 f t"], samples: int) -> Float[Tensor, "b stems 2 s"]:
        """Transform spectra to signals of ``samples``."""
        return istft(spectra, n_fft=self.model.n_fft, hop=self.model.hop, length=samples)

    def to_stems(
        self, y: Float[Tensor, "b targets 2 s"], mixture: Float[Tensor, "b 2 s"]
    ) -> Float[Tensor, "b stems 2 s"]:
        """Convert estimates of mid and side to left and right, and append the residual, as the configuration says."""
        if self.model.mid_side:
            y = einsum(constant(2 * MID_SIDE, y), y, "m c, b stems m s -> b stems c s")
        if self.model.residual:
            y = concatenate([y, (mixture - y.sum(1))[:, None]], 1)
        return y

    @abstractmethod
    def network(self, x: Float[Tensor, "b k t d"]) -> Float[Tensor, "b k t d"]:
        """Apply the layers between band split and mask head."""
