"""The band-split front end and the mask estimator behind it.

Bands have different widths. Their weights are packed along the bins, so that one band is a slice, and
bands of equal width are multiplied together: a handful of batched products instead of one a band.
"""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np
from einops import rearrange
from jax import Array
from jaxtyping import Complex, Float

from jax_impl.layers import (
    Module,
    batched_linear,
    concatenate,
    pad_axis,
    parameter,
    polar,
    rms_norm,
    sigmoid,
    silu,
    split_complex,
    tanh,
)
from twinsep import init
from twinsep.config import ModelConfig

#: Reals a bin brings in (L.re, L.im, R.re, R.im) and a mask takes out (L_mag, L_phase, R_mag, R_phase).
REALS = 4


def runs(table: np.ndarray) -> list[tuple[slice, slice, int]]:
    """Neighbouring bands of equal width: (slice of bands, slice of bins, width in bins)."""
    out = []
    for width, group in groupby(enumerate(table.tolist()), key=lambda item: item[1][1] - item[1][0]):
        members = list(group)
        (first, (lo, _)), (last, (_, hi)) = members[0], members[-1]
        out.append((slice(first, last + 1), slice(lo, hi), width))
    return out


class BandSplit(Module):
    """Each band's reals to D features: Linear, RMSNorm, plus a learned band embedding (BSRNN, arXiv 2209.15174)."""

    def __init__(self, model: ModelConfig):
        table, d = model.band_table, model.d_model
        self.runs = runs(table)
        self.n_bins = int(table[-1, 1])  # reference68 stops short of the Nyquist bin
        fan_in = REALS * (table[:, 1] - table[:, 0])
        self.weight = parameter((d, REALS * self.n_bins), init.uniform(np.repeat(fan_in, fan_in)), decay=True)
        self.bias = parameter((len(table), d), init.uniform(fan_in[:, None]))
        self.norm = parameter((len(table), d), init.ones)
        self.embedding = parameter((1, len(table), 1, d), init.normal(0.02))

    def __call__(self, spectrum: Complex[Array, "b c f t"]) -> Float[Array, "b k t d"]:
        reals = split_complex(spectrum[:, :, : self.n_bins])
        x = rearrange(reals, "b c f t ri -> b t (f c ri)")
        x = concatenate([self.project(x, *run) for run in self.runs], 1)
        return rms_norm(x, self.norm[:, None]) + self.embedding

    def project(self, x: Float[Array, "b t r"], members: slice, bins: slice, width: int) -> Float[Array, "b k t d"]:
        """The Linear of each band of one run of equal widths."""
        columns = slice(REALS * bins.start, REALS * bins.stop)
        inputs = rearrange(x[..., columns], "b t (k w) -> k (b t) w", w=REALS * width)
        weight = rearrange(self.weight[:, columns], "d (k w) -> k d w", w=REALS * width)
        y = batched_linear(inputs, weight, self.bias[members])
        return rearrange(y, "k (b t) d -> b k t d", b=x.shape[0])


class MaskHead(Module):
    """D features of each band to a complex mask a bin: sigmoid(mag) · exp(i·π·tanh(phase))."""

    def __init__(self, model: ModelConfig):
        table, d = model.band_table, model.d_model
        self.runs = runs(table)
        self.stems = len(model.targets)
        self.missing = model.n_bins - int(table[-1, 1])
        k, outputs = len(table), self.stems * REALS * int(table[-1, 1])
        self.norm = parameter((k, d), init.ones)
        self.weight1 = parameter((k, d, d), init.uniform(d), decay=True)
        self.bias1 = parameter((k, d), init.uniform(d))
        self.weight2 = parameter((outputs, d), init.uniform(d), decay=True)
        self.bias2 = parameter((outputs,), init.uniform(d))

    def __call__(self, x: Float[Array, "b k t d"]) -> Complex[Array, "b s c f t"]:
        n = rearrange(rms_norm(x, self.norm[:, None]), "b k t d -> k (b t) d")
        hidden = silu(batched_linear(n, self.weight1[...], self.bias1[...]))
        parts = [self.project(hidden, x.shape[0], *run) for run in self.runs]
        magnitude, phase = rearrange(concatenate(parts, 1), "b f s c two t -> two b s c f t")
        mask = polar(sigmoid(magnitude), math.pi * tanh(phase))
        # A bin that no band owns keeps logit 0: sigmoid(0) · exp(0) = 0.5, as in the reference.
        return pad_axis(mask, -2, self.missing, 0.5)

    def project(
        self, hidden: Float[Array, "k n d"], b: int, members: slice, bins: slice, width: int
    ) -> Float[Array, "b f s c two t"]:
        """The second Linear of each band of one run; its rows are packed band by band, stem-major within one."""
        per_band = self.stems * REALS * width
        rows = slice(self.stems * REALS * bins.start, self.stems * REALS * bins.stop)
        weight = rearrange(self.weight2[rows], "(k o) d -> k o d", o=per_band)
        bias = rearrange(self.bias2[rows], "(k o) -> k o", o=per_band)
        y = batched_linear(hidden[members], weight, bias)
        return rearrange(y, "k (b t) (s w c two) -> b (k w) s c two t", b=b, s=self.stems, w=width, two=2)
