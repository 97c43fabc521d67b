"""Spectrograms as PNG: of signals that are at hand, and of a song that streams by while it is separated."""

from __future__ import annotations

import importlib
import io
import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32

from twinsep.errors import InputError
from twinsep.stft import hann
from twinsep.utils.files import display_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

FLOOR_DB = -80  # of a spectrogram, below the mixture's peak
#: Cells of a spectrogram. Finer ones, or finer shades than of 2 dB, show little more, and PNG cannot pack them.
ROWS, COLUMNS, SHADES = 88, 360, 40
TICKS_HZ = (0.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16000.0)
TICKS_SECONDS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 3600)
_Extent = tuple[float, float, float, float]
_AT_ONCE = 64  # windows
_LEAST = 1e-20  # power, far below the rounding of float32 samples


def require_matplotlib() -> None:
    """Raise :class:`InputError` unless pictures can be drawn here."""
    try:
        importlib.import_module("matplotlib")
    except ModuleNotFoundError as error:
        raise InputError(f"pictures need the package {error.name}; install it with: pip install matplotlib") from error


class Spectrogram:
    """Mean power over channels, (ROWS, at most COLUMNS), of a signal that comes piece by piece.

    Rows are of equal height in mel from 0 to Nyquist, columns of equal time. Windows of ``n_fft`` samples lie within
    the signal, a shorter one in the middle of a single window. ``frames`` samples a channel are to come; no more is
    held than ``_AT_ONCE`` windows and a piece.
    """

    def __init__(self, frames: int, sample_rate: int, *, n_fft: int, hop: int):
        self.n_fft, self.hop, self.missing = n_fft, hop, frames
        self.padding = divmod(max(0, n_fft - frames), 2)
        self.windows = 1 + max(0, frames - n_fft) // hop
        self.done = 0
        bins = 1 + n_fft // 2
        hertz = 700 * (10 ** (np.linspace(0, _mel(sample_rate / 2), ROWS + 1) / 2595) - 1)
        self.heights = np.clip(hertz / (sample_rate / 2), 0, 1) * bins
        self.times = np.linspace(0, self.windows, min(COLUMNS, self.windows) + 1)
        self.sums = np.zeros((ROWS, len(self.times) - 1))
        self.pending: np.ndarray | None = None

    def push(self, piece: Float32[np.ndarray, "c n"]) -> None:
        """The next samples; c must stay the same."""
        half, odd = self.padding
        if self.pending is None:
            self.pending = np.zeros((len(piece), half), np.float32)
        self.missing -= piece.shape[-1]
        tail = np.zeros((len(piece), 0 if self.missing else half + odd), np.float32)
        self.pending = np.concatenate([self.pending, piece, tail], axis=-1)
        while (count := self._ready()) == _AT_ONCE or (count and not self.missing):
            self._add(self.pending[:, : (count - 1) * self.hop + self.n_fft], count)
            self.pending = self.pending[:, count * self.hop :]

    def _ready(self) -> int:
        """Windows that can be taken at once."""
        assert self.pending is not None
        held = 1 + (self.pending.shape[-1] - self.n_fft) // self.hop
        return max(0, min(_AT_ONCE, self.windows - self.done, held))

    def _add(self, samples: np.ndarray, count: int) -> None:
        windows = np.lib.stride_tricks.sliding_window_view(samples, self.n_fft, axis=-1)[:, :: self.hop]
        power = (np.abs(np.fft.rfft(windows * hann(self.n_fft).astype(np.float32))) ** 2).mean(0)
        rows = _between(power, self.heights) / np.diff(self.heights)
        self.sums += _between(rows.T, np.clip(self.times - self.done, 0, count))
        self.done += count

    @property
    def power(self) -> Float[np.ndarray, "r t"]:
        """Of what has come so far."""
        return self.sums / np.diff(self.times)


def power(signal: Float32[np.ndarray, "c s"], sample_rate: int, *, n_fft: int, hop: int) -> Float[np.ndarray, "r t"]:
    """The :class:`Spectrogram` of a signal that is at hand."""
    spectrogram = Spectrogram(signal.shape[-1], sample_rate, n_fft=n_fft, hop=hop)
    spectrogram.push(signal)
    return spectrogram.power


def _between(values: Float[np.ndarray, "r n"], places: Float[np.ndarray, " p"]) -> Float[np.ndarray, "r q"]:
    """(r, n) steps of width 1 → (r, p − 1): what lies under them between neighbouring ``places``, however near."""
    total = np.pad(np.cumsum(values, axis=1, dtype=np.float64), ((0, 0), (1, 0)))
    below = np.minimum(places.astype(int), values.shape[1] - 1)
    return np.maximum(np.diff(total[:, below] + (places - below) * values[:, below], axis=1), 0)


def _mel(hz: float) -> float:
    """O'Shaughnessy's mel scale, about linear to 1 kHz and logarithmic above."""
    return 2595 * math.log10(1 + hz / 700)


class SeparationFigure:
    """A picture of a song and what it was separated into, gathered as they stream by.

    ``frames`` samples a channel are to come. Raises :class:`InputError` as :func:`require` does.
    """

    def __init__(self, frames: int, sample_rate: int):
        require_matplotlib()
        self.frames, self.sample_rate = frames, sample_rate
        n_fft = 2 ** max(6, round(math.log2(sample_rate * 2048 / 44_100)))
        # With eight windows and more to a column, none needs to see what its neighbour has seen.
        hop = min(n_fft, max(n_fft // 4, frames // (8 * COLUMNS)))
        self.signals = {
            name: Spectrogram(frames, sample_rate, n_fft=n_fft, hop=hop)
            for name in ("mixture", "instrumental", "vocals")
        }

    def push(
        self,
        mixture: Float32[np.ndarray, "c n"],
        instrumental: Float32[np.ndarray, "c n"],
        vocals: Float32[np.ndarray, "c n"],
    ) -> None:
        """The next samples of each, any number of them."""
        for spectrogram, piece in zip(self.signals.values(), (mixture, instrumental, vocals), strict=True):
            spectrogram.push(piece)

    def png(self, title: str) -> bytes:
        """Four panels, in dB below the mixture's peak, and the mask: by which factor the mixture's magnitude became
        the instrumental's, blank where the mixture is silent."""
        powers = {name: spectrogram.power for name, spectrogram in self.signals.items()}
        mixture, kept = powers["mixture"], powers["instrumental"]
        heard = mixture > max(_LEAST, mixture.max() * 10 ** (FLOOR_DB / 10))
        mask = np.sqrt(np.divide(kept, mixture, out=np.full_like(kept, np.nan), where=heard))
        seconds = self.frames / self.sample_rate
        return draw_spectrograms(
            powers, short_title(title), seconds=seconds, sample_rate=self.sample_rate, mask=np.minimum(mask, 1)
        )


def short_title(name: str) -> str:
    """The name of a song, to be part of a title: on one line, at most 60 characters of it."""
    line = display_path(name)
    return line if len(line) <= 60 else f"{line[:59]}…"


def draw_spectrograms(
    powers: Mapping[str, Float[np.ndarray, "r t"]],
    title: str,
    *,
    seconds: float,
    sample_rate: int,
    mask: Float[np.ndarray, "r t"] | None = None,
) -> bytes:
    """A PNG of powers, one above the other, in dB below the peak of "mixture", and of a mask between 0 and 1.

    Raises ``ModuleNotFoundError`` without matplotlib. It needs no pyplot, whose state threads would share.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 8.2), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(len(powers) + (mask is not None), 1, sharex=True, sharey=True)
    shades = [colormaps[name].resampled(SHADES) for name in ("magma", "viridis")]
    top = max(float(powers["mixture"].max()), _LEAST)
    extent: _Extent = (0.0, seconds, 0.0, _mel(sample_rate / 2))
    for axes, (what, power) in zip(grid, powers.items(), strict=False):
        level = 10 * np.log10(np.maximum(power / top, 10 ** (FLOOR_DB / 10)))
        image = _panel(axes, what, level, extent, cmap=shades[0], vmin=FLOOR_DB, vmax=0)
    bars = [(image, grid[: len(powers)], "dB relative to the mixture's peak")]
    if mask is not None:
        name = "mask: instrumental / mixture"
        bars.append((_panel(grid[-1], name, mask, extent, cmap=shades[1], vmin=0, vmax=1), grid[-1:], "magnitude"))
    for drawn, beside, label in bars:
        figure.colorbar(drawn, ax=beside, label=label, aspect=13 * len(beside), pad=0.02)
    _label(grid, seconds, sample_rate)
    figure.supylabel("kHz", fontsize=9)
    figure.suptitle(title, fontsize=11, parse_math=False)  # a name may hold dollar signs
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of a name in a script that the font lacks
        canvas.draw()
    return _packed(np.asarray(canvas.buffer_rgba()), shades)


def _panel(axes: Axes, title: str, cells: np.ndarray, extent: _Extent, **options: Any) -> AxesImage:
    axes.set_title(title, loc="left", fontsize=10)
    return axes.imshow(cells, origin="lower", aspect="auto", interpolation="nearest", extent=extent, **options)


def _label(grid: np.ndarray, seconds: float, sample_rate: int) -> None:
    ticks = [hz for hz in TICKS_HZ if hz <= sample_rate / 2]
    for axes in grid:
        axes.set_yticks([_mel(hz) for hz in ticks], [f"{hz / 1000:g}" for hz in ticks])
        axes.tick_params(labelsize=8)
    step = next((step for step in TICKS_SECONDS if seconds / step <= 10), TICKS_SECONDS[-1])
    times = np.arange(0, seconds + step / 1000, step)
    long = seconds > 90
    grid[-1].set_xticks(times, [f"{t // 60:.0f}:{t % 60:02.0f}" if long else f"{t:g}" for t in times.round(3)])
    grid[-1].set_xlabel("min:s" if long else "s", fontsize=9)


def _packed(pixels: np.ndarray, shades: list[Any]) -> bytes:
    """A PNG of the colours of ``shades`` and of greys for the lettering, and no others."""
    from PIL import Image

    palette = Image.new("P", (1, 1))
    greys = np.repeat(np.arange(0, 256, 17, dtype=np.uint8)[:, None], 3, axis=1)
    colours = [shade(range(SHADES), bytes=True)[:, :3] for shade in shades]
    palette.putpalette(np.concatenate([*colours, greys]).tobytes())
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels).convert("RGB")
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
