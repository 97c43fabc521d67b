"""Stage ``data``: generate the default songs, unless ``data.root`` names other ones."""

from __future__ import annotations

from ablations import settings
from ablations.stages import run_stage


def main() -> None:
    """Write ``results/data/generated``, of the size that ``songs`` in ``params.yaml`` gives for the profile."""
    if not settings.uses_generated_songs():
        settings.GENERATED.mkdir(parents=True, exist_ok=True)  # DVC requires the output to exist
        return
    from twinsep.data.synth.generate import generate_dataset

    settings.profile()  # raises for an unknown one
    params = settings.params()
    songs = dict(params["songs"][params["profile"]])
    seconds = songs.pop("seconds")
    generate_dataset(settings.GENERATED, songs=songs, seconds=seconds, seed=params["data"]["seed"])


if __name__ == "__main__":
    run_stage(main)
