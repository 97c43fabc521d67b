"""Stage ``figure``: draw spectrograms of the song that stage ``separate`` separated, for the README."""

from __future__ import annotations

import io
import json
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np

from ablations import figures, settings
from ablations.stages import run_stage, separate
from twinsep import audio
from twinsep.stft import stft
from twinsep.utils.files import write_atomically

OUT = figures.FIGURES / "separation.png"


def main() -> None:
    """Draw mixture, estimates and true stems on one scale."""
    song = separate.song()
    folder = separate.OUT / "mixture"
    shown = {
        "mixture": song.read("mixture"),
        "instrumental, estimated": audio.read(folder / "instrumental.wav")[0],
        "vocals, estimated": audio.read(folder / "vocals.wav")[0],
        "instrumental, true": song.read("instrumental"),
        "vocals, true": song.read("vocals"),
    }
    run = json.loads(settings.run_path(settings.BASE_GROUP, 0).read_text())
    steps = run["configuration"]["training"]["steps"]
    draw(shown, f"{song.name}\n{describe(run['parameters'], steps, run['device'])}", song.sample_rate, OUT)


def describe(parameters: int, steps: int, device: str) -> str:
    """Size, steps and device of a run, in three lines."""
    return f"{parameters:,} parameters,\n{steps:,} steps on\n{device}"


def draw(shown: dict[str, np.ndarray], note: str, sample_rate: int, out: Path) -> None:
    """Draw spectrograms of five waveforms (2, S), the mixture first, on one scale, and a note; write a PNG."""
    figure, grid = plt.subplots(2, 3, figsize=(10, 5), sharex=True, sharey=True, layout="constrained")
    places = (grid[0, 0], grid[0, 1], grid[0, 2], grid[1, 1], grid[1, 2])
    loudest = np.abs(_spectrum(shown["mixture"])).max()
    seconds, hertz = shown["mixture"].shape[-1] / sample_rate, sample_rate / 2
    for axes, (title, waveform) in zip(places, shown.items(), strict=True):
        image = figures.draw_spectrogram(axes, figures.decibels(_spectrum(waveform), loudest), seconds, hertz)
        axes.set_title(title, fontsize=10)
    grid[1, 0].axis("off")
    grid[1, 0].text(0, 0.5, note, fontsize=9, va="center")
    figure.supxlabel("s", fontsize=9)
    figure.supylabel("kHz", fontsize=9)
    figure.colorbar(image, ax=grid, label="dB")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, metadata={"Software": None})
    write_atomically(out, buffer.getvalue())


def _spectrum(waveform: np.ndarray) -> np.ndarray:
    return stft(waveform.mean(0), n_fft=2048, hop=512)


if __name__ == "__main__":
    run_stage(main)
