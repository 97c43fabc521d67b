"""Stage ``separate``: the base run separates a song, as ``twinsep separate --two-stems vocals`` does."""

import tempfile
from pathlib import Path

from ablations import settings
from twinsep import audio, data, songs
from twinsep.cli import guarded
from twinsep.one_song import Encoding
from twinsep.runs import BEST

OUT = Path("results/work/separated")


def song() -> data.Track:
    """The real excerpt; of a set without one its first test song."""
    return data.tracks(settings.data_root(), settings.splits()[-1])[0]


def main() -> None:
    """Into ``mixture/``, whatever the song's files: stems may lie without their mixture, and a pair's is ``in.wav``."""
    taken = song()
    with tempfile.TemporaryDirectory() as folder:
        mixture = Path(folder) / "mixture.wav"
        audio.write(mixture, taken.read("mixture"), taken.sample_rate, subtype="FLOAT")
        options = songs.Options(
            out=OUT,
            checkpoint=settings.RUNS / "torch-base-0" / BEST,
            two_stems="vocals",
            encoding=Encoding("PCM_24"),
            overwrite=True,
            device=settings.profile()["device"],
        )
        songs.run([mixture], options)


if __name__ == "__main__":
    guarded(main)
