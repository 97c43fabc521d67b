"""What a run leaves to look at while it trains: its numbers, and now and then a song it separated."""

from __future__ import annotations

import contextlib
import io
import math
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Float32
from rich.console import Console

from twinsep import audio, metrics
from twinsep.errors import InputError
from twinsep.files import write_atomically
from twinsep.stft import stft

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOG_EVERY = 10
#: Called with (step, value by name).
Log = Callable[[int, dict[str, float]], None]

# ---------------------------------------------------------------------------- numbers


@contextlib.contextmanager
def log(folder: Path, *, resume_step: int, tensorboard: bool, console: Console) -> Iterator[Log]:
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
def _tensorboard(folder: Path, resume_step: int) -> Iterator[Log]:
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
def _live(folder: Path, resume_step: int, console: Console) -> Iterator[Log]:
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

FLOOR_DB = -80  # of a spectrogram, below the mixture's peak
#: Cells of a spectrogram. Finer ones, or finer shades than of 2 dB, show little more, and PNG cannot pack them.
ROWS, COLUMNS, SHADES = 88, 360, 40
TICKS_HZ = (0.0, 500.0, 1000.0, 2000.0, 4000.0, 8000.0, 16000.0)


def sample(
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
    shown = {"mixture": mixture, "estimate": estimate, "target": target, "estimate − target": estimate - target}
    cells = {what: _cells(waveform, sample_rate, n_fft, hop) for what, waveform in shown.items()}
    title = f"{name if len(name) <= 60 else name[:59] + '…'}\nstep {step}: {', '.join(said)}"
    with contextlib.suppress(ModuleNotFoundError):
        write_atomically(path.with_suffix(".png"), _png(cells, title, mixture.shape[-1] / sample_rate, sample_rate))


def _png(cells: dict[str, np.ndarray], title: str, seconds: float, sample_rate: int) -> bytes:
    """A picture of powers (ROWS, columns), one above the other. Without pyplot, whose state threads would share."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(8.2, 8.2), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(len(cells), 1, sharex=True, sharey=True)
    shades = colormaps["magma"].resampled(SHADES)
    top = max(float(cells["mixture"].max()), 1e-20)
    extent = (0.0, seconds, 0.0, _mel(sample_rate / 2))
    for axes, (what, power) in zip(grid, cells.items(), strict=True):
        level = 10 * np.log10(np.maximum(power / top, 10 ** (FLOOR_DB / 10)))
        image = axes.imshow(
            level,
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            extent=extent,
            cmap=shades,
            vmin=FLOOR_DB,
            vmax=0,
        )
        axes.set_title(what, loc="left", fontsize=10)
        _label(axes, sample_rate)
    figure.supylabel("kHz", fontsize=9)
    grid[-1].set_xlabel("s", fontsize=9)
    figure.colorbar(image, ax=grid, label="dB relative to the mixture's peak", aspect=40)
    figure.suptitle(title, fontsize=11, parse_math=False)  # a name may hold dollar signs
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of a name in a script that the font lacks
        canvas.draw()
    buffer = io.BytesIO()
    palette = Image.new("P", (1, 1))
    greys = np.repeat(np.arange(0, 256, 17, dtype=np.uint8)[:, None], 3, axis=1)  # of the lettering
    palette.putpalette(np.concatenate([shades(range(SHADES), bytes=True)[:, :3], greys]).tobytes())
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _label(axes: Axes, sample_rate: int) -> None:
    ticks = [hz for hz in TICKS_HZ if hz <= sample_rate / 2]
    axes.set_yticks([_mel(hz) for hz in ticks], [f"{hz / 1000:g}" for hz in ticks])
    axes.tick_params(labelsize=8)


def _cells(waveform: Float32[np.ndarray, "2 s"], sample_rate: int, n_fft: int, hop: int) -> Float[np.ndarray, "r t"]:
    """Mean power, (ROWS, at most COLUMNS): rows of equal height in mel from 0 to Nyquist, columns of equal time."""
    power = (np.abs(stft(waveform, n_fft=n_fft, hop=hop)) ** 2).mean(0)
    mel = np.linspace(0, _mel(sample_rate / 2), ROWS + 1)
    bins = 700 * (10 ** (mel / 2595) - 1) / sample_rate * n_fft
    rows = _means(power.T, np.clip(bins / (n_fft / 2), 0, 1)).T
    return _means(rows, np.linspace(0, 1, min(COLUMNS, rows.shape[1]) + 1))


def _means(values: Float[np.ndarray, "r n"], edges: Float[np.ndarray, " e"]) -> Float[np.ndarray, "r m"]:
    """(r, n) steps over the unit interval → (r, e − 1): their mean between neighbouring ``edges``, however near."""
    count = values.shape[1]
    total = np.pad(np.cumsum(values, axis=1, dtype=np.float64), ((0, 0), (1, 0)))
    places = edges * count
    below = np.minimum(places.astype(int), count - 1)
    integral = total[:, below] + (places - below) * values[:, below]
    return np.maximum(np.diff(integral, axis=1), 0) / np.diff(places)


def _mel(hz: float) -> float:
    """O'Shaughnessy's mel scale, about linear to 1 kHz and logarithmic above."""
    return 2595 * math.log10(1 + hz / 700)
