"""``twinsep bench feeding``: speed of the data loader compared with that of a training step.

Both are in seconds of audio per second. A loader that is not several times faster than the step delays training on a
busy machine or a faster accelerator.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twinsep import audio
from twinsep.benchmarks.process import WorkerProcess
from twinsep.benchmarks.records import BenchmarkOptions, Record, Row
from twinsep.benchmarks.workloads import noise
from twinsep.config import SOURCES, Config
from twinsep.data.loader import TrainingBatches
from twinsep.utils.backend import TWINS
from twinsep.utils.progress import ProgressCallback

#: Factor by which the loader should be faster than the step.
TARGET = 5
#: Number of 16-bit songs in the data set, and their length in seconds.
SONGS, SECONDS = 6, 20
#: Examples per repetition of the loader.
EXAMPLES = 40
#: Extensions of the measured file formats.
FORMATS = ("wav", "flac")


def measure(options: BenchmarkOptions, report: ProgressCallback) -> Record:
    """Measure the speed of the loader, without workers, and of the training step, at batch 1 on white noise.

    The files were just written and therefore come from memory: decoding is measured, not the disk. Only the first
    configuration counts. Speeds are medians of ``repetitions`` after 1 + ``warmups`` uncounted rounds.
    """
    _, warmups, repetitions = options
    config = next(iter(options.configs.values())).override(
        {"training": {"batch_size": 1}, "data": {"workers": 0, "exclude": []}}
    )
    rounds = 1 + warmups + repetitions
    done, total = itertools.count(1), rounds * (len(FORMATS) + len(TWINS))

    def advance() -> None:
        report(next(done), total)

    seconds = _time_loader(config, rounds, advance)
    step_seconds, settings = _time_steps(config, rounds, advance)
    seconds |= step_seconds
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


def _time_loader(config: Config, rounds: int, advance: Callable[[], None]) -> dict[str, list[float]]:
    """Format → seconds per example, one value per round."""
    seconds: dict[str, list[float]] = {extension: [] for extension in FORMATS}
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
                    advance()
    return seconds


def _time_steps(
    config: Config, rounds: int, advance: Callable[[], None]
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """(framework → seconds per training step, one value per round; framework → thread settings)."""
    seconds: dict[str, list[float]] = {framework: [] for framework in TWINS}
    with contextlib.ExitStack() as stack:
        workers = {framework: stack.enter_context(WorkerProcess(framework)) for framework in TWINS}
        settings = {framework: worker.ask("open", config=config.to_dict()) for framework, worker in workers.items()}
        for _ in range(rounds):  # alternating, so that a disturbance affects both
            for framework, worker in workers.items():
                seconds[framework].append(worker.ask("step"))
                advance()
    return seconds, settings


def rows(record: Record) -> list[Row]:
    """Format the record as table rows."""
    loader, target = record["loader_audio_s_per_s"], record["target"]
    return [
        ("training step (audio s/s)", record["step_audio_s_per_s"]),
        *((f"loader, {name} (audio s/s)", dict.fromkeys(TWINS, loader[name])) for name in loader),
        *((f"loader, {name} / step (at least {target})", record["loader_over_step"][name]) for name in loader),
    ]


def _make_songs(root: Path, extension: str, sample_rate: int) -> None:
    """Write training songs of white-noise stems in MUSDB18's layout."""
    for song, (index, source) in itertools.product(range(SONGS), enumerate(SOURCES)):
        sound = noise(2, SECONDS * sample_rate, seed=song * len(SOURCES) + index)
        path = root / "train" / f"song {song}" / f"{source}.{extension}"
        audio.write(path, sound, sample_rate, subtype="PCM_16")
