"""Base classes of the networks: STFT, mask and inverse STFT; band split and mask head."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Literal, overload

from jax import Array
from jaxtyping import Complex, Float, Shaped

from jax_impl.bandsplit import BandSplit, GLUMaskHead, MaskHead
from jax_impl.layers import Module, named_parameters
from jax_impl.ops import concatenate, pad_axis
from twinsep.config import BandSplitConfig, Config
from twinsep.errors import InputError
from twinsep.model.stereo import left_right, mid_side
from twinsep.model.stream import Stream
from twinsep.stft import istft, stft


class Network(Module):
    """Mixture (b, 2, s) to stems (b, stems, 2, s), float32 at ``config.model.sample_rate``, s ≥ 1."""

    def __init__(self, config: Config):
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


class MaskingNetwork(Network):
    """A network that multiplies the mixture's spectrum by masks.

    A subclass defines :meth:`mask`, from spectrum to masks.
    """

    #: Whether the spectrum is that of mid and side.
    mid_side = False

    @overload
    def __call__(self, mixture: Array, *, return_auxiliary_outputs: Literal[False] = False) -> Array: ...

    @overload
    def __call__(
        self, mixture: Array, *, return_auxiliary_outputs: Literal[True]
    ) -> tuple[Array, dict[str, Array]]: ...

    def __call__(
        self, mixture: Float[Array, "b 2 s"], *, return_auxiliary_outputs: bool = False
    ) -> Float[Array, "b stems 2 s"] | tuple[Float[Array, "b stems 2 s"], dict[str, Array]]:
        """Separate the mixture into stems.

        With ``return_auxiliary_outputs``, also return the "mask" (b, targets, c, f, t) and the "spectrum" of
        the mixture (b, c, f, t), both of mid and side for a model with ``mid_side``.
        """
        samples = mixture.shape[-1]
        x = pad_axis(mixture, -1, max(0, self.config.model.min_samples - samples))
        if self.mid_side:
            x = mid_side(x)
        spectrum = self.spectrum(x)  # (b, c, f, t)
        mask = self.mask(spectrum)  # (b, targets, c, f, t)
        masked = mask * spectrum[:, None]
        y = self.to_stems(self.signal(masked, x.shape[-1])[..., :samples], mixture)
        return (y, {"mask": mask, "spectrum": spectrum}) if return_auxiliary_outputs else y

    def spectrum(self, x: Float[Array, "b 2 s"]) -> Complex[Array, "b c f t"]:
        """Transform a signal to a spectrum."""
        return stft(x, n_fft=self.config.model.n_fft, hop=self.config.model.hop)

    def signal(self, spectra: Complex[Array, "b stems c f t"], samples: int) -> Float[Array, "b stems 2 s"]:
        """Transform spectra to signals of ``samples``."""
        return istft(spectra, n_fft=self.config.model.n_fft, hop=self.config.model.hop, length=samples)

    def to_stems(self, y: Float[Array, "b targets 2 s"], mixture: Float[Array, "b 2 s"]) -> Float[Array, "b stems 2 s"]:
        """Convert estimates of mid and side to left and right, and append the residual, as the configuration says."""
        if self.mid_side:
            y = left_right(y)
        if self.config.model.residual:
            y = concatenate([y, (mixture - y.sum(1))[:, None]], 1)
        return y

    @abstractmethod
    def mask(self, spectrum: Complex[Array, "b c f t"]) -> Shaped[Array, "b n c f t"]:
        """Return the mask of every target, channel and bin, real or complex."""


class BandSplitNetwork(MaskingNetwork):
    """A network between band split and mask head.

    A subclass defines :meth:`network`, from band features to band features.
    """

    def __init__(self, config: Config):
        super().__init__(config)
        model = config.model
        assert isinstance(model, BandSplitConfig)
        self.model: BandSplitConfig = model
        self.mid_side = model.mid_side
        self.band_split = BandSplit(model)
        self.mask_head = MaskHead(model) if model.mask == "polar" else GLUMaskHead(model)

    def mask(self, spectrum: Complex[Array, "b c f t"]) -> Complex[Array, "b n c f t"]:
        """Return the mask of every target, channel and bin."""
        return self.mask_head(self.network(self.band_split(spectrum)))

    @abstractmethod
    def network(self, x: Float[Array, "b k t d"]) -> Float[Array, "b k t d"]:
        """Apply the layers between band split and mask head."""
