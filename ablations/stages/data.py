"""Stage ``data``: make the songs, or take stock of the set that ``data.root`` names.

Later stages depend on the songs made and on ``results/work/data.json``, which lists the tracks of either
kind with the sizes of their files, so that another set, or a changed one, reruns them.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ablations import settings
from twinsep.data import dataset
from twinsep.errors import guarded
from twinsep.utils import provenance
from twinsep.utils.files import write_json

INVENTORY = Path("results/work/data.json")


def main() -> None:
    params, profile = settings.params(), settings.profile()
    if params["data"]["root"]:
        # DVC wants the output to exist; with a set of one's own it is empty.
        shutil.rmtree(settings.GENERATED, ignore_errors=True)
        settings.GENERATED.mkdir(parents=True)
    else:
        from twinsep.data.synth.generate import generate_dataset

        generate_dataset(
            settings.GENERATED, songs=profile["songs"], seconds=profile["seconds"], seed=params["data"]["seed"]
        )
    write_json(INVENTORY, inventory(settings.data_root(), ["train", "valid", *settings.splits()]))


def inventory(root: Path, splits: list[str]) -> dict[str, Any]:
    """Per split the tracks with their length in frames and the sizes of their files in bytes; of generated songs also
    what made them, as other songs of one length are of one size."""
    return {
        "root": str(root),
        "made": _made() if root == settings.GENERATED else None,
        "splits": {
            split: {
                track.name: {
                    "frames": track.frames,
                    "bytes": {file.name: file.stat().st_size for file in sorted(track.folder.iterdir())},
                }
                for track in dataset.tracks(root, split)
            }
            for split in splits
        },
    }


def _made() -> dict[str, Any]:
    return {"code": provenance.code_hash("twinsep/data/synth"), "seed": settings.params()["data"]["seed"]}


if __name__ == "__main__":
    guarded(main)
