"""Stage ``figure``: draw spectrograms of the real excerpt that the released weights separate, for the README."""

from __future__ import annotations

import json

from ablations.release import export, settings
from ablations.stages import run_stage
from ablations.stages.figure import describe, draw
from twinsep.data.dataset import tracks
from twinsep.separation.separator import load

OUT = settings.RELEASED / "separation.png"


def main() -> None:
    """Draw mixture, estimates and true stems."""
    song = tracks(settings.SONGS, "real")[0]
    mixture = song.read("mixture")
    instrumental = load(settings.WEIGHTS)(mixture, song.sample_rate)["instrumental"]
    shown = {
        "mixture": mixture,
        "instrumental, estimated": instrumental,
        "vocals, estimated": mixture - instrumental,
        "instrumental, true": song.read("instrumental"),
        "vocals, true": song.read("vocals"),
    }
    phases = json.loads(export.OUT.read_text())["phases"]
    steps = sum(phase["configuration"]["training"]["steps"] for phase in phases)
    note = describe(phases[-1]["parameters"], steps, "an NVIDIA H100")
    draw(shown, f"{song.name}\n{note}", song.sample_rate, OUT)


if __name__ == "__main__":
    run_stage(main)
