"""Stage ``edges``: measure how well a song's first and last second are separated.

An excerpt of a test song is separated alone, as ``twinsep separate`` does, and as part of its song. The difference
between the scores of its first, middle and last second is the loss at the ends of a song.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import twinsep
from ablations import settings
from ablations.stages import run_stage
from twinsep import metrics
from twinsep.data import dataset
from twinsep.separation.overlap_add import apply_model
from twinsep.utils import progress, provenance
from twinsep.utils.files import write_json

OUT = Path("results/edges.json")
SECONDS = 7  # longest excerpt; the song continues for a second before and after it
EXCERPTS = 3  # per song
PLACES = ("first second", "middle second", "last second")


def main() -> None:
    """Write ``results/edges.json``."""
    checkpoint = settings.weights_path(settings.BASE_GROUP, 0)
    device = settings.profile()["device"]
    separator = twinsep.load(checkpoint, device=device)
    model, chunking, rate = separator.model, separator.grid, separator.sample_rate
    songs = dataset.tracks(settings.data_root(), "test", sample_rate=rate)
    lost: dict[str, list[float]] = {place: [] for place in PLACES}
    with progress.progress_bar("edges") as report:
        for done, song in enumerate(songs, 1):
            mixture, truth = song.read("mixture"), song.read("instrumental")
            whole = apply_model(model, mixture, chunking)[0]
            seconds = min(SECONDS, mixture.shape[1] // rate - 2)
            for start in np.linspace(rate, mixture.shape[1] - (seconds + 1) * rate, EXCERPTS).astype(int):
                part = slice(start, start + seconds * rate)
                alone = apply_model(model, mixture[:, part], chunking)[0]
                for place, second in zip(PLACES, (0, seconds // 2, seconds - 1), strict=True):
                    here = slice(second * rate, (second + 1) * rate)
                    scores = [float(metrics.usdr(x[:, here], truth[:, part][:, here])) for x in (alone, whole[:, part])]
                    lost[place].append(scores[1] - scores[0])
            report(done, len(songs))
    record = {
        "what": "uSDR of the instrumental within the song minus that of the excerpt alone, per second of audio, in dB",
        "excerpts": {"songs": len(songs), "of each": EXCERPTS, "seconds, at most": SECONDS},
        "chunks": {"segment": chunking.segment, "overlap": chunking.overlap, "context": chunking.context},
        "lost": {place: _summary(values) for place, values in lost.items()},
    }
    write_json(OUT, {**record, **provenance.describe(device)})


def _summary(values: list[float]) -> dict[str, Any]:
    defined = np.array([value for value in values if np.isfinite(value)])
    error = defined.std(ddof=1) / np.sqrt(len(defined)) if len(defined) > 1 else np.nan
    numbers = {"mean": defined.mean(), "standard error": error, "worst": defined.max()}
    return {"n": len(defined), **{name: round(float(value), 3) for name, value in numbers.items()}}


if __name__ == "__main__":
    run_stage(main)
