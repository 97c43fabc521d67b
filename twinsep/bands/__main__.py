"""Command ``python -m twinsep.bands``: write the CSV files of the default grid from the rules."""

from __future__ import annotations

import csv
from pathlib import Path

from twinsep.bands import DEFAULT_N_FFT, DEFAULT_SAMPLE_RATE, FOLDER, NAMES, build


def write(folder: Path = FOLDER) -> None:
    """Write every table of the default grid to ``folder`` as CSV with the columns band, lo, hi."""
    for name in NAMES:
        with (folder / f"{name}.csv").open("w", newline="", encoding="ascii") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["band", "lo", "hi"])
            for band, (lo, hi) in enumerate(build(name, DEFAULT_N_FFT, DEFAULT_SAMPLE_RATE).tolist()):
                rows.writerow([band, lo, hi])


if __name__ == "__main__":
    write()
