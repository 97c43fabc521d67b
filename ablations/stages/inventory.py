"""Stage ``inventory``: list the songs of ``data.root`` in ``results/work/data.json``.

Every stage that reads songs depends on this list, so another set of songs, or a changed one, runs them again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ablations import settings
from ablations.stages import run_stage
from twinsep.data import dataset
from twinsep.utils import provenance
from twinsep.utils.files import write_json

OUT = Path("results/work/data.json")


def main() -> None:
    """Write the inventory of every split that is trained on, validated on or scored."""
    write_json(OUT, inventory(settings.data_root(), ["train", "valid", *settings.splits()]))


def inventory(root: Path, splits: list[str]) -> dict[str, Any]:
    """The tracks of each split: length in frames, and size in bytes and modification time in ns of each file.

    A generated set has no times, as DVC restores its files from the cache: ``generator`` identifies its code, its
    packages and its parameters instead.
    """
    generated = root == settings.GENERATED
    return {
        "root": str(root),
        "generator": _generator(root) if generated else None,
        "splits": {
            split: {
                track.name: {
                    "frames": track.frames,
                    "files": {file.name: _identity(file, generated) for file in sorted(track.folder.iterdir())},
                }
                for track in dataset.tracks(root, split)
            }
            for split in splits
        },
    }


def _identity(file: Path, generated: bool) -> dict[str, int]:
    found = file.stat()
    return {"bytes": found.st_size} if generated else {"bytes": found.st_size, "modified_ns": found.st_mtime_ns}


def _generator(root: Path) -> dict[str, Any]:
    record = json.loads((root / "dataset.json").read_text())
    parts = {key: value for key, value in record.items() if key != "songs"}
    return {"code": provenance.code_hash("twinsep/data/synth"), **parts}


if __name__ == "__main__":
    run_stage(main)
