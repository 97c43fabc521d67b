"""The loop around a twin's step: progress, validation, checkpoints, resume.

The loop is one for both frameworks. What it needs of a twin is a ``Trainer`` with ``step``,
``separate``, ``state`` and ``restore`` (see ``torch_impl/train.py``).
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from twinsep import checkpoint, metrics, provenance, schedule
from twinsep.batches import TrainingBatches
from twinsep.checkpoint import Checkpoint
from twinsep.config import Config
from twinsep.data import validation_segments
from twinsep.errors import InputError, NonFiniteLossError
from twinsep.files import write_json
from twinsep.frameworks import twin

LAST, BEST = "last.safetensors", "best.safetensors"
LOG_EVERY = 10


@dataclass
class Progression:
    """What a run has come to so far; kept in the checkpoint so that a resumed run reports as one."""

    step: int = 0
    best_step: int = 0
    best_usdr: float | None = None
    seconds: float = 0.0
    validation: dict[str, float] = field(default_factory=dict)


def train(
    config: Config, folder: Path, *, framework: str = "torch", device: str = "cpu", overwrite: bool = False
) -> dict[str, Any]:
    """Train one model into ``folder``: ``last.safetensors``, ``best.safetensors``, ``run.json``, ``live/``.

    An unfinished run of the same configuration is resumed. A finished run, or one of another
    configuration, is left alone unless ``overwrite``. Returns what ``run.json`` holds. Raises
    :class:`InputError` for bad data or an occupied folder and :class:`NonFiniteLossError` at a loss that
    is not finite, the last checkpoint intact.
    """
    console = Console(stderr=True)
    previous = _previous(config, folder, overwrite)
    segments = validation_segments(config)
    batches = TrainingBatches(config)
    stream = iter(batches)
    trainer = twin(framework, "train").Trainer(config, device)
    run = Progression()
    if previous:
        trainer.restore(previous.tensors, previous.step)
        stream.set_state(dict(previous.data))
        run = Progression(**previous.provenance["progression"])
        console.print(f"resuming {folder} at step {run.step} of {config.training.steps}", soft_wrap=True)
    else:
        _clear(folder)
    loop = _Loop(config, folder, trainer, segments, run, console)
    try:
        with stream, _live(folder, resume=bool(previous), console=console) as log:
            loop.run_steps(stream, log)
    except BaseException:
        if not (folder / LAST).exists():  # nothing to go on from: leave no trace
            _clear(folder)
        raise
    record = {
        "framework": framework,
        "configuration": config.to_dict(),
        "hash": config.hash,
        **provenance.describe(device),
        "parameters": int(sum(t.size for name, t in trainer.state().items() if name.startswith("model/"))),
        "seconds": round(run.seconds, 1),
        "steps_per_second": round(config.training.steps / run.seconds, 3),
        "audio_seconds_per_second": round(config.training.steps * loop.audio_seconds / run.seconds, 2),
        "peak_memory_mib": provenance.peak_memory_mib(),
        "best_step": run.best_step,
        "validation": run.validation,
    }
    write_json(folder / "run.json", record)
    return record


class _Loop:
    """The steps of one run, with what they share."""

    def __init__(self, config: Config, folder: Path, trainer: Any, segments: list, run: Progression, console: Console):
        self.config, self.folder, self.trainer, self.segments = config, folder, trainer, segments
        self.run, self.console = run, console
        t = config.training
        #: Seconds of audio that one optimiser step reads.
        self.audio_seconds = t.segment_seconds * t.batch_size * t.accumulation

    def run_steps(self, stream: Any, log: Any) -> None:
        """From the current step to the last one, validating and saving on the way."""
        t, run = self.config.training, self.run
        recent: deque[float] = deque(maxlen=50)
        with _progress(self.console) as bar:
            task = bar.add_task("train", total=t.steps, completed=run.step, loss="…", valid="…", speed=0.0)
            while run.step < t.steps:
                started = time.perf_counter()
                report = self.step(stream)
                run.step += 1
                checking = run.step % t.validate_every == 0 or run.step == t.steps
                if checking:
                    self.validate()
                run.seconds += (seconds := time.perf_counter() - started)
                recent.append(seconds)
                if checking:
                    self.save(stream)
                log(run.step, report | (run.validation if checking else {}))
                bar.update(
                    task,
                    completed=run.step,
                    loss=f"{report['train/loss']:.4f}",
                    valid=f"{run.validation['valid/si_sdr']:.2f} dB" if run.validation else "…",
                    speed=self.audio_seconds * len(recent) / sum(recent),
                )

    def step(self, stream: Iterator) -> dict[str, float]:
        """One optimiser step; raises :class:`NonFiniteLossError` naming the step and the batch."""
        t, step = self.config.training, self.run.step
        batches = [next(stream) for _ in range(t.accumulation)]
        rate = schedule.learning_rate(step, t)
        report = self.trainer.step(batches, rate, schedule.ema_decay(step, t))
        if not np.isfinite([report["loss"], report["gradient_norm"]]).all():
            songs = ", ".join(str(song) for batch in batches for song in batch["song"])
            last = self.folder / LAST
            kept = f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was written yet"
            raise NonFiniteLossError(
                f"step {step + 1}: loss {report['loss']}, gradient norm {report['gradient_norm']} on the batch of "
                f"{songs}; {kept}; look at these songs or lower training.learning_rate"
            )
        return {f"train/{name}": value for name, value in report.items()} | {"train/learning_rate": rate}

    def validate(self) -> None:
        """SI-SDR and uSDR of the averaged model on the validation songs; the best by uSDR is kept."""
        run, scores = self.run, []
        for _, mixture, target in self.segments:
            estimate = self.trainer.separate(mixture[None])[0, : len(target)]
            pairs = list(zip(target, estimate, strict=True))
            scores.append([np.mean([float(f(e, t)) for t, e in pairs]) for f in (metrics.si_sdr, metrics.usdr)])
        si_sdr, usdr = np.nanmean(np.asarray(scores), 0)
        run.validation = {"valid/si_sdr": round(float(si_sdr), 4), "valid/usdr": round(float(usdr), 4)}
        if run.best_usdr is None or usdr > run.best_usdr:
            run.best_usdr, run.best_step = float(usdr), run.step

    def save(self, stream: Any) -> None:
        """Write the last checkpoint and, where this step is the best so far, the averaged weights alone."""
        state = self.trainer.state()
        made = {"progression": vars(self.run)}
        if self.run.best_step == self.run.step:
            average = {name: t for name, t in state.items() if name.startswith("ema/")}
            checkpoint.write(self.folder / BEST, Checkpoint(self.config, average, self.run.step))
        checkpoint.write(self.folder / LAST, Checkpoint(self.config, state, self.run.step, stream.get_state(), made))


def _previous(config: Config, folder: Path, overwrite: bool) -> Checkpoint | None:
    """The checkpoint to go on from, or none; raises :class:`InputError` where the folder is occupied."""
    last = folder / LAST
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give --out the name of a folder")
    if not last.exists():
        return None
    found = checkpoint.read(last)
    if found.config.hash == config.hash and found.step < config.training.steps:
        return found
    if not overwrite:
        what = "a finished run" if found.config.hash == config.hash else "a run of another configuration"
        raise InputError(f"{folder} holds {what}; give another --out, or --overwrite to train anew in its place")
    return None


def _clear(folder: Path) -> None:
    for name in (LAST, BEST, "run.json"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "live", ignore_errors=True)
    with contextlib.suppress(OSError):  # other files of the user's, or no folder at all
        folder.rmdir()


@contextlib.contextmanager
def _live(folder: Path, *, resume: bool, console: Console) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A function (step, metrics) that writes DVCLive's files, which ``dvc plots show`` draws, every few steps."""
    try:
        from dvclive import Live
    except ModuleNotFoundError:
        console.print("metrics are not written: DVCLive is not installed (pip install 'twinsep[reproduce]')")
        yield lambda _step, _values: None
        return
    # Without these options DVCLive commits experiments and writes a dvc.yaml of its own.
    with Live(str(folder / "live"), resume=resume, save_dvc_exp=False, dvcyaml=None, report=None) as live:

        def log(step: int, values: dict[str, float]) -> None:
            if step % LOG_EVERY and not any(name.startswith("valid/") for name in values):
                return
            live.step = step
            for name, value in values.items():
                live.log_metric(name, value)

        yield log


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn("valid SI-SDR {task.fields[valid]}"),
        TextColumn("{task.fields[speed]:.1f} audio s/s"),
        TimeRemainingColumn(),
        console=console,
    )
