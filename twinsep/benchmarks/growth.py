"""``twinsep bench growth``: time and memory of separation as functions of song, chunk and network size."""

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

#: Preset and chunk length in seconds from which one axis at a time deviates.
PRESET, SECONDS = "tiny", 3.0
#: Lengths of songs in seconds; a separate process starts, compiles, separates and writes each of them.
SONGS = (1, 10, 60, 600)
#: Axis → (values, function from a value to overrides of the model); the chunk length is not in the configuration.
AXES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "seconds of a chunk": ((1.0, 3.0, 10.0, 60.0), lambda _: {}),
    "width D": ((16, 32, 64), lambda d: {"d_model": d}),
    "bands K": (("vocal18", "vocal36", "vocal72"), lambda name: {"bands": name}),
    "states N": ((4, 16, 64), lambda n: {"mixer": {"kind": "mamba", "d_state": n}}),
}
#: Counted calls of a chunk, of which the fastest is recorded.
REPETITIONS = 3


def measure(_options: BenchmarkOptions, report: ProgressCallback) -> Record:
    """Measure time in seconds and peak resident memory in MiB, for chunks and for whole songs.

    A fresh process separates each chunk; the fastest of several calls counts, after a first one that compiles.
    """
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
                    {
                        "seconds": seconds,
                        "framework": framework,
                        **length.separate_in_process(song, Path(folder), framework),
                    }
                )
                report(len(found) + len(songs), total)
    return {"preset": PRESET, "chunk_s": SECONDS, "least_of": REPETITIONS, "chunks": found, "songs": songs}


def _chunk(framework: str, axis: str, value: Any) -> Record:
    """Cost of one chunk with ``axis`` set to ``value``."""
    config = preset(PRESET).override({"model": AXES[axis][1](value)})
    seconds = value if axis == "seconds of a chunk" else SECONDS
    with WorkerProcess(framework) as worker:
        opened = worker.ask("network", config=config.to_dict(), seconds=seconds)
        worker.ask("peak")  # resets the peak after compiling
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
    """Format the record as table rows."""
    table: dict[str, dict[str, float]] = {}
    for x in record["chunks"]:
        name = f"{x['axis']} {x['value']}"
        table.setdefault(f"{name}: s per s of audio", {})[x["framework"]] = x["seconds_per_audio_second"]
        table.setdefault(f"{name}: MiB", {})[x["framework"]] = x["peak_mib"]
    for x in record["songs"]:
        table.setdefault(f"song of {x['seconds']} s: wall s", {})[x["framework"]] = x["wall_s"]
        table.setdefault(f"song of {x['seconds']} s: MiB", {})[x["framework"]] = x["peak_mib"]
    return list(table.items())
