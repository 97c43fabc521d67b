"""``twinsep bench growth``: how time and memory of a separation grow with the song, the chunk and the network."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from twinsep.benchmarks import length
from twinsep.benchmarks.process import WorkerProcess
from twinsep.benchmarks.records import BenchmarkOptions, Record, Row
from twinsep.config import preset
from twinsep.utils.backend import TWINS
from twinsep.utils.progress import ProgressCallback

#: What everything but one thing is as in; chunks are of so many seconds.
PRESET, SECONDS = "tiny", 3.0
#: Of songs, in seconds, each in a process of its own that starts, compiles, separates and writes.
SONGS = (1, 10, 60, 600)
#: What grows → (values, what to override for one of them); a chunk's seconds are no part of a configuration.
AXES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "seconds of a chunk": ((1.0, 3.0, 10.0, 60.0), lambda _: {}),
    "width D": ((16, 32, 64), lambda d: {"d_model": d}),
    "bands K": (("vocal18", "vocal36", "vocal72"), lambda name: {"bands": name}),
    "states N": ((4, 16, 64), lambda n: {"mixer": {"kind": "mamba", "d_state": n}}),
}
REPETITIONS = 3


def measure(_options: BenchmarkOptions, report: ProgressCallback) -> Record:
    """Seconds and peak resident MiB of a chunk by a fresh process, the least of several calls after one that compiles;
    and of whole songs."""
    cases = [(axis, value) for axis, (values, _) in AXES.items() for value in values]
    total = len(TWINS) * (len(cases) + len(SONGS))
    found: list[Record] = []
    for axis, value in cases:
        for framework in TWINS:
            found.append({"axis": axis, "value": value, "framework": framework, **_chunk(framework, axis, value)})
            report(len(found), total)
    songs: list[Record] = []
    with tempfile.TemporaryDirectory() as folder:
        for seconds in SONGS:
            song = length.noise_song(Path(folder) / "song.wav", seconds)
            for framework in TWINS:
                songs.append(
                    {"seconds": seconds, "framework": framework, **length.separated(song, Path(folder), framework)}
                )
                report(len(found) + len(songs), total)
    return {"preset": PRESET, "chunk_s": SECONDS, "least_of": REPETITIONS, "chunks": found, "songs": songs}


def _chunk(framework: str, axis: str, value: Any) -> Record:
    config = preset(PRESET).override({"model": AXES[axis][1](value)})
    seconds = value if axis == "seconds of a chunk" else SECONDS
    with WorkerProcess(framework) as worker:
        opened = worker.ask("network", config=config.to_dict(), seconds=seconds)
        worker.ask("peak")  # from here on, without what compiling took
        times = [worker.ask("chunk") for _ in range(REPETITIONS)]
        peak = worker.ask("peak")
    return {
        "parameters": opened["parameters"],
        "first_call_s": opened["first_call_s"],
        "seconds": min(times),
        "seconds_per_audio_second": round(min(times) / seconds, 6),
        "peak_mib": peak,
    }


def rows(record: Record) -> list[Row]:
    """The record as rows of a table."""
    table: dict[str, dict[str, float]] = {}
    for x in record["chunks"]:
        name = f"{x['axis']} {x['value']}"
        table.setdefault(f"{name}: s per s of audio", {})[x["framework"]] = x["seconds_per_audio_second"]
        table.setdefault(f"{name}: MiB", {})[x["framework"]] = x["peak_mib"]
    for x in record["songs"]:
        table.setdefault(f"song of {x['seconds']} s: wall s", {})[x["framework"]] = x["wall_s"]
        table.setdefault(f"song of {x['seconds']} s: MiB", {})[x["framework"]] = x["peak_mib"]
    return list(table.items())
