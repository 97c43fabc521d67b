"""Training loop around a twin's optimiser step: progress, validation, checkpoints, resuming.

Both frameworks share this loop. It needs from a twin a ``Trainer`` with ``step``, ``estimate``, ``state`` and
``restore`` (see ``torch_impl/train.py``).
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import TextColumn

from twinsep import checkpoints, metrics
from twinsep.checkpoints import Checkpoint
from twinsep.checkpoints.initial import describe_initial_weights, read_initial_weights
from twinsep.config import Config
from twinsep.data.loader import Batch, BatchIterator, TrainingBatches
from twinsep.data.validation import ValidationSegment, validation_segments
from twinsep.errors import InputError, Interrupted, NonFiniteLossError, OutOfMemoryError, TwinsepError, is_out_of_memory
from twinsep.training import logger, processes, run_dir, schedule
from twinsep.training.run_dir import BEST, FINAL, LAST, RECORD
from twinsep.utils import provenance
from twinsep.utils.backend import choose_device, make_deterministic, twin
from twinsep.utils.files import remove_temporary_files, write_json
from twinsep.utils.progress import make_progress

#: Consecutive times that the reader processes may die before the run ends.
READER_RESTARTS = 3
#: Beginning of the line that says so.
READER_DIED = "a reader process died"
#: Steps over which the displayed speed is averaged.
SPEED_WINDOW = 50


@dataclass
class RunState:
    """Progress of a run so far, kept in its checkpoint so that a resumed run reports as one run."""

    #: Optimiser steps taken.
    step: int = 0
    best_step: int = 0
    #: Best uSDR on the validation songs, in dB.
    best_usdr: float | None = None
    #: Time spent on steps and validations, in seconds.
    seconds: float = 0.0
    #: Latest validation scores, in dB.
    validation: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunOptions:
    """Options of a run that do not belong to its configuration, which alone decides the trained weights.

    With JAX, ``devices`` of the kind ``device`` share every batch; processes that share it are found by their
    environment (:mod:`twinsep.training.processes`). ``deterministic`` selects algorithms that repeat to the bit, on an
    accelerator too. ``tensorboard`` adds TensorBoard's event files to DVCLive's. ``basis`` identifies what the run
    depends on beside its configuration, such as its code; if it is given, an unfinished run with another basis starts
    again. ``init`` names the weights to start from, see :mod:`twinsep.checkpoints.initial`; without it they are drawn
    from the seed.
    """

    framework: str = "torch"
    device: str = "cpu"
    devices: int = 1
    overwrite: bool = False
    deterministic: bool = False
    tensorboard: bool = False
    basis: str = ""
    init: Path | None = None


def train(config: Config, folder: Path, options: RunOptions | None = None) -> dict[str, Any]:
    """Train one model into ``folder``: checkpoints, ``run.json``, ``live/`` and ``samples/``.

    An unfinished run of the same configuration resumes from its newest complete checkpoint. A finished run, or one of
    another configuration, is left alone unless ``options.overwrite`` is set. Returns the content of ``run.json``.
    Raises :class:`InputError` for bad data or an occupied folder, :class:`NonFiniteLossError` for a loss that is not
    finite, :class:`OutOfMemoryError`, and :class:`Interrupted` after Ctrl-C; the last checkpoint then stays intact.
    """
    options = options or RunOptions()
    provenance.commit()  # the record names the code that runs now
    process = processes.current()
    console = Console(stderr=True, quiet=not process.is_main)
    print_line = _line_printer(console)
    started_from = describe_initial_weights(options.init) if options.init else {}
    previous = run_dir.find_resumable(
        config,
        folder,
        overwrite=options.overwrite,
        basis=options.basis,
        init=started_from.get("sha256", ""),
        print_line=print_line,
    )
    segments = validation_segments(config)
    stream = iter(TrainingBatches(config))
    stream.process = process
    if options.deterministic:
        make_deterministic(options.framework)
    # After that, because it starts the framework.
    options = replace(options, device=choose_device(options.framework, options.device, print_line))
    run = RunState()
    if previous:
        if process.is_main:
            remove_temporary_files(folder)
        run = RunState(**previous.provenance["progression"])
        print_line(f"resuming {folder} at step {run.step} of {config.training.steps}")
    loop = _TrainingLoop(config, folder, options, segments, run, console)
    loop.started_from = started_from
    try:
        with _memory_errors(loop):
            loop.open(previous)
        if previous:
            stream.set_state(dict(previous.data))
        elif process.is_main:  # only now that everything the new run needs is there
            run_dir.clear_run(folder)
        log = logger.open_log(folder, resume_step=run.step, tensorboard=options.tensorboard, console=console)
        with stream, log if process.is_main else contextlib.nullcontext(_write_nothing) as write, _memory_errors(loop):
            loop.run_steps(stream, write)
        loop.trainer.workers.close()
    except BaseException as error:
        resumable = any((folder / name).exists() for name in (LAST, run_dir.NEXT))
        if not resumable and process.is_main:
            run_dir.clear_run(folder)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(_interruption(run.step, config.training.steps, resumable=resumable)) from error
        raise
    return loop.record


def _write_nothing(_step: int, _values: dict[str, float]) -> None:
    """Log of a process that is not the main one."""


def _interruption(step: int, steps: int, *, resumable: bool) -> str:
    """Say where Ctrl-C ended the run, and how it goes on."""
    where = f"interrupted at step {step} of {steps}"
    if step and resumable:
        return f"{where}: the same command resumes from the last checkpoint"
    return f"{where}, before the first checkpoint: the same command starts again"


def _line_printer(console: Console) -> Callable[[str], None]:
    """Function that prints a sentence on ``console`` verbatim, without wrapping or markup."""
    return partial(console.print, soft_wrap=True, markup=False, highlight=False)


@contextlib.contextmanager
def _memory_errors(loop: _TrainingLoop) -> Iterator[None]:
    """Raise :class:`OutOfMemoryError`, one sentence, for a framework's own out-of-memory error."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"step {loop.run.step + 1}: memory ran out; {loop.last_checkpoint_note()}; make training.batch_size or "
            "training.segment_seconds smaller, or list stages in training.rematerialise"
        ) from error


class _TrainingLoop:
    """Steps of one run, with their shared state."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        options: RunOptions,
        segments: list[ValidationSegment],
        run: RunState,
        console: Console,
    ):
        self.config, self.folder, self.options = config, folder, options
        self.segments, self.run, self.console = segments, run, console
        self.process = processes.current()
        self.print_line = _line_printer(console)
        self.trainer: Any = None
        self.warned: set[str] = set()
        t = config.training
        #: Seconds of audio that one optimiser step reads.
        self.audio_seconds = t.segment_seconds * t.batch_size * t.accumulation
        #: File and digest of the initial weights, if they are from a file.
        self.started_from: dict[str, str] = {}
        #: Content of ``run.json``, once the run is finished.
        self.record: dict[str, Any] = {}

    def open(self, previous: Checkpoint | None) -> None:
        """Make the trainer, restored from the checkpoint if there is one."""
        self.trainer = twin(self.options.framework, "train").Trainer(
            self.config, self.options.device, self.options.devices
        )
        workers, size = self.trainer.workers.size, self.config.training.batch_size
        if size % workers:
            raise InputError(f"training.batch_size {size} is not divisible by {workers} workers: set it to a multiple")
        if previous:
            self.trainer.restore(previous.tensors, previous.step)
        elif self.options.init:
            self.start_from(self.options.init)

    def start_from(self, path: Path) -> None:
        """Load the initial weights; print each model setting that differs from the one they were trained with."""
        prefix, average = "ema/", self.trainer.state()
        names = [name.removeprefix(prefix) for name in average if name.startswith(prefix)]
        weights, config = read_initial_weights(path, names)
        self.trainer.start_from(weights, f"--init {path}")
        theirs, ours = (c.to_dict()["model"] if c else {} for c in (config, self.config))
        for name in sorted(name for name in theirs if theirs[name] != ours.get(name)):
            self.print_line(f"{path} was trained with model.{name} {theirs[name]}, this run has {ours.get(name)}")
        self.print_line(f"starting from the weights of {path}")

    def run_steps(self, stream: BatchIterator, log: logger.LogFunction) -> None:
        """Take the remaining steps, with validations and checkpoints in between."""
        t, run = self.config.training, self.run
        recent: deque[float] = deque(maxlen=SPEED_WINDOW)
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
                validating = run.step % t.validate_every == 0 or run.step == t.steps
                if validating and self.process.is_main:
                    self.validate()
                run.seconds += (seconds := time.perf_counter() - started)
                recent.append(seconds)
                speed = self.audio_seconds * len(recent) / sum(recent)
                machine = {
                    "machine/audio_seconds_per_second": round(speed, 2),
                    "machine/peak_memory_mib": float(provenance.peak_memory_mib()),
                    "machine/seconds": round(run.seconds, 2),
                }
                # Before the checkpoint: a resumed run removes the rows after it, but could not add a missing one.
                log(run.step, report | machine | (run.validation if validating else {}))
                if validating and self.process.is_main:
                    self.save(stream)
                    if not self.console.is_terminal:  # where no bar is drawn
                        score, minutes = run.validation["valid/usdr"], run.seconds / 60
                        self.print_line(
                            f"step {run.step} of {t.steps}, {minutes:.1f} min: validation uSDR {score:.2f} dB"
                        )
                bar.update(
                    task,
                    completed=run.step,
                    loss=f"{report['train/loss']:.4f}",
                    valid=f"{run.validation['valid/si_sdr']:.2f} dB" if run.validation else "…",
                    speed=speed,
                )

    def step(self, stream: BatchIterator) -> dict[str, float]:
        """Take one optimiser step and return its metrics.

        Raises :class:`NonFiniteLossError`, which names the step and the songs.
        """
        t, step = self.config.training, self.run.step
        batches = [self.next_batch(stream) for _ in range(t.accumulation)]
        for sentence in {s for batch in batches for s in batch["skipped"]} - self.warned:
            self.warned.add(sentence)
            self.print_line(f"skipped because data.skip_unreadable is set: {sentence}")
        rate = schedule.learning_rate(step, t)
        report = self.trainer.step(batches, rate, schedule.ema_decay(step, t))
        finite = np.isfinite([report["loss"], report["gradient_norm"]])
        # Float16 gradients overflow now and then: such a step changes only the scale.
        skipped = "loss_scale" in report and finite[0] and report["loss_scale"] >= 1
        if not finite.all() and not skipped:
            songs = ", ".join(str(song) for batch in batches for song in batch["song"])
            raise NonFiniteLossError(
                f"step {step + 1}: loss {report['loss']}, gradient norm {report['gradient_norm']} on the batch of "
                f"{songs}; {self.last_checkpoint_note()}; check these songs or lower training.learning_rate"
            )
        values = {f"train/{name}": value for name, value in report.items() if np.isfinite(value)}
        return values | {"train/learning_rate": rate}

    def next_batch(self, stream: BatchIterator) -> Batch:
        """Return the next batch; reader processes that were killed are restarted at the same position.

        Raises :class:`TwinsepError` after READER_RESTARTS consecutive deaths.
        """
        for _ in range(READER_RESTARTS):
            try:
                return next(stream)
            except RuntimeError as error:  # Grain's, with the exit code
                if "terminated unexpectedly" not in str(error):
                    raise
                stream.close()
                self.print_line(f"{READER_DIED} ({str(error).partition('. ')[0]}); restarting it")
        raise TwinsepError(
            f"the reader processes died {READER_RESTARTS} times in a row, perhaps because memory ran out; "
            f"{self.last_checkpoint_note()}; lower data.workers, or set it to 0"
        )

    def last_checkpoint_note(self) -> str:
        """Part of an error sentence: the checkpoint from which the run can resume."""
        last = self.folder / LAST
        return f"the last good checkpoint is {last}" if last.exists() else "no checkpoint was written yet"

    def validate(self) -> None:
        """Score the averaged model on the validation songs by SI-SDR and uSDR, and note the best step by uSDR.

        The estimate of the first song is written to ``samples/``.
        """
        run, model, scores = self.run, self.config.model, []
        for index, (name, mixture, target) in enumerate(self.segments):
            estimate = self.trainer.estimate(mixture[None])[0, : len(target)]  # (n, c, s)
            pairs = list(zip(target, estimate, strict=True))
            scores.append([np.mean([float(f(e, t)) for t, e in pairs]) for f in (metrics.si_sdr, metrics.usdr)])
            if index == 0:
                signals: dict[str, Any] = {"mixture": mixture, "target": target[0], "estimate": estimate[0]}
                stft: dict[str, Any] = {"sample_rate": model.sample_rate, "n_fft": model.n_fft, "hop": model.hop}
                logger.write_sample(self.folder, run.step, name=name, **signals, **stft)
        si_sdr, usdr = np.nanmean(np.asarray(scores), 0)
        run.validation = {"valid/si_sdr": round(float(si_sdr), 4), "valid/usdr": round(float(usdr), 4)}
        if run.best_usdr is None or usdr > run.best_usdr:
            run.best_usdr, run.best_step = float(usdr), run.step

    def save(self, stream: BatchIterator) -> None:
        """Write the averaged weights of the best and the last step, the record after the last, and the checkpoint.

        The checkpoint comes last because it marks the step as done.
        """
        state, run = self.trainer.state(), self.run
        origin = {"progression": vars(run), "framework": self.options.framework, "basis": self.options.basis}
        origin["init"] = self.started_from.get("sha256", "")
        last = run.step == self.config.training.steps
        average = {name: t for name, t in state.items() if name.startswith("ema/")}
        for name in [BEST] * (run.best_step == run.step) + [FINAL] * last:
            checkpoints.write(self.folder / name, Checkpoint(self.config, average, run.step))
        if last:
            self.record = self.describe(state)
            write_json(self.folder / RECORD, self.record)
        run_dir.save_checkpoint(self.folder, Checkpoint(self.config, state, run.step, stream.get_state(), origin))

    def describe(self, state: checkpoints.Tensors) -> dict[str, Any]:
        """Return the content of ``run.json``, from which ``twinsep train --from run.json`` repeats the run."""
        run, steps = self.run, self.config.training.steps
        return {
            "framework": self.options.framework,
            "configuration": self.config.to_dict(),
            "hash": self.config.hash,
            "options": {"device": self.options.device, "deterministic": self.options.deterministic},
            "workers": self.trainer.workers.size,
            **({"init": self.started_from} if self.started_from else {}),
            **provenance.describe(self.options.device),
            **({"basis": self.options.basis} if self.options.basis else {}),
            "parameters": int(sum(t.size for name, t in state.items() if name.startswith("adam_m/"))),
            "seconds": round(run.seconds, 1),
            "steps_per_second": round(steps / run.seconds, 3),
            "audio_seconds_per_second": round(steps * self.audio_seconds / run.seconds, 2),
            "peak_memory_mib": provenance.peak_memory_mib(),
            "best_step": run.best_step,
            "validation": run.validation,
        }
