"""The loop around a twin's step: progress, validation, checkpoints, resume.

The loop is one for both frameworks. What it needs of a twin is a ``Trainer`` with ``step``,
``separate``, ``state`` and ``restore`` (see ``torch_impl/train.py``).
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import TextColumn

from twinsep import checkpoints, metrics
from twinsep.checkpoints import Checkpoint
from twinsep.config import Config
from twinsep.data.dataset import ValidationSegment, validation_segments
from twinsep.data.loader import Batch, BatchIterator, TrainingBatches
from twinsep.errors import NonFiniteLossError, OutOfMemoryError, TwinsepError, is_out_of_memory
from twinsep.training import logger, run_dir, schedule
from twinsep.training.run_dir import BEST, LAST, RECORD
from twinsep.utils import provenance
from twinsep.utils.backend import make_deterministic, twin
from twinsep.utils.files import remove_temporary_files, write_json
from twinsep.utils.progress import make_progress

#: So often in a row the processes that read songs may die before the run ends.
READERS_RESTARTED = 3


@dataclass
class RunState:
    """What a run has come to so far; kept in the checkpoint so that a resumed run reports as one."""

    step: int = 0
    best_step: int = 0
    best_usdr: float | None = None
    seconds: float = 0.0
    validation: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunOptions:
    """How a configuration is trained; what it comes to rests on the configuration alone.

    ``deterministic`` asks the framework for algorithms that repeat to the bit on an accelerator too, and
    ``tensorboard`` for its event files beside DVCLive's. ``basis`` names what the run rests on beside its
    configuration, such as its code: where it is given, an unfinished run that rested on something else is begun anew.
    """

    framework: str = "torch"
    device: str = "cpu"
    overwrite: bool = False
    deterministic: bool = False
    tensorboard: bool = False
    basis: str = ""


def train(config: Config, folder: Path, how: RunOptions | None = None) -> dict[str, Any]:
    """Train one model into ``folder``: checkpoints, ``run.json``, ``live/`` and ``samples/``.

    An unfinished run of the same configuration goes on from its last whole checkpoint. A finished run, or one of
    another configuration, is left alone unless ``overwrite``. Returns what ``run.json`` holds. Raises
    :class:`InputError` for bad data or an occupied folder, :class:`NonFiniteLossError` at a loss that is not finite
    and :class:`OutOfMemoryError`, the last checkpoint intact.
    """
    how = how or RunOptions()
    console = Console(stderr=True)
    say = partial(console.print, soft_wrap=True, markup=False, highlight=False)
    previous = run_dir.find_resumable(config, folder, overwrite=how.overwrite, basis=how.basis, say=say)
    segments = validation_segments(config)
    batches = TrainingBatches(config)
    stream = iter(batches)
    if how.deterministic:
        make_deterministic(how.framework)
    progression = RunState()
    if previous:
        remove_temporary_files(folder)
        progression = RunState(**previous.provenance["progression"])
        say(f"resuming {folder} at step {progression.step} of {config.training.steps}")
    loop = _TrainingLoop(config, folder, how, segments, progression, console)
    try:
        with _memory(loop):
            loop.open(previous)
        if previous:
            stream.set_state(dict(previous.data))
        else:  # not before all is there that the new run needs
            run_dir.clear_run(folder)
        log = logger.open_log(folder, resume_step=progression.step, tensorboard=how.tensorboard, console=console)
        with stream, log as write, _memory(loop):
            loop.run_steps(stream, write)
    except BaseException:
        if not any((folder / name).exists() for name in (LAST, run_dir.NEXT)):  # nothing to go on from: leave no trace
            run_dir.clear_run(folder)
        raise
    return loop.record


@contextlib.contextmanager
def _memory(loop: _TrainingLoop) -> Iterator[None]:
    """What a framework raises for want of memory, as one sentence."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"step {loop.run.step + 1}: memory ran out; {loop.kept()}; make training.batch_size or "
            "training.segment_seconds smaller, or list stages in training.rematerialise"
        ) from error


class _TrainingLoop:
    """The steps of one run, with what they share."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        how: RunOptions,
        segments: list[ValidationSegment],
        run: RunState,
        console: Console,
    ):
        self.config, self.folder, self.how = config, folder, how
        self.segments, self.run, self.console = segments, run, console
        self.say = partial(console.print, soft_wrap=True, markup=False, highlight=False)
        self.trainer: Any = None
        self.warned: set[str] = set()
        t = config.training
        #: Seconds of audio that one optimiser step reads.
        self.audio_seconds = t.segment_seconds * t.batch_size * t.accumulation
        #: What ``run.json`` will hold, once the run is finished.
        self.record: dict[str, Any] = {}

    def open(self, previous: Checkpoint | None) -> None:
        """Make the trainer, where there is a checkpoint as that left it."""
        self.trainer = twin(self.how.framework, "train").Trainer(self.config, self.how.device)
        if previous:
            self.trainer.restore(previous.tensors, previous.step)

    def run_steps(self, stream: BatchIterator, log: logger.LogFunction) -> None:
        """From the current step to the last one, validating and saving on the way."""
        t, run = self.config.training, self.run
        recent: deque[float] = deque(maxlen=50)
        columns = (
            "loss {task.fields[loss]}",
            "valid SI-SDR {task.fields[valid]}",
            "{task.fields[speed]:.1f} audio s/s",
        )
        with make_progress(*map(TextColumn, columns), console=self.console) as bar:
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
                speed = self.audio_seconds * len(recent) / sum(recent)
                machine = {
                    "machine/audio_seconds_per_second": round(speed, 2),
                    "machine/peak_memory_mib": float(provenance.peak_memory_mib()),
                }
                # Before the checkpoint: a run that goes on takes back the rows after it, and could not make up for one.
                log(run.step, report | machine | (run.validation if checking else {}))
                if checking:
                    self.save(stream)
                bar.update(
                    task,
                    completed=run.step,
                    loss=f"{report['train/loss']:.4f}",
                    valid=f"{run.validation['valid/si_sdr']:.2f} dB" if run.validation else "…",
                    speed=speed,
                )

    def step(self, stream: BatchIterator) -> dict[str, float]:
        """One optimiser step; raises :class:`NonFiniteLossError` naming the step and the batch."""
        t, step = self.config.training, self.run.step
        batches = [self.next_batch(stream) for _ in range(t.accumulation)]
        for sentence in {s for batch in batches for s in batch["skipped"]} - self.warned:
            self.warned.add(sentence)
            self.say(f"skipped, as data.skip_unreadable asks: {sentence}")
        rate = schedule.learning_rate(step, t)
        report = self.trainer.step(batches, rate, schedule.ema_decay(step, t))
        finite = np.isfinite([report["loss"], report["gradient_norm"]])
        # In float16 gradients overflow now and then: such a step changes nothing but the scale.
        passed_over = "loss_scale" in report and finite[0] and report["loss_scale"] >= 1
        if not finite.all() and not passed_over:
            songs = ", ".join(str(song) for batch in batches for song in batch["song"])
            raise NonFiniteLossError(
                f"step {step + 1}: loss {report['loss']}, gradient norm {report['gradient_norm']} on the batch of "
                f"{songs}; {self.kept()}; look at these songs or lower training.learning_rate"
            )
        values = {f"train/{name}": value for name, value in report.items() if np.isfinite(value)}
        return values | {"train/learning_rate": rate}

    def next_batch(self, stream: BatchIterator) -> Batch:
        """The next batch; processes that read songs and were killed are started again at the same place.

        Raises :class:`TwinsepError` where they die again and again.
        """
        for _ in range(READERS_RESTARTED):
            try:
                return next(stream)
            except RuntimeError as error:  # Grain's, with the exit code
                if "terminated unexpectedly" not in str(error):
                    raise
                stream.close()
                self.say(f"a process that reads songs has died ({str(error).partition('. ')[0]}); starting it again")
        raise TwinsepError(
            f"the processes that read songs have died {READERS_RESTARTED} times in a row, perhaps for want of memory; "
            f"{self.kept()}; set data.workers to fewer, or to 0"
        )

    def kept(self) -> str:
        """What a run that ends here leaves, as part of a sentence."""
        last = self.folder / LAST
        return f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was written yet"

    def validate(self) -> None:
        """SI-SDR and uSDR of the averaged model on the validation songs; the best by uSDR is kept.

        The estimate of the first song is left to be heard and seen.
        """
        run, model, scores = self.run, self.config.model, []
        for index, (name, mixture, target) in enumerate(self.segments):
            estimate = self.trainer.estimate(mixture[None])[0, : len(target)]
            pairs = list(zip(target, estimate, strict=True))
            scores.append([np.mean([float(f(e, t)) for t, e in pairs]) for f in (metrics.si_sdr, metrics.usdr)])
            if index == 0:
                logger.write_sample(
                    self.folder,
                    run.step,
                    name=name,
                    mixture=mixture,
                    target=target[0],
                    estimate=estimate[0],
                    sample_rate=model.sample_rate,
                    n_fft=model.n_fft,
                    hop=model.hop,
                )
        si_sdr, usdr = np.nanmean(np.asarray(scores), 0)
        run.validation = {"valid/si_sdr": round(float(si_sdr), 4), "valid/usdr": round(float(usdr), 4)}
        if run.best_usdr is None or usdr > run.best_usdr:
            run.best_usdr, run.best_step = float(usdr), run.step

    def save(self, stream: BatchIterator) -> None:
        """Write the averaged weights alone where this step is the best so far, at the end the record, and the last
        checkpoint, after which the run counts as come so far."""
        state, run = self.trainer.state(), self.run
        made = {"progression": vars(run), "framework": self.how.framework, "basis": self.how.basis}
        if run.best_step == run.step:
            average = {name: t for name, t in state.items() if name.startswith("ema/")}
            checkpoints.write(self.folder / BEST, Checkpoint(self.config, average, run.step))
        if run.step == self.config.training.steps:
            self.record = self.describe(state)
            write_json(self.folder / RECORD, self.record)
        run_dir.save_checkpoint(self.folder, Checkpoint(self.config, state, run.step, stream.get_state(), made))

    def describe(self, state: checkpoints.Tensors) -> dict[str, Any]:
        """What names the run's numbers, and is enough to repeat it: ``twinsep train --from run.json``."""
        run, steps = self.run, self.config.training.steps
        return {
            "framework": self.how.framework,
            "configuration": self.config.to_dict(),
            "hash": self.config.hash,
            "options": {"device": self.how.device, "deterministic": self.how.deterministic},
            **provenance.describe(self.how.device),
            "parameters": int(sum(t.size for name, t in state.items() if name.startswith("model/"))),
            "seconds": round(run.seconds, 1),
            "steps_per_second": round(steps / run.seconds, 3),
            "audio_seconds_per_second": round(steps * self.audio_seconds / run.seconds, 2),
            "peak_memory_mib": provenance.peak_memory_mib(),
            "best_step": run.best_step,
            "validation": run.validation,
        }
