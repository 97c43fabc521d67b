"""Stage ``songs``: make the songs for training, validation and the proof; a stopped stage resumes song by song."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from ablations.release import settings
from ablations.stages import run_stage
from twinsep.data.recordings.generate import Sources, make_dataset
from twinsep.data.recordings.song import Recipe
from twinsep.errors import InputError


def main() -> None:
    """Write ``results/data/release``."""
    songs = settings.recipe()["songs"]
    sources = Sources(settings.MATERIAL, settings.RECORDINGS)
    make_dataset(settings.SONGS, songs=songs["counts"], recipe=recipe(), seed=songs["seed"], sources=sources)


def recipe() -> Recipe:
    """The recipe of the songs; raises :class:`InputError` for a faulty one."""
    try:
        return TypeAdapter(Recipe).validate_python(settings.recipe()["songs"]["recipe"])
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"release.yaml: songs.recipe.{where}: {first['msg']}") from error


if __name__ == "__main__":
    run_stage(main)
