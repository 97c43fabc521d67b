"""Stage ``scan``: search every instrumental for voices, second by second, and list what songs are made of.

Levels are kept song by song, so that a stopped stage resumes.
"""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from ablations.release import settings
from ablations.stages import run_stage
from twinsep.data.recordings import scan
from twinsep.data.recordings.catalogue import Package, Recording
from twinsep.data.recordings.material import Runs, write_material
from twinsep.data.synth.pool import run_jobs
from twinsep.utils.files import write_atomically

#: Table of the minutes in each package.
TABLE = settings.RELEASED / "recordings"


def main() -> None:
    """Write the levels of each song, the material for songs, and the table of minutes."""
    found = settings.found_recordings()
    music = [each for each in found if each.role == "instrumentals"]
    jobs = [scan.Job(settings.RECORDINGS / each.path, levels_path(each)) for each in music]
    missing = [job for job in jobs if not job.out.exists()]
    run_jobs(scan.scan_song, missing, workers=os.cpu_count() or 1, progress=True)
    packages, recipe = settings.catalogue(), settings.recipe()["scan"]
    free, sung, seconds = divide(music, packages, scan.Thresholds(**recipe["thresholds"]), recipe["sung_seconds"])
    write_material(settings.MATERIAL, found, free, sung)
    write_table(table(music, packages, free, sung, seconds), TABLE)


def levels_path(each: Recording) -> Path:
    """File of the levels of a song; another version of its package has another one."""
    return settings.LEVELS / f"{each.path}.{settings.catalogue()[each.package].sha256[:8]}.json"


def divide(
    music: list[Recording], packages: dict[str, Package], limits: scan.Thresholds, sung_seconds: float
) -> tuple[Runs, Runs, dict[str, int]]:
    """The runs without voice, the runs with voice of the songs of albums, and the length in seconds, by song."""
    free, sung, seconds = {}, {}, {}
    for each in music:
        levels = scan.read_levels(levels_path(each))
        seconds[each.path] = len(levels)
        found = scan.sung_runs(levels, limits)
        if packages[each.package].sung and sum(end - start for start, end in found) >= sung_seconds:
            sung[each.path] = found
        else:
            free[each.path] = scan.free_runs(levels, limits)
    return free, sung, seconds


def table(
    music: list[Recording], packages: dict[str, Package], free: Runs, sung: Runs, seconds: dict[str, int]
) -> pd.DataFrame:
    """A row for each package of instrumentals: files, and minutes in all, without voice, and of sung songs."""
    rows = []
    for name in dict.fromkeys(each.package for each in music):
        own = [each.path for each in music if each.package == name]
        rows.append(
            {
                "package": name,
                "version": packages[name].version,
                "licence": packages[name].licence,
                "genre": packages[name].genre,
                "files": len(own),
                "minutes": round(sum(seconds[path] for path in own) / 60, 1),
                "minutes free": round(scan.minutes({path: free[path] for path in own if path in free}), 1),
                "minutes of sung songs": round(sum(seconds[path] for path in own if path in sung) / 60, 1),
            }
        )
    return pd.DataFrame(rows)


def write_table(frame: pd.DataFrame, stem: Path) -> None:
    """Write a table as ``<stem>.csv`` and ``<stem>.md``."""
    write_atomically(stem.with_suffix(".csv"), frame.to_csv(index=False).encode())
    write_atomically(stem.with_suffix(".md"), (markdown(frame) + "\n").encode())


def markdown(frame: pd.DataFrame) -> str:
    """A table in Markdown; empty cells stay empty."""
    lines = [[*frame.columns], ["---"] * len(frame.columns)]
    lines += [["" if pd.isna(cell) else str(cell) for cell in row] for row in frame.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    run_stage(main)
