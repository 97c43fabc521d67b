"""How quickly examples are made, beside how quickly a training step takes them up: for ``twinsep bench feeding``.

Either is in seconds of audio per second. A loader that is not a few times quicker than the step holds it up wherever
the machine is busy, or the accelerator quicker than the one measured here.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import tempfile
import time
from pathlib import Path

from twinsep import audio
from twinsep.benchmarks.process import WorkerProcess
from twinsep.benchmarks.records import BenchmarkOptions, Record, Row
from twinsep.benchmarks.workloads import noise
from twinsep.config import SOURCES
from twinsep.data.loader import TrainingBatches
from twinsep.utils.backend import TWINS
from twinsep.utils.progress import ProgressCallback

#: The loader should be so many times as quick as the step.
TARGET = 5
#: The set is of so many songs, each so many seconds long, in 16 bits.
SONGS, SECONDS = 6, 20
#: Examples of one repetition of the loader.
EXAMPLES = 40
FORMATS = ("wav", "flac")


def measure(options: BenchmarkOptions, report: ProgressCallback) -> Record:
    """Audio seconds per second of the loader, without workers, and of the twins' steps; batch 1, white noise.

    Files were written just before, so that they come from the memory of the system: decoding is measured, no disk.
    Of the first configuration asked for; medians of ``repetitions``, after one more than ``warmups`` that do not count.
    """
    _, warmups, repetitions = options
    config = next(iter(options.configs.values())).override(
        {"training": {"batch_size": 1}, "data": {"workers": 0, "exclude": []}}
    )
    rounds = 1 + warmups + repetitions
    done = itertools.count(1)
    total = rounds * (len(FORMATS) + len(TWINS))
    seconds: dict[str, list[float]] = {name: [] for name in (*FORMATS, *TWINS)}
    with tempfile.TemporaryDirectory() as folder:
        for extension in FORMATS:
            root = Path(folder, extension)
            _make_songs(root, extension, config.model.sample_rate)
            with iter(TrainingBatches(config.override({"data": {"root": str(root)}}))) as stream:
                for _ in range(rounds):
                    started = time.perf_counter()
                    for _ in range(EXAMPLES):
                        next(stream)
                    seconds[extension].append((time.perf_counter() - started) / EXAMPLES)
                    report(next(done), total)
    with contextlib.ExitStack() as stack:
        workers = {framework: stack.enter_context(WorkerProcess(framework)) for framework in TWINS}
        settings = {framework: worker.ask("open", config=config.to_dict()) for framework, worker in workers.items()}
        for _ in range(rounds):  # in turns, so that what disturbs one disturbs the other
            for framework, worker in workers.items():
                seconds[framework].append(worker.ask("step"))
                report(next(done), total)
    speeds = {
        name: config.training.segment_seconds / statistics.median(times[1 + warmups :])
        for name, times in seconds.items()
    }
    ratios = {name: {f: round(speeds[name] / speeds[f], 3) for f in TWINS} for name in FORMATS}
    return {
        "configuration": config.to_dict(),
        "hash": config.hash,
        "songs": {"count": SONGS, "seconds": SECONDS, "channels": 2, "bits": 16},
        "examples_of_a_repetition": EXAMPLES,
        "warmups": warmups,
        "repetitions": repetitions,
        "setting": settings,
        "loader_audio_s_per_s": {name: round(speeds[name], 3) for name in FORMATS},
        "step_audio_s_per_s": {framework: round(speeds[framework], 3) for framework in TWINS},
        "loader_over_step": ratios,
        "target": TARGET,
        "reaches_target": {name: {f: ratio >= TARGET for f, ratio in each.items()} for name, each in ratios.items()},
        "seconds_of_an_example_or_step": {name: [round(s, 6) for s in times] for name, times in seconds.items()},
    }


def rows(record: Record) -> list[Row]:
    """The record as rows of a table."""
    loader, target = record["loader_audio_s_per_s"], record["target"]
    return [
        ("training step (audio s/s)", record["step_audio_s_per_s"]),
        *((f"loader, {name} (audio s/s)", dict.fromkeys(TWINS, loader[name])) for name in loader),
        *((f"loader, {name} / step (at least {target})", record["loader_over_step"][name]) for name in loader),
    ]


def _make_songs(root: Path, extension: str, sample_rate: int) -> None:
    """Stems of white noise in MUSDB18's layout, all for training."""
    for song, (index, source) in itertools.product(range(SONGS), enumerate(SOURCES)):
        sound = noise(2, SECONDS * sample_rate, seed=song * len(SOURCES) + index)
        path = root / "train" / f"song {song}" / f"{source}.{extension}"
        audio.write(path, sound, sample_rate, subtype="PCM_16")
