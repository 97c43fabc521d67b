"""Stage ``separate``: separate a song with the base run, as ``twinsep separate --two-stems vocals`` does."""

import tempfile
from pathlib import Path

from ablations import settings
from ablations.stages import run_stage
from twinsep import audio
from twinsep.data import dataset
from twinsep.separation import batch
from twinsep.separation.file import Encoding

OUT = Path("results/work/separated")


def song() -> dataset.Track:
    """The real excerpt, or the first test song of a set without one."""
    return dataset.tracks(settings.data_root(), settings.splits()[-1])[0]


def main() -> None:
    """Write the stems into ``mixture/``. A song in stems may have no mixture file, and that of a pair is ``in.wav``."""
    chosen = song()
    with tempfile.TemporaryDirectory() as folder:
        mixture = Path(folder) / "mixture.wav"
        audio.write(mixture, chosen.read("mixture"), chosen.sample_rate, subtype="FLOAT")
        options = batch.SeparationOptions(
            out=OUT,
            checkpoint=settings.weights_path(settings.BASE_GROUP, 0),
            two_stems="vocals",
            encoding=Encoding("PCM_24"),
            overwrite=True,
            device=settings.profile()["device"],
        )
        batch.separate_files([mixture], options)


if __name__ == "__main__":
    run_stage(main)
