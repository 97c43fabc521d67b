"""Stage ``separate``: the base run separates a song, as ``twinsep separate --two-stems vocals`` does."""

import tempfile
from pathlib import Path

from ablations import settings
from twinsep import audio
from twinsep.data import dataset
from twinsep.errors import guarded
from twinsep.separation import batch
from twinsep.separation.file import Encoding
from twinsep.training.run_dir import BEST

OUT = Path("results/work/separated")


def song() -> dataset.Track:
    """The real excerpt; of a set without one its first test song."""
    return dataset.tracks(settings.data_root(), settings.splits()[-1])[0]


def main() -> None:
    """Into ``mixture/``, whatever the song's files: stems may lie without their mixture, and a pair's is ``in.wav``."""
    taken = song()
    with tempfile.TemporaryDirectory() as folder:
        mixture = Path(folder) / "mixture.wav"
        audio.write(mixture, taken.read("mixture"), taken.sample_rate, subtype="FLOAT")
        options = batch.SeparationOptions(
            out=OUT,
            checkpoint=settings.RUNS / "torch-base-0" / BEST,
            two_stems="vocals",
            encoding=Encoding("PCM_24"),
            overwrite=True,
            device=settings.profile()["device"],
        )
        batch.separate_files([mixture], options)


if __name__ == "__main__":
    guarded(main)
