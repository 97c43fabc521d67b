"""Stage ``separate``: the base run separates a song, as ``twinsep separate --vocals`` does."""

from pathlib import Path

from ablations import settings
from twinsep import data, songs
from twinsep.cli import guarded
from twinsep.training import BEST

OUT = Path("results/work/separated")


def song() -> data.Track:
    """The real excerpt; with another data set its first test song."""
    return data.tracks(settings.data_root(), settings.splits()[-1])[0]


def main() -> None:
    songs.run(
        [song().folder / "mixture.wav"],
        out=OUT,
        checkpoint=settings.RUNS / "torch-base-0" / BEST,
        vocals=True,
        extension="wav",
        overlap=0.25,
        segment=None,
        overwrite=True,
        framework="torch",
        device=settings.profile()["device"],
    )


if __name__ == "__main__":
    guarded(main)
