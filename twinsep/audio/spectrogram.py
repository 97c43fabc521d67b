"""Mel spectrograms, computed in one piece or as a stream, and drawn as PNG."""

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

#: Lowest level shown, in dB relative to the mixture's peak.
FLOOR_DB = -80
#: Cells and colours of a spectrogram. More of them, or shades finer than 2 dB, show little more and compress badly.
ROWS, COLUMNS, SHADES = 88, 360, 40
TICKS_HZ = (0.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16000.0)
TICKS_SECONDS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 3600)
_Extent = tuple[float, float, float, float]
_BATCH = 64  # windows transformed at once
_LEAST_POWER = 1e-20  # far below the rounding error of float32 samples


def require_matplotlib() -> None:
    """Raise :class:`InputError` if matplotlib is not installed."""
    try:
        importlib.import_module("matplotlib")
    except ModuleNotFoundError as error:
        raise InputError(
            f"spectrograms need the package {error.name}; install it with: pip install matplotlib"
        ) from error


class Spectrogram:
    """A streamed mel spectrogram: power averaged over channels, (R, T), with R = ROWS and T at most COLUMNS.

    Rows have equal height in mel from 0 Hz to Nyquist, and columns equal duration. Windows of ``n_fft`` samples, every
    ``hop`` samples, lie within the signal; a signal shorter than ``n_fft`` is centred in a single window. ``frames``
    is the length of the whole signal in samples per channel. Memory does not grow with it: at most ``_BATCH`` windows
    and one block are held.
    """

    def __init__(self, frames: int, sample_rate: int, *, n_fft: int, hop: int):
        self.n_fft, self.hop, self.remaining = n_fft, hop, frames
        self.padding = divmod(max(0, n_fft - frames), 2)
        self.windows = 1 + max(0, frames - n_fft) // hop
        self.done = 0
        bins = 1 + n_fft // 2
        hertz = 700 * (10 ** (np.linspace(0, _mel(sample_rate / 2), ROWS + 1) / 2595) - 1)
        self.row_edges = np.clip(hertz / (sample_rate / 2), 0, 1) * bins  # in bins
        self.column_edges = np.linspace(0, self.windows, min(COLUMNS, self.windows) + 1)  # in windows
        self.sums = np.zeros((ROWS, len(self.column_edges) - 1))
        self.pending: np.ndarray | None = None

    def push(self, block: Float32[np.ndarray, "c s"]) -> None:
        """Add the next (C, S) samples; C must be the same in every call."""
        half, odd = self.padding
        if self.pending is None:
            self.pending = np.zeros((len(block), half), np.float32)
        self.remaining -= block.shape[-1]
        tail = np.zeros((len(block), 0 if self.remaining else half + odd), np.float32)
        self.pending = np.concatenate([self.pending, block, tail], axis=-1)
        while (count := self._ready()) == _BATCH or (count and not self.remaining):
            self._add(self.pending[:, : (count - 1) * self.hop + self.n_fft], count)
            self.pending = self.pending[:, count * self.hop :]

    def _ready(self) -> int:
        """Return the number of windows to transform next."""
        assert self.pending is not None
        complete = 1 + (self.pending.shape[-1] - self.n_fft) // self.hop
        return max(0, min(_BATCH, self.windows - self.done, complete))

    def _add(self, samples: np.ndarray, count: int) -> None:
        windows = np.lib.stride_tricks.sliding_window_view(samples, self.n_fft, axis=-1)[:, :: self.hop]  # (c, w, n)
        power = (np.abs(np.fft.rfft(windows * hann(self.n_fft).astype(np.float32))) ** 2).mean(0)  # (w, f)
        rows = _integrate(power, self.row_edges) / np.diff(self.row_edges)  # (w, r)
        self.sums += _integrate(rows.T, np.clip(self.column_edges - self.done, 0, count))  # (r, t)
        self.done += count

    @property
    def power(self) -> Float[np.ndarray, "r t"]:
        """Power (R, T) of the samples pushed so far."""
        return self.sums / np.diff(self.column_edges)


def power(signal: Float32[np.ndarray, "c s"], sample_rate: int, *, n_fft: int, hop: int) -> Float[np.ndarray, "r t"]:
    """Return the power (R, T) of a whole signal (C, S); see :class:`Spectrogram`."""
    spectrogram = Spectrogram(signal.shape[-1], sample_rate, n_fft=n_fft, hop=hop)
    spectrogram.push(signal)
    return spectrogram.power


def _integrate(values: Float[np.ndarray, "r n"], edges: Float[np.ndarray, " p"]) -> Float[np.ndarray, "r q"]:
    """Integrate rows (R, N) of steps of width 1 between neighbouring ``edges`` (P): (R, P − 1)."""
    total = np.pad(np.cumsum(values, axis=1, dtype=np.float64), ((0, 0), (1, 0)))  # (r, n + 1)
    below = np.minimum(edges.astype(int), values.shape[1] - 1)
    return np.maximum(np.diff(total[:, below] + (edges - below) * values[:, below], axis=1), 0)


def _mel(hz: float) -> float:
    """Convert Hz to mel (O'Shaughnessy 1987): about linear up to 1 kHz, logarithmic above."""
    return 2595 * math.log10(1 + hz / 700)


class SeparationFigure:
    """Spectrograms of a song and its stems, computed while they are streamed.

    ``frames`` is the length of the song in samples per channel. Raises :class:`InputError` without matplotlib.
    """

    def __init__(self, frames: int, sample_rate: int):
        require_matplotlib()
        self.frames, self.sample_rate = frames, sample_rate
        n_fft = 2 ** max(6, round(math.log2(sample_rate * 2048 / 44_100)))
        # Long songs have at least eight windows per column, so that windows need not overlap.
        hop = min(n_fft, max(n_fft // 4, frames // (8 * COLUMNS)))
        self.signals = {
            name: Spectrogram(frames, sample_rate, n_fft=n_fft, hop=hop)
            for name in ("mixture", "instrumental", "vocals")
        }

    def push(
        self,
        mixture: Float32[np.ndarray, "c s"],
        instrumental: Float32[np.ndarray, "c s"],
        vocals: Float32[np.ndarray, "c s"],
    ) -> None:
        """Add the next (C, S) samples of each signal."""
        for spectrogram, block in zip(self.signals.values(), (mixture, instrumental, vocals), strict=True):
            spectrogram.push(block)

    def png(self, title: str) -> bytes:
        """Draw the three signals in dB relative to the mixture's peak, and the mask.

        The mask is the instrumental's magnitude divided by the mixture's, at most 1; blank where the mixture is silent.
        """
        powers = {name: spectrogram.power for name, spectrogram in self.signals.items()}
        mixture, instrumental = powers["mixture"], powers["instrumental"]
        audible = mixture > max(_LEAST_POWER, mixture.max() * 10 ** (FLOOR_DB / 10))
        mask = np.sqrt(np.divide(instrumental, mixture, out=np.full_like(mixture, np.nan), where=audible))
        seconds = self.frames / self.sample_rate
        return draw_spectrograms(
            powers, short_title(title), seconds=seconds, sample_rate=self.sample_rate, mask=np.minimum(mask, 1)
        )


def short_title(name: str) -> str:
    """Return a song's name on one line, cut to 60 characters."""
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
    """Return a PNG of spectrograms, one above the other, and of a mask between 0 and 1 below them.

    ``powers`` maps names to (R, T) and contains "mixture", to whose peak levels in dB are relative. Raises
    ``ModuleNotFoundError`` without matplotlib.
    """
    from matplotlib import colormaps  # not pyplot, whose state threads would share
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.2, 8.2), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(len(powers) + (mask is not None), 1, sharex=True, sharey=True)
    shades = [colormaps[name].resampled(SHADES) for name in ("magma", "viridis")]
    top = max(float(powers["mixture"].max()), _LEAST_POWER)
    extent: _Extent = (0.0, seconds, 0.0, _mel(sample_rate / 2))
    for axes, (name, power) in zip(grid, powers.items(), strict=False):
        level = 10 * np.log10(np.maximum(power / top, 10 ** (FLOOR_DB / 10)))
        image = _panel(axes, name, level, extent, cmap=shades[0], vmin=FLOOR_DB, vmax=0)
    bars = [(image, grid[: len(powers)], "dB relative to the mixture's peak")]
    if mask is not None:
        title_of_mask = "mask: instrumental / mixture"
        bars.append(
            (_panel(grid[-1], title_of_mask, mask, extent, cmap=shades[1], vmin=0, vmax=1), grid[-1:], "magnitude")
        )
    for image, panels, label in bars:
        figure.colorbar(image, ax=panels, label=label, aspect=13 * len(panels), pad=0.02)
    _label(grid, seconds, sample_rate)
    figure.supylabel("kHz", fontsize=9)
    figure.suptitle(title, fontsize=11, parse_math=False)  # a name may contain dollar signs
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the font may lack the script of a name
        canvas.draw()
    return _to_png(np.asarray(canvas.buffer_rgba()), shades)


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


def _to_png(pixels: np.ndarray, shades: list[Any]) -> bytes:
    """Encode pixels as PNG with a palette: the colours of ``shades``, and greys for text."""
    from PIL import Image

    palette = Image.new("P", (1, 1))
    greys = np.repeat(np.arange(0, 256, 17, dtype=np.uint8)[:, None], 3, axis=1)
    colours = [shade(range(SHADES), bytes=True)[:, :3] for shade in shades]
    palette.putpalette(np.concatenate([*colours, greys]).tobytes())
    buffer = io.BytesIO()
    picture = Image.fromarray(pixels).convert("RGB")
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
