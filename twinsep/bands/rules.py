"""Rules that build the band tables for any STFT grid.

Every rule except that of mel72 uses integer arithmetic, so that no edge depends on rounding. Symbols: F = n_fft/2 + 1
bins, sample rate sr in Hz, bin k at k·sr/n_fft Hz.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from twinsep.errors import InputError

#: Lower edges in Hz of the frequency ranges of ``vocal72`` and ``reference68``, and the number of bands in each.
_RANGE_HZ = (0, 80, 250, 500, 2000, 4000, 8000)
_VOCAL_BANDS = (2, 8, 12, 24, 12, 8, 6)
_REFERENCE_BANDS = (2, 12, 12, 20, 12, 8, 6)
#: BS-RoFormer's widths in bins (Lu et al. 2023, arXiv 2309.02612, section 4.2 and its published code).
_ROFORMER_WIDTHS = (2,) * 24 + (4,) * 12 + (12,) * 8 + (24,) * 8 + (48,) * 8 + (128, 129)
#: BSRNN's V7: edges in Hz (Luo and Yu 2022, arXiv 2209.15174, section 4.3); the last band is above the last edge.
_BSRNN_HZ = (
    *range(0, 1000, 100),
    *range(1000, 4000, 250),
    *range(4000, 8000, 500),
    *range(8000, 16_000, 1000),
    *range(16_000, 20_001, 2000),
)


def _split(lo: int, hi: int, bands: int) -> list[int]:
    """Lower edges lo + ⌊i·n/b⌋ of b = ``bands`` bands over the n bins [lo, hi); equal edges are empty bands."""
    return [lo + i * (hi - lo) // bands for i in range(bands)]


def _range_starts(n_fft: int, sample_rate: int) -> list[int]:
    return [hz * n_fft // sample_rate for hz in _RANGE_HZ]


def _vocal72(n_fft: int, sample_rate: int) -> list[int]:
    """Bands of one bin from 80 to 500 Hz, the range of a voice's fundamental; wider and wider above."""
    ends = [*_range_starts(n_fft, sample_rate), n_fft // 2 + 1]
    edges = [e for (lo, hi), b in zip(pairwise(ends), _VOCAL_BANDS, strict=True) for e in _split(lo, hi, b)]
    return [*edges, ends[-1]]


def _merged(by: int) -> Callable[[int, int], list[int]]:
    """``vocal72`` with every ``by`` neighbouring bands merged."""
    return lambda n_fft, sample_rate: _vocal72(n_fft, sample_rate)[::by]


def _reference68(n_fft: int, sample_rate: int) -> list[int]:
    """The reference's table: 72 bands, minus the empty ones, without the Nyquist bin."""
    ends = [*_range_starts(n_fft, sample_rate), (sample_rate // 2) * n_fft // sample_rate]
    edges: list[int] = []
    for (lo, hi), bands in zip(pairwise(ends), _REFERENCE_BANDS, strict=True):
        # A range without bins (lo >= hi) still yields a repeated or falling edge, which :func:`build` rejects.
        edges += sorted(set(_split(lo, hi, bands)))
    return [*edges, ends[-1]]


def _uniform72(n_fft: int, sample_rate: int) -> list[int]:  # noqa: ARG001  all rules have one signature
    return [i * (n_fft // 2 + 1) // 72 for i in range(73)]


def _mel72(n_fft: int, sample_rate: int) -> list[int]:
    """Equal steps on the mel scale 2595·log10(1 + f/700), each band at least one bin wide."""
    step = np.log10(1 + sample_rate / 1400) / 72
    edges = [0]
    for i in range(1, 72):
        nearest = int(np.floor(700 * (10 ** (i * step) - 1) * n_fft / sample_rate + 0.5))
        edges.append(max(edges[-1] + 1, nearest))
    return [*edges, n_fft // 2 + 1]


def _bsroformer62(n_fft: int, sample_rate: int) -> list[int]:  # noqa: ARG001
    """A literal list of widths, whose sum is 1,025: :func:`build` rejects any other F."""
    return [0, *np.cumsum(_ROFORMER_WIDTHS).tolist()]


def _bsrnn41(n_fft: int, sample_rate: int) -> list[int]:
    # ⌊f·n_fft/sr + ½⌋ in integers.
    return [(2 * hz * n_fft + sample_rate) // (2 * sample_rate) for hz in _BSRNN_HZ] + [n_fft // 2 + 1]


_RULES: dict[str, Callable[[int, int], list[int]]] = {
    "vocal72": _vocal72,
    "reference68": _reference68,
    "uniform72": _uniform72,
    "mel72": _mel72,
    "bsroformer62": _bsroformer62,
    "bsrnn41": _bsrnn41,
    "vocal36": _merged(2),
    "vocal18": _merged(4),
}


#: Names of all tables, the default first.
NAMES: tuple[str, ...] = tuple(_RULES)


def build(name: str, n_fft: int, sample_rate: int) -> np.ndarray:
    """Build the table ``name`` by its rule: (K, 2) int64, half-open bin ranges.

    ``n_fft`` is in samples (even), ``sample_rate`` in Hz. Raises :class:`InputError` for an unknown name, an invalid
    grid, or a grid on which a band has no bins.
    """
    if name not in _RULES:
        raise InputError(f"unknown band table {name!r}; known: {', '.join(NAMES)}")
    if n_fft < 2 or n_fft % 2 or sample_rate < 1:
        raise InputError(f"band tables need an even n_fft and a positive sample rate, not {n_fft} and {sample_rate}")
    edges = np.asarray(_RULES[name](n_fft, sample_rate), dtype=np.int64)
    if edges[-1] > n_fft // 2 + 1 or (name == "bsroformer62" and edges[-1] != n_fft // 2 + 1):
        raise InputError(
            f"band table {name!r} lists {edges[-1]} bins, but n_fft {n_fft} has {n_fft // 2 + 1}; use another table"
        )
    if np.any(np.diff(edges) < 1):
        raise InputError(
            f"band table {name!r} would have empty bands at n_fft {n_fft} and {sample_rate} Hz; "
            "use a larger n_fft or another table"
        )
    return np.stack([edges[:-1], edges[1:]], axis=1)
