"""What a run leaves to look at while it trains: its numbers, and now and then a song it separated."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from rich.console import Console

from twinsep import audio, metrics
from twinsep.audio import spectrogram
from twinsep.errors import InputError
from twinsep.utils.files import write_atomically

LOG_EVERY = 10
#: Called with (step, value by name).
LogFunction = Callable[[int, dict[str, float]], None]

# ---------------------------------------------------------------------------- numbers


@contextlib.contextmanager
def open_log(folder: Path, *, resume_step: int, tensorboard: bool, console: Console) -> Iterator[LogFunction]:
    """A function (step, values) that writes DVCLive's files, which ``dvc plots show`` draws, into ``live/``.

    With ``tensorboard`` also TensorBoard's, into ``tensorboard/``. A step is written if it is one in LOG_EVERY or
    has a value of ``valid/``. A run that starts has ``resume_step`` 0; of one that goes on, what had been written
    after ``resume_step`` is taken back first, so that no step stands there twice. Raises :class:`InputError` where
    TensorBoard's writer is not installed; without DVCLive a sentence says that ``live/`` is missing.
    """
    with contextlib.ExitStack() as stack:
        sinks = [stack.enter_context(_tensorboard(folder / "tensorboard", resume_step))] if tensorboard else []
        sinks.append(stack.enter_context(_live(folder / "live", resume_step, console)))

        def write(step: int, values: dict[str, float]) -> None:
            if step % LOG_EVERY and not any(name.startswith("valid/") for name in values):
                return
            for sink in sinks:
                sink(step, values)

        yield write


@contextlib.contextmanager
def _tensorboard(folder: Path, resume_step: int) -> Iterator[LogFunction]:
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError as error:
        raise InputError(
            f"--tensorboard needs the package {error.name}; install it with: pip install 'twinsep[tensorboard]'"
        ) from error
    if not resume_step:
        shutil.rmtree(folder, ignore_errors=True)
    # An event file is named after the second it was made in. The suffix keeps a run that goes on in the same second
    # from writing over its first file. A killed run loses what was not flushed, so that is done often.
    purge = {"purge_step": resume_step + 1} if resume_step else {}
    with SummaryWriter(str(folder), filename_suffix=f".{resume_step:06d}", flush_secs=1, **purge) as writer:

        def write(step: int, values: dict[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        yield write


@contextlib.contextmanager
def _live(folder: Path, resume_step: int, console: Console) -> Iterator[LogFunction]:
    try:
        from dvclive import Live
    except ModuleNotFoundError:
        sentence = "metrics are not written: DVCLive is not installed (pip install 'twinsep[reproduce]')"
        console.print(
            sentence, soft_wrap=True, markup=False, highlight=False
        )  # markup would take [reproduce] for its own
        yield lambda _step, _values: None
        return
    latest = _cut_back(folder, resume_step) if resume_step else {}
    # Without these options DVCLive commits experiments and writes a dvc.yaml of its own.
    with Live(str(folder), resume=bool(resume_step), save_dvc_exp=False, dvcyaml=None, report=None) as live:
        if resume_step:
            live.summary, live.step = latest, resume_step

        def write(step: int, values: dict[str, float]) -> None:
            live.step = step
            for name, value in values.items():
                live.log_metric(name, value)

        yield write


def _cut_back(folder: Path, step: int) -> dict[str, Any]:
    """Take back what was logged after ``step``; returns the last value of each metric, nested as DVCLive's summary.

    ``metrics.json`` goes too: a killed run has left it out of date or half written, and on resuming DVCLive would
    keep the step in it to the end. It is written anew from what this returns.
    """
    (folder / "metrics.json").unlink(missing_ok=True)
    latest: dict[str, Any] = {}
    root = folder / "plots" / "metrics"
    for path in sorted(root.rglob("*.tsv")):
        header, *rows = path.read_bytes().splitlines(keepends=True) or [b""]
        kept = [row for row in rows if row.endswith(b"\n") and int(row.split(b"\t")[0]) <= step]
        if not kept:  # DVCLive writes the header of a file that it makes, not of one that it finds
            path.unlink()
            continue
        write_atomically(path, header + b"".join(kept))
        *groups, name = path.relative_to(root).with_suffix("").parts
        place = latest
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = float(kept[-1].split(b"\t")[1])
    return latest


# ---------------------------------------------------------------------------- songs


def write_sample(
    folder: Path,
    step: int,
    *,
    name: str,
    mixture: Float32[np.ndarray, "2 s"],
    target: Float32[np.ndarray, "2 s"],
    estimate: Float32[np.ndarray, "2 s"],
    sample_rate: int,
    n_fft: int,
    hop: int,
) -> None:
    """Write ``samples/step-<step>.flac``, the (2, s) estimate in 16 bit, and its spectrograms beside it as PNG.

    They show mixture, estimate, target and what the estimate has wrong, in dB; above them stand the song's name
    and the scores. Without matplotlib there is the sound alone. Raises :class:`InputError` for an estimate that is
    not finite and for a folder that cannot be written.
    """
    scores = {kind: float(f(estimate, target)) for kind, f in (("SI-SDR", metrics.si_sdr), ("uSDR", metrics.usdr))}
    path = folder / "samples" / f"step-{step:06d}.flac"
    audio.write(path, estimate, sample_rate, subtype="PCM_16")
    said = (f"{kind} undefined" if math.isnan(value) else f"{kind} {value:.2f} dB" for kind, value in scores.items())
    signals = {"mixture": mixture, "estimate": estimate, "target": target, "estimate − target": estimate - target}
    powers = {what: spectrogram.power(signal, sample_rate, n_fft=n_fft, hop=hop) for what, signal in signals.items()}
    title = f"{spectrogram.short_title(name)}\nstep {step}: {', '.join(said)}"
    seconds = mixture.shape[-1] / sample_rate
    with contextlib.suppress(ModuleNotFoundError):
        picture = spectrogram.draw_spectrograms(powers, title, seconds=seconds, sample_rate=sample_rate)
        write_atomically(path.with_suffix(".png"), picture)
