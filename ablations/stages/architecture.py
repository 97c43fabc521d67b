"""Stage ``architecture``: the signal path of the default model as a figure, its numbers read from the configuration."""

from __future__ import annotations

import io
from typing import NamedTuple

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch

from ablations.figures import FIGURES, PAGE, STYLE
from ablations.stages import run_stage
from twinsep.config import UNetConfig, preset
from twinsep.utils.files import write_atomically

OUT = FIGURES / "architecture.svg"
#: Size of the canvas in units of its coordinates; its width in print is that of the paper's text.
WIDTH, HEIGHT = 820, 606
TEXT, SMALL_TEXT = 6.5, 6  # points in print
# Tints of the colours of Okabe and Ito (2008), which colour-blind readers can tell apart.
ENCODER, MIDDLE, DECODER, MEMORY, SIGNAL = "#cfe3f1", "#c9ead9", "#fbe0c4", "#f0dbe7", "#f2f2f2"
INK, SKIP, READ = "#222222", "#0072b2", "#a8467f"
MEMORY_DASHES = (0, (4, 2))

Point = tuple[float, float]


class Box(NamedTuple):
    """A rectangle on the canvas."""

    left: float
    bottom: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """x of the right side."""
        return self.left + self.width

    @property
    def top(self) -> float:
        """y of the upper side."""
        return self.bottom + self.height

    @property
    def x(self) -> float:
        """x of the centre."""
        return self.left + self.width / 2

    @property
    def y(self) -> float:
        """y of the centre."""
        return self.bottom + self.height / 2

    def mirrored(self) -> Box:
        """The box reflected in the vertical axis of the canvas: a decoder's, given an encoder's."""
        return self._replace(left=WIDTH - self.right)


#: Encoder levels 1 to 3, each a step further in and down, the bottleneck, and the memory below them all.
LEVELS = tuple(Box(40 + 42 * level, 372 - 90 * level, 175, 62) for level in range(3))
BOTTLENECK = Box(305, 102, 210, 62)
BANK = Box(40, 10, 740, 50)
SPLIT = Box(40, 456, 175, 62)
MIXTURE, STFT = Box(8, 546, 72, 50), Box(102, 546, 113, 50)
ISTFT, INSTRUMENTAL = Box(645, 546, 54, 50), Box(717, 546, 97, 50)
PRODUCT: Point = (616, 571)


def main() -> None:
    """Draw the figure and write it as SVG."""
    with plt.style.context(STYLE):
        buffer = io.BytesIO()
        model = preset("paper").model
        assert isinstance(model, UNetConfig)
        draw(model).savefig(buffer, format="svg", metadata={"Date": None})
    write_atomically(OUT, buffer.getvalue())


def draw(model: UNetConfig) -> Figure:
    """The figure for ``model``, whose sizes stand in its boxes."""
    figure = plt.figure(figsize=(PAGE, PAGE * HEIGHT / WIDTH), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
    axes.axis("off")
    _transform(axes, model)
    _u_net(axes, model)
    _memory(axes, model)
    _legend(axes)
    return figure


def _transform(axes: Axes, model: UNetConfig) -> None:
    """The upper row: mixture to spectrum, mask times spectrum, and back to samples."""
    spectrum = f"(2, {model.n_bins}, T)"
    head = SPLIT.mirrored()
    _box(axes, MIXTURE, SIGNAL, "mixture", "(2, S)")
    _box(axes, STFT, SIGNAL, "STFT", f"{model.n_fft}, hop {model.hop}")
    inputs = {"complex": "spectrum", "complex+level": "spectrum and log levels"}[model.features]
    _box(axes, SPLIT, ENCODER, "BandSplit", inputs, f"{model.n_bands} bands {_features(model, 0)}")
    _box(axes, head, DECODER, "MaskHead", "complex mask", spectrum)
    _box(axes, ISTFT, SIGNAL, "iSTFT")
    _box(axes, INSTRUMENTAL, SIGNAL, model.targets[0], "(2, S)")
    axes.add_patch(Circle(PRODUCT, 11, facecolor="white", edgecolor=INK, linewidth=1))
    axes.text(*PRODUCT, "×", ha="center", va="center_baseline", fontsize=9)
    _arrow(axes, (MIXTURE.right, MIXTURE.y), (STFT.left, STFT.y))
    _arrow(axes, (STFT.x, STFT.bottom), (STFT.x, SPLIT.top))
    _arrow(axes, (STFT.right, STFT.y), (PRODUCT[0] - 11, PRODUCT[1]))
    axes.text(WIDTH / 2, PRODUCT[1] + 5, f"spectrum of the mixture {spectrum}", ha="center", va="bottom", fontsize=TEXT)
    _arrow(axes, (PRODUCT[0], head.top), (PRODUCT[0], PRODUCT[1] - 11))
    _arrow(axes, (PRODUCT[0] + 11, PRODUCT[1]), (ISTFT.left, ISTFT.y))
    _arrow(axes, (ISTFT.right, ISTFT.y), (INSTRUMENTAL.left, INSTRUMENTAL.y))
    _arrow(axes, (SPLIT.x, SPLIT.bottom), (LEVELS[0].x, LEVELS[0].top))
    _arrow(axes, (head.x, LEVELS[0].top), (head.x, head.bottom))


def _u_net(axes: Axes, model: UNetConfig) -> None:
    """Encoder, bottleneck and decoder, with the gated skips between levels."""
    for level, box in enumerate(LEVELS):
        other = box.mirrored()
        blocks = "DualPath" if level == 2 else "(LocalConv, DualPath)"
        _box(axes, box, ENCODER, f"Encoder {level + 1}", f"{model.n_enc} × {blocks}", _features(model, level))
        _box(axes, other, DECODER, f"Decoder {level + 1}", f"{model.n_dec} × DecoderBlock", _features(model, level))
        high = box.bottom + 45
        _arrow(axes, (box.right, high), (other.left, high), color=SKIP)
        axes.text(WIDTH / 2, high + 3, f"skip $e_{level + 1}$", ha="center", va="bottom", color=SKIP, fontsize=TEXT)
        below = LEVELS[level + 1] if level < 2 else BOTTLENECK
        turn, low = box.right + 24, box.bottom + 18
        _arrow(axes, (box.right, low), (turn, low), (turn, below.top))
        _arrow(axes, (WIDTH - turn, below.top), (WIDTH - turn, low), (other.left, low))
        axes.text(turn + 5, low - 2, "Downsample", ha="left", va="center", fontsize=SMALL_TEXT)
        axes.text(WIDTH - turn - 5, low - 2, "Upsample", ha="right", va="center", fontsize=SMALL_TEXT)
    pairs = model.n_bottleneck // 2
    _box(axes, BOTTLENECK, MIDDLE, "Bottleneck", f"{pairs} × (DualPath, GlobalAttention)", _features(model, 3))


def _memory(axes: Axes, model: UNetConfig) -> None:
    """The pooled memory, fed by four levels and read by the decoder."""
    tokens = model.memory_tokens
    total = f"{' + '.join(map(str, tokens))} = {sum(tokens)} tokens"
    _box(axes, BANK, MEMORY, "MemoryBank", f"{total} ({model.n_bands}, {sum(tokens)}, {model.d_model})")
    for level, box in enumerate(LEVELS):
        x = box.left + 25
        _arrow(axes, (x, box.bottom), (x, BANK.top), color=READ, style=MEMORY_DASHES)
        _arrow(axes, (WIDTH - x, BANK.top), (WIDTH - x, box.bottom), color=READ, style=MEMORY_DASHES)
        axes.text(x + 5, BANK.top + 14, f"{tokens[level]}", ha="left", va="center", color=READ, fontsize=TEXT)
    _arrow(axes, (BOTTLENECK.x, BOTTLENECK.bottom), (BOTTLENECK.x, BANK.top), color=READ, style=MEMORY_DASHES)
    axes.text(BOTTLENECK.x + 5, BANK.top + 14, f"{tokens[3]}", ha="left", va="center", color=READ, fontsize=TEXT)


def _legend(axes: Axes) -> None:
    """Names of the three kinds of arrows, and what the boxes have no room for."""
    lines = (
        (INK, "-", "features (bands, frames, width)"),
        (SKIP, "-", "gated skip from the encoder"),
        (READ, MEMORY_DASHES, "memory: pooled over time, read by cross-attention"),
    )
    for row, (color, style, text) in enumerate(lines):
        y = 514 - 16 * row
        _arrow(axes, (240, y), (272, y), color=color, style=style)
        axes.text(280, y, text, ha="left", va="center", fontsize=SMALL_TEXT)
    notes = ("DualPath: mixer over time, mixer over bands, SwiGLU", "T = 1 + ⌊S / hop⌋ frames; batch axis left out")
    for row, text in enumerate(notes, len(lines)):
        axes.text(240, 514 - 16 * row, text, ha="left", va="center", fontsize=SMALL_TEXT)


def _features(model: UNetConfig, level: int) -> str:
    """The shape of the features after a number of halvings of time."""
    frames = "T" if level == 0 else f"T/{2**level}"
    return f"({model.n_bands}, {frames}, {model.d_model})"


def _box(axes: Axes, box: Box, color: str, title: str, *lines: str) -> None:
    """A box with its name in bold above its lines."""
    rectangle = (box.left, box.bottom), box.width, box.height
    style = "round,pad=0,rounding_size=5"
    axes.add_patch(FancyBboxPatch(*rectangle, boxstyle=style, facecolor=color, edgecolor=INK, linewidth=0.8))
    step = 16
    top = box.y + step * len(lines) / 2
    for row, text in enumerate((title, *lines)):
        weight = "bold" if row == 0 else "normal"
        axes.text(box.x, top - step * row, text, ha="center", va="center_baseline", fontsize=TEXT, fontweight=weight)


def _arrow(axes: Axes, *points: Point, color: str = INK, style: object = "-") -> None:
    """A line through ``points`` with a head at the last one."""
    *before, corner, end = points
    if before:
        axes.plot(*zip(*before, corner, strict=True), color=color, linewidth=0.9, solid_joinstyle="miter")
    arrow = FancyArrowPatch(
        corner, end, arrowstyle="-|>", mutation_scale=8, color=color, linewidth=0.9, shrinkA=0, shrinkB=0
    )
    arrow.set_linestyle(style)  # type: ignore[arg-type]
    axes.add_patch(arrow)


if __name__ == "__main__":
    run_stage(main)
