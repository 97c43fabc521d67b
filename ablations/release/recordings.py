"""Stage ``recordings``: fetch the packages of recordings by digest and unpack them, without root."""

from __future__ import annotations

import shutil

from ablations.release import settings
from ablations.stages import run_stage
from twinsep.data.recordings.packages import STAMP, fetch_package
from twinsep.utils.progress import progress_bar


def main() -> None:
    """Write ``results/data/recordings/<package>/``; packages that are there are kept, others removed."""
    packages = settings.catalogue()
    with progress_bar("packages") as report:
        for done, (name, package) in enumerate(packages.items(), 1):
            fetch_package(name, package, settings.RECORDINGS)
            report(done, len(packages))
    # Those of a former catalogue would count among what the next stages depend on.
    for stamp in settings.RECORDINGS.glob(f"*/{STAMP}"):
        if stamp.parent.name not in packages:
            shutil.rmtree(stamp.parent)


if __name__ == "__main__":
    run_stage(main)
