"""``twinsep bench length``: what a song's length costs ``twinsep separate`` in time and in memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from twinsep import audio
from twinsep.benchmarks.records import BenchmarkOptions, Record, Row
from twinsep.errors import TwinsepError
from twinsep.separation.file import Encoding, separate_file
from twinsep.utils.backend import TWINS
from twinsep.utils.progress import ProgressCallback

#: Of songs, in seconds.
SECONDS = (60, 120, 600, 3600)
#: (longer, shorter) → what the longer one's peak memory may be of the shorter one's.
BARS = {(600, 60): 1.1, (3600, 120): 1.15}
PRESET = "tiny"
RATE = 44_100
_MIB = 1 << 20


def measure(_options: BenchmarkOptions, report: ProgressCallback) -> Record:
    """Wall seconds and peak resident MiB of a process that separates white noise of each length, stereo, 16-bit WAV in
    and out, both stems, a :data:`PRESET` model with weights as drawn; of each framework."""
    found: list[Record] = []
    with tempfile.TemporaryDirectory() as folder:
        for length in SECONDS:
            song = noise_song(Path(folder) / "song.wav", length)
            for framework in TWINS:
                found.append({"seconds": length, "framework": framework, **separated(song, Path(folder), framework)})
                report(len(found), len(SECONDS) * len(TWINS))
    peaks = {(x["framework"], x["seconds"]): x["peak_mib"] for x in found}
    ratios = [
        {"longer": longer, "shorter": shorter, "bar": bar}
        | {framework: round(peaks[framework, longer] / peaks[framework, shorter], 4) for framework in TWINS}
        for (longer, shorter), bar in BARS.items()
    ]
    return {"preset": PRESET, "songs": found, "peak_memory_ratios": ratios}


def rows(record: Record) -> list[Row]:
    """The record as rows of a table."""
    table = []
    for length in sorted({x["seconds"] for x in record["songs"]}):
        of = {x["framework"]: x for x in record["songs"] if x["seconds"] == length}
        table.append((f"{length} s: peak memory (MiB)", {f: x["peak_mib"] for f, x in of.items()}))
        table.append((f"{length} s: time ÷ length", {f: x["wall_s"] / length for f, x in of.items()}))
    for ratio in record["peak_memory_ratios"]:
        name = f"peak memory, {ratio['longer']} s ÷ {ratio['shorter']} s (bar {ratio['bar']})"
        table.append((name, {framework: ratio[framework] for framework in TWINS}))
    return table


def noise_song(path: Path, seconds: int) -> Path:
    """White noise in stereo, written to ``path``."""
    rng = np.random.default_rng(0)
    with audio.writer(path, RATE, 2, subtype="PCM_16") as sound:
        for _ in range(seconds):
            sound.write(0.1 * rng.standard_normal((2, RATE)).astype(np.float32))
    return path


def separated(song: Path, out: Path, framework: str) -> dict[str, float]:
    """Wall seconds and peak resident MiB of a process that writes both stems of ``song`` into ``out``."""
    began = time.monotonic()
    arguments = [sys.executable, "-m", "twinsep.benchmarks.length", str(song), str(out), framework]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise TwinsepError(f"separating {song.name} with {framework} ended with status {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1 << 10
    return {"wall_s": round(time.monotonic() - began, 2), "peak_mib": round(usage.ru_maxrss * unit / _MIB, 1)}


def main(song: str, out: str, framework: str) -> None:
    """In a process of its own: both stems of ``song`` into the folder ``out``."""
    import twinsep

    separator = twinsep.load(PRESET, framework)
    paths = {stem: Path(out) / f"{stem}.wav" for stem in separator.stems}
    separate_file(Path(song), paths, separator, Encoding("PCM_16"), overwrite=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
