"""Band split at the input of the network, mask head at its output.

Bands differ in width. Their weights are packed along the bins, and neighbouring bands of equal width (a group) share
one batched matrix product instead of one product per band. One split cuts the groups out of the packed arrays: its
gradient is one concatenation, whereas the gradient of each slice would be as large as the whole array.

Shapes: b batch, c audio channels, f bins, t frames, k bands, d features, s stems, w bins of a band.
"""

from __future__ import annotations

import math

import numpy as np
from einops import rearrange
from jax import Array
from jaxtyping import Complex, Float

from jax_impl.layers import Module, parameter
from jax_impl.ops import (
    band_outputs,
    batched_linear,
    complex_of,
    concatenate,
    pad_axis,
    polar,
    rms_norm,
    sigmoid,
    silu,
    split,
    split_complex,
    tanh,
)
from twinsep.config import BandSplitConfig
from twinsep.model import initializers
from twinsep.model.bands import band_groups
from twinsep.model.features import REALS, log_levels, reals_per_bin


class BandSplit(Module):
    """Spectrum to D features per band and frame: Linear, RMSNorm, plus a learned band embedding.

    Linear and norm follow BSRNN (Luo and Yu 2022, arXiv 2209.15174). A band of w bins has 4·w real inputs, real and
    imaginary parts of both channels, and with the features ``complex+level`` 4·w levels, bin by bin.
    """

    def __init__(self, model: BandSplitConfig):
        table, d = model.band_table, model.d_model
        self.groups = band_groups(table)
        self.n_bins = int(table[-1, 1])  # reference68 leaves out the Nyquist bin
        self.reals = reals_per_bin(model.features)
        fan_in = self.reals * (table[:, 1] - table[:, 0])
        self.weight = parameter(
            (d, self.reals * self.n_bins), initializers.uniform(np.repeat(fan_in, fan_in)), decay=True
        )
        self.bias = parameter((len(table), d), initializers.uniform(fan_in[:, None]))
        self.norm = parameter((len(table), d), initializers.ones)
        self.embedding = parameter((1, len(table), 1, d), initializers.normal(0.02))

    def __call__(self, spectrum: Complex[Array, "b c f t"]) -> Float[Array, "b k t d"]:
        """Return the features of every band and frame of a spectrum."""
        spectrum = spectrum[:, :, : self.n_bins]
        x = rearrange(split_complex(rearrange(spectrum, "b c f t -> b t f c")), "b t f c ri -> b t f (c ri)")
        if self.reals > REALS:
            x = concatenate([x, rearrange(log_levels(spectrum), "b l f t -> b t f l")], -1)
        return self.embed(x)

    def embed(self, x: Float[Array, "b t f r"]) -> Float[Array, "b k t d"]:
        """Return the features of every band and frame, given the real inputs of every bin and frame."""
        x = rearrange(x, "b t f r -> b t (f r)")  # a band is a range of the last axis
        columns = [self.reals * bands * width for bands, width in self.groups]
        bands = [bands for bands, _ in self.groups]
        parts = zip(
            split(x, columns, -1), split(self.weight[...], columns, 1), split(self.bias[...], bands, 0), strict=True
        )
        x = concatenate([self.project(*part) for part in parts], 1)  # (b, k, t, d)
        return rms_norm(x, self.norm[:, None]) + self.embedding

    def project(
        self, x: Float[Array, "b t r"], weight: Float[Array, "d r"], bias: Float[Array, "k d"]
    ) -> Float[Array, "b k t d"]:
        """Apply the Linear of every band in one group of equally wide bands; r inputs for k bands."""
        inputs = rearrange(x, "b t (k w) -> k (b t) w", k=len(bias))
        y = batched_linear(inputs, rearrange(weight, "d (k w) -> k d w", k=len(bias)), bias)  # (k, b·t, d)
        return rearrange(y, "k (b t) d -> b k t d", b=x.shape[0])


class MaskHead(Module):
    """D features per band and frame to one complex mask per stem, channel and bin: sigmoid(m) · exp(i·π·tanh(p)).

    RMSNorm, Linear, SiLU and Linear, separate for each band, compute the logits m and p.
    """

    def __init__(self, model: BandSplitConfig):
        table, d = model.band_table, model.d_model
        self.groups = band_groups(table)
        self.stems = len(model.targets)
        self.missing = model.n_bins - int(table[-1, 1])
        k, outputs = len(table), self.stems * REALS * int(table[-1, 1])
        self.norm = parameter((k, d), initializers.ones)
        self.weight1 = parameter((k, d, d), initializers.uniform(d), decay=True)
        self.bias1 = parameter((k, d), initializers.uniform(d))
        self.weight2 = parameter((outputs, d), initializers.uniform(d), decay=True)
        self.bias2 = parameter((outputs,), initializers.uniform(d))

    def __call__(self, x: Float[Array, "b k t d"]) -> Complex[Array, "b s c f t"]:
        """Return the mask of every target, channel and bin; its magnitude lies between 0 and 1."""
        # A bin outside every band has logits 0, hence the mask sigmoid(0) · exp(0) = 0.5, as in the reference.
        return pad_axis(polar(*self.parts(x)), -2, self.missing, 0.5)

    def parts(self, x: Float[Array, "b k t d"]) -> tuple[Float[Array, "b s c f t"], Float[Array, "b s c f t"]]:
        """Return magnitude and phase of the mask of every bin in a band."""
        n = rearrange(rms_norm(x, self.norm[:, None]), "b k t d -> k (b t) d")
        hidden = silu(batched_linear(n, self.weight1[...], self.bias1[...]))  # (k, b·t, d)
        logits = band_outputs(hidden, self.weight2[...], self.bias2[...], self.groups, self.stems)  # (s, c·two, f, b·t)
        magnitude, phase = rearrange(logits, "s (c two) f (b t) -> two b s c f t", b=x.shape[0], two=2)
        return sigmoid(magnitude), math.pi * tanh(phase)


class GLUMaskHead(Module):
    """D features per band and frame to one complex mask per stem, channel and bin, of any magnitude: a ⊙ sigmoid(g).

    RMSNorm, Linear of width 4·D, tanh and Linear, separate for each band, compute the real and imaginary parts a and
    their gates g (BSRNN, arXiv 2209.15174, section III-C; BS-RoFormer, arXiv 2309.02612).
    """

    def __init__(self, model: BandSplitConfig):
        table, d = model.band_table, model.d_model
        self.groups = band_groups(table)
        self.stems = len(model.targets)
        self.missing = model.n_bins - int(table[-1, 1])
        k, outputs = len(table), 2 * self.stems * REALS * int(table[-1, 1])
        self.norm = parameter((k, d), initializers.ones)
        self.hidden_weight = parameter((k, 4 * d, d), initializers.uniform(d), decay=True)
        self.hidden_bias = parameter((k, 4 * d), initializers.uniform(d))
        self.glu_weight = parameter((outputs, 4 * d), initializers.uniform(4 * d), decay=True)
        self.glu_bias = parameter((outputs,), initializers.uniform(4 * d))

    def __call__(self, x: Float[Array, "b k t d"]) -> Complex[Array, "b s c f t"]:
        """Return the mask of every target, channel and bin."""
        # A bin outside every band has the mask 0.5, as in the reference.
        return pad_axis(complex_of(*self.parts(x)), -2, self.missing, 0.5)

    def parts(self, x: Float[Array, "b k t d"]) -> tuple[Float[Array, "b s c f t"], Float[Array, "b s c f t"]]:
        """Return real and imaginary part of the mask of every bin in a band."""
        n = rearrange(rms_norm(x, self.norm[:, None]), "b k t d -> k (b t) d")
        hidden = tanh(batched_linear(n, self.hidden_weight[...], self.hidden_bias[...]))  # (k, b·t, 4d)
        both = band_outputs(hidden, self.glu_weight[...], self.glu_bias[...], self.groups, self.stems)
        a, gate = rearrange(both, "s (half r) f (b t) -> half b s r f t", b=x.shape[0], half=2)
        real, imaginary = rearrange(a * sigmoid(gate), "b s (c two) f t -> two b s c f t", two=2)
        return real, imaginary
