"""Stage ``input_length``: quality and leakage of rows of the ablations by the length of the chunks they separate.

Test songs are shorter than the longest chunk, so that consecutive ones are joined to medleys. Every length sees the
same medleys; neighbouring chunks share a quarter, as always.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pandas as pd

from ablations import settings
from ablations.stages import run_stage
from ablations.systems import rows
from twinsep.data import dataset
from twinsep.evaluation.evaluate import score_stem
from twinsep.metrics import aggregate
from twinsep.separation import separator
from twinsep.separation.overlap_add import Chunking, apply_model
from twinsep.utils import progress, provenance
from twinsep.utils.files import write_atomically, write_json

OUT, SCORES = rows.ROOT / "input_length.json", rows.ROOT / "input_length.csv"
#: Songs of a medley.
SONGS = 3
#: Column -> (stem, metric).
METRICS = {"uSDR": ("instrumental", "usdr"), "cSDR": ("instrumental", "csdr"), "leakage": ("vocals", "leakage")}


def main() -> None:
    """Write the score of every medley to a table, and means over medleys and seeds with the provenance beside it."""
    wanted = rows.table()["input_length"]
    lines: list[dict[str, Any]] = []
    runs = [(name, seed) for name in wanted["groups"] for seed in settings.seeds(name)[: len(rows.seeds())]]
    with progress.progress_bar("chunk lengths") as report:
        for done, (name, seed) in enumerate(runs):
            lines += _scores(name, seed, wanted["seconds"])
            report(done + 1, len(runs))
    table = pd.DataFrame(lines)
    write_atomically(SCORES, table.round(4).to_csv(index=False).encode())
    means = [
        {"group": group, "seconds": seconds, **{m: round(aggregate(own[m])["mean"], 4) for m in METRICS}}
        for (group, seconds), own in table.groupby(["group", "seconds"], sort=False)
    ]
    setting = {"medleys": table["medley"].nunique(), "songs_per_medley": SONGS, "seeds": len(rows.seeds())}
    write_json(OUT, {"means": means, **setting, **provenance.describe(settings.profile()["device"])})


def _scores(group: str, seed: int, lengths: list[float]) -> list[dict[str, Any]]:
    """The scores of one run, one line per length and medley."""
    framework, device = settings.groups()[group].framework, settings.profile()["device"]
    loaded = separator.load(settings.weights_path(group, seed), framework, device=device)
    rate, lines = loaded.config.model.sample_rate, []
    songs = iter(dataset.tracks(settings.data_root(), "test", sample_rate=rate))
    medley = 0
    while joined := list(islice(songs, SONGS)):
        truths = {
            stem: np.concatenate([song.read(stem) for song in joined], -1)
            for stem in ("mixture", "instrumental", "vocals")
        }
        for seconds in lengths:
            instrumental = apply_model(loaded.model, truths["mixture"], Chunking(seconds).grid(loaded.config))[0]
            estimates = {"instrumental": instrumental, "vocals": truths["mixture"] - instrumental}
            found = {
                stem: score_stem(estimates[stem], truths[stem], truths["mixture"], rate)
                for stem in ("instrumental", "vocals")
            }
            own = {column: found[stem][metric] for column, (stem, metric) in METRICS.items()}
            lines.append({"group": group, "seed": seed, "seconds": seconds, "medley": medley, **own})
        medley += 1
    return lines


if __name__ == "__main__":
    run_stage(main)
