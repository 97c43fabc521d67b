"""``twinsep bench length``: time and memory of ``twinsep separate`` as functions of the song's length."""

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

#: Lengths of songs in seconds.
SECONDS = (60, 120, 600, 3600)
#: (longer, shorter) length in seconds → largest ratio of their peak memories.
BARS = {(600, 60): 1.1, (3600, 120): 1.15}
PRESET = "tiny"
#: Sample rate in Hz.
RATE = 44_100
_MIB = 1 << 20


def measure(_options: BenchmarkOptions, report: ProgressCallback) -> Record:
    """Measure wall seconds and peak resident MiB of a process that separates a song of white noise, for each length.

    Input and both stems are stereo 16-bit WAV; the model is the preset :data:`PRESET` with random weights.
    """
    found: list[Record] = []
    with tempfile.TemporaryDirectory() as folder:
        for length in SECONDS:
            song = noise_song(Path(folder) / "song.wav", length)
            for framework in TWINS:
                found.append(
                    {"seconds": length, "framework": framework, **separate_in_process(song, Path(folder), framework)}
                )
                report(len(found), len(SECONDS) * len(TWINS))
    peaks = {(x["framework"], x["seconds"]): x["peak_mib"] for x in found}
    ratios = [
        {"longer": longer, "shorter": shorter, "bar": bar}
        | {framework: round(peaks[framework, longer] / peaks[framework, shorter], 4) for framework in TWINS}
        for (longer, shorter), bar in BARS.items()
    ]
    return {"preset": PRESET, "songs": found, "peak_memory_ratios": ratios}


def rows(record: Record) -> list[Row]:
    """Format the record as table rows."""
    table = []
    for length in sorted({x["seconds"] for x in record["songs"]}):
        costs = {x["framework"]: x for x in record["songs"] if x["seconds"] == length}
        table.append((f"{length} s: peak memory (MiB)", {f: x["peak_mib"] for f, x in costs.items()}))
        table.append((f"{length} s: time ÷ length", {f: x["wall_s"] / length for f, x in costs.items()}))
    for ratio in record["peak_memory_ratios"]:
        name = f"peak memory, {ratio['longer']} s ÷ {ratio['shorter']} s (bar {ratio['bar']})"
        table.append((name, {framework: ratio[framework] for framework in TWINS}))
    return table


def noise_song(path: Path, seconds: int) -> Path:
    """Write ``seconds`` of white noise in stereo to ``path``."""
    rng = np.random.default_rng(0)
    with audio.writer(path, RATE, 2, subtype="PCM_16") as sound:
        for _ in range(seconds):
            sound.write(0.1 * rng.standard_normal((2, RATE)).astype(np.float32))
    return path


def separate_in_process(song: Path, out: Path, framework: str) -> dict[str, float]:
    """Separate ``song`` into ``out`` in a new process and return its wall seconds and peak resident MiB.

    Raises :class:`TwinsepError` if the process fails.
    """
    started = time.monotonic()
    arguments = [sys.executable, "-m", "twinsep.benchmarks.length", str(song), str(out), framework]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise TwinsepError(f"separating {song.name} with {framework} ended with status {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1 << 10  # bytes
    return {"wall_s": round(time.monotonic() - started, 2), "peak_mib": round(usage.ru_maxrss * unit / _MIB, 1)}


def main(song: str, out: str, framework: str) -> None:
    """Entry point of that process: write both stems of ``song`` into the folder ``out``."""
    import twinsep

    separator = twinsep.load(PRESET, framework)
    paths = {stem: Path(out) / f"{stem}.wav" for stem in separator.stems}
    separate_file(Path(song), paths, separator, Encoding("PCM_16"), overwrite=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
