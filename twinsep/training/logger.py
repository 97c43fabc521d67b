"""Logs of a run: its metrics in DVCLive and TensorBoard, and a separated sample at each validation."""

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

#: Steps between two logged ones.
LOG_EVERY = 10
#: Function of (step, value by name).
LogFunction = Callable[[int, dict[str, float]], None]

# ---------------------------------------------------------------------------- metrics


@contextlib.contextmanager
def open_log(folder: Path, *, resume_step: int, tensorboard: bool, console: Console) -> Iterator[LogFunction]:
    """Open the metrics log of a run and yield the function (step, values) that writes to it.

    It writes DVCLive's files, which ``dvc plots show`` draws, into ``live/`` and, with ``tensorboard``, event files
    into ``tensorboard/``. It writes every LOG_EVERY-th step and every step that has a value named ``valid/…``. A new
    run has ``resume_step`` 0; a resumed run first removes what was logged after ``resume_step``, so that no step
    appears twice. Raises :class:`InputError` if TensorBoard's writer is not installed; without DVCLive one sentence on
    ``console`` says that ``live/`` is missing.
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
    """TensorBoard's event files in ``folder``. Raises :class:`InputError` if tensorboardX is missing."""
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError as error:
        raise InputError(
            f"--tensorboard needs the package {error.name}; install it with: pip install 'twinsep[tensorboard]'"
        ) from error
    if not resume_step:
        shutil.rmtree(folder, ignore_errors=True)
    # The name of an event file holds the second of its creation. The suffix keeps a run resumed within the same second
    # from overwriting its first file. A killed run loses what was not flushed, hence one flush per second.
    purge = {"purge_step": resume_step + 1} if resume_step else {}
    with SummaryWriter(str(folder), filename_suffix=f".{resume_step:06d}", flush_secs=1, **purge) as writer:

        def write(step: int, values: dict[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        yield write


@contextlib.contextmanager
def _live(folder: Path, resume_step: int, console: Console) -> Iterator[LogFunction]:
    """DVCLive's files in ``folder``, or nothing if DVCLive is missing."""
    try:
        from dvclive import Live
    except ModuleNotFoundError:
        sentence = "metrics are not written: DVCLive is not installed (pip install 'twinsep[reproduce]')"
        console.print(sentence, soft_wrap=True, markup=False, highlight=False)  # [reproduce] is not markup
        yield lambda _step, _values: None
        return
    latest = _truncate(folder, resume_step) if resume_step else {}
    # Without these options DVCLive commits experiments and writes a dvc.yaml of its own.
    with Live(str(folder), resume=bool(resume_step), save_dvc_exp=False, dvcyaml=None, report=None) as live:
        if resume_step:
            live.summary, live.step = latest, resume_step

        def write(step: int, values: dict[str, float]) -> None:
            live.step = step
            for name, value in values.items():
                live.log_metric(name, value)

        yield write


def _truncate(folder: Path, step: int) -> dict[str, Any]:
    """Remove what was logged after ``step``; return the last value of each metric, nested like DVCLive's summary.

    ``metrics.json`` is removed too: a killed run leaves it outdated or half written, and a resumed DVCLive would keep
    its step to the end. It is written again from the returned values.
    """
    (folder / "metrics.json").unlink(missing_ok=True)
    latest: dict[str, Any] = {}
    root = folder / "plots" / "metrics"
    for path in sorted(root.rglob("*.tsv")):
        header, *rows = path.read_bytes().splitlines(keepends=True) or [b""]
        kept = [row for row in rows if row.endswith(b"\n") and int(row.split(b"\t")[0]) <= step]
        if not kept:  # DVCLive writes a header only into a file that it creates
            path.unlink()
            continue
        write_atomically(path, header + b"".join(kept))
        *groups, name = path.relative_to(root).with_suffix("").parts
        parent = latest
        for group in groups:
            parent = parent.setdefault(group, {})
        parent[name] = float(kept[-1].split(b"\t")[1])
    return latest


# ---------------------------------------------------------------------------- samples


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
    """Write the estimate (2, S) as 16-bit ``samples/step-<step>.flac``, with its spectrograms beside it as PNG.

    The picture shows mixture, estimate, target and the error of the estimate in dB, under a title with the song's name
    and the scores. ``sample_rate`` is in Hz, ``n_fft`` and ``hop`` are in samples. Without matplotlib only the sound is
    written. Raises :class:`InputError` for an estimate that is not finite, and for a folder that cannot be written.
    """
    scores = {kind: float(f(estimate, target)) for kind, f in (("SI-SDR", metrics.si_sdr), ("uSDR", metrics.usdr))}
    path = folder / "samples" / f"step-{step:06d}.flac"
    audio.write(path, estimate, sample_rate, subtype="PCM_16")
    labels = (f"{kind} undefined" if math.isnan(value) else f"{kind} {value:.2f} dB" for kind, value in scores.items())
    signals = {"mixture": mixture, "estimate": estimate, "target": target, "estimate − target": estimate - target}
    powers = {label: spectrogram.power(x, sample_rate, n_fft=n_fft, hop=hop) for label, x in signals.items()}
    title = f"{spectrogram.short_title(name)}\nstep {step}: {', '.join(labels)}"
    seconds = mixture.shape[-1] / sample_rate
    with contextlib.suppress(ModuleNotFoundError):
        picture = spectrogram.draw_spectrograms(powers, title, seconds=seconds, sample_rate=sample_rate)
        write_atomically(path.with_suffix(".png"), picture)
