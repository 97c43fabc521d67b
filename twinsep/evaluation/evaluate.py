"""Scores of a system on whole songs: one record per track, stem and metric, and summaries over tracks.

A metric that is undefined on a track (see :mod:`twinsep.metrics`) is null in the files, left out of means and
medians over tracks, and not counted in their ``n``.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from twinsep import metrics
from twinsep.config import SOURCES, Config, ModelConfig
from twinsep.data import dataset
from twinsep.errors import InputError
from twinsep.evaluation import systems
from twinsep.evaluation.systems import System
from twinsep.separation import separator
from twinsep.separation.overlap_add import Chunking
from twinsep.utils.files import write_json
from twinsep.utils.progress import ProgressCallback, progress_bar

Record = dict[str, Any]
UNITS = {"leakage": "dB re mixture"}
#: What an evaluation writes: every record, and the summary over tracks.
_FILES = ("metrics.json", "summary.json")
#: The stems that data sets have.
_SCORED = (*SOURCES, "instrumental")


def score_songs(
    system: System,
    config: ModelConfig,
    root: str,
    splits: Iterable[str],
    *,
    museval: bool = False,
    report: ProgressCallback | None = None,
) -> list[Record]:
    """Records {split, track, target, metric, value, unit} of every track and stem; an undefined value is None.

    The stems are the targets; for the target instrumental also the rest of the mixture ("vocals"), for all sources
    also the sum of all except the vocals ("instrumental"). ``museval``
    adds its SDR, SIR, SAR and ISR in dB (medians over frames), which take most of the time. Raises
    :class:`InputError` for missing data and for an estimate of another length than its song.
    """
    rate, targets = config.sample_rate, tuple(t for t in config.targets if t in _SCORED)
    songs = [(split, t) for split in splits for t in dataset.tracks(root, split, sample_rate=rate, targets=targets)]
    records: list[Record] = []
    pending: list[tuple[str, str, list[str], Future]] = []
    with _pool(museval) as pool:
        for done, (split, song) in enumerate(songs):
            mixture = song.read("mixture")
            truths, estimates = _stems(system, config, song, mixture)
            for target in truths:
                values = score_stem(estimates[target], truths[target], mixture, config.sample_rate)
                records += [_record(split, song.name, target, metric, value) for metric, value in values.items()]
            if pool:
                parts = [
                    stem for stem in truths if stem != "instrumental" or len(truths) == 2
                ]  # that add up to the song
                stacks = [np.stack([stems[stem] for stem in parts]) for stems in (truths, estimates)]
                job = pool.submit(_museval_medians, *stacks, config.sample_rate)
                pending.append((split, song.name, parts, job))
            if report:
                report(done + 1, len(songs) + len(songs) * museval)
        for done, (split, name, stems, job) in enumerate(pending):
            for metric, values in job.result().items():
                records += [_record(split, name, t, metric, v) for t, v in zip(stems, values, strict=True)]
            if report:
                report(len(songs) + done + 1, 2 * len(songs))
    return sorted(records, key=lambda r: (r["split"], r["track"], r["target"], r["metric"]))


def score_stem(estimate: np.ndarray, truth: np.ndarray, mixture: np.ndarray, sample_rate: int) -> dict[str, float]:
    """cSDR, uSDR, SI-SDR and leakage in dB of one stem (2, S), computed in float64."""
    estimate, truth, mixture = (x.astype(np.float64) for x in (estimate, truth, mixture))
    return {
        "csdr": float(metrics.csdr(estimate, truth, sample_rate=sample_rate)),
        "usdr": float(metrics.usdr(estimate, truth)),
        "si_sdr": float(metrics.si_sdr(estimate, truth)),
        "leakage": float(metrics.leakage(estimate, truth, mixture, sample_rate=sample_rate)),
    }


def _stems(
    system: System, config: ModelConfig, song: dataset.Track, mixture: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    estimates = {stem: y for stem, y in system(song, mixture).items() if stem in _SCORED}
    truths = {target: song.read(target) for target in estimates}
    for target, estimate in estimates.items():
        if estimate.shape != mixture.shape:
            raise InputError(f"{song.name}: {target} has shape {estimate.shape}, the song {mixture.shape}")
    if config.targets == ("instrumental",):
        estimates = estimates | {"vocals": mixture - estimates["instrumental"]}
        truths["vocals"] = song.read("vocals")
    elif set(SOURCES) <= set(estimates):  # all systems have a score of the instrumental
        estimates = estimates | {"instrumental": np.sum([estimates[s] for s in SOURCES if s != "vocals"], 0)}
        truths["instrumental"] = song.read("instrumental")
    return truths, estimates


def _museval_medians(truths: np.ndarray, estimates: np.ndarray, sample_rate: int) -> dict[str, list[float]]:
    """museval's four metrics of each stem (stems, 2, S), medians over 1-s frames; NaN if any stem is silent."""
    from twinsep.evaluation.bss_eval import bss_eval

    if not np.abs(truths).max((1, 2)).all() or not np.abs(estimates).max((1, 2)).all():
        return {f"museval_{name}": [math.nan] * len(truths) for name in ("sdr", "isr", "sir", "sar")}
    framewise = bss_eval(truths, estimates, sample_rate=sample_rate)
    return {
        f"museval_{name.lower()}": [float(np.nanmedian(v)) if np.isfinite(v).any() else math.nan for v in values]
        for name, values in framewise.items()
    }


def _pool(wanted: bool) -> Any:
    if not wanted:
        return contextlib.nullcontext()
    # Spawned, so that no thread of a framework is forked; one BLAS thread each is fastest for two stems.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    return ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn"))


def _record(split: str, track: str, target: str, metric: str, value: float) -> Record:
    # Four decimals: more would differ from processor to processor.
    kept = round(value, 4) if math.isfinite(value) else None
    return {
        "split": split,
        "track": track,
        "target": target,
        "metric": metric,
        "value": kept,
        "unit": UNITS.get(metric, "dB"),
    }


# ---------------------------------------------------------------------------- results


def summarise(records: Iterable[Record]) -> dict[str, Any]:
    """Summarise over tracks: {split: {target: {metric: {median, mean, n}}}}, undefined values left out."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for r in records:
        value = math.nan if r["value"] is None else r["value"]
        groups.setdefault((r["split"], r["target"], r["metric"]), []).append(value)
    summary: dict[str, Any] = {}
    for (split, target, metric), values in groups.items():
        over = metrics.aggregate(np.asarray(values))
        rounded = {k: (round(v, 4) if math.isfinite(v) else None) for k, v in over.items()}
        summary.setdefault(split, {}).setdefault(target, {})[metric] = rounded
    return summary


def evaluate_checkpoint(
    checkpoint: str | Path,
    *,
    out: Path,
    root: Path | None = None,
    splits: list[str] | None = None,
    museval: bool = False,
    chunking: Chunking | None = None,
    framework: str = "torch",
    device: str = "cpu",
    overwrite: bool = False,
) -> None:
    """Score a checkpoint on whole songs and write the results into ``out``; see :func:`_write_scores`.

    The songs are those of the folder ``root``, by default of the configuration in the checkpoint. Raises
    :class:`InputError` as :func:`twinsep.load` and :func:`score_songs` do, and before any work for results in ``out``
    unless ``overwrite`` is True.
    """
    _check_folder(out, overwrite)
    loaded = separator.load(checkpoint, framework, device=device, chunking=chunking)
    config = loaded.config
    system = systems.model_system(loaded.model, config.model, loaded.grid)
    _write_scores(system, config, str(root or config.data.root), out, splits, museval)


def evaluate_baseline(
    name: str,
    config: Config,
    *,
    out: Path,
    splits: list[str] | None = None,
    museval: bool = False,
    overwrite: bool = False,
) -> None:
    """Score one of :data:`twinsep.evaluation.systems.BASELINES` under ``config``; see :func:`evaluate_checkpoint`."""
    _check_folder(out, overwrite)
    with progress_bar("fitting" if name in systems.FITTED else "preparing") as report:
        system = systems.baseline_system(name, config.model, config.data.root, report)
    _write_scores(system, config, config.data.root, out, splits, museval)


def _check_folder(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file where a folder is needed; choose another --out")
    if not overwrite and any((out / name).exists() for name in _FILES):
        raise InputError(f"{out} holds scores: choose another --out, or pass --overwrite to replace them")


def _write_scores(
    system: System, config: Config, root: str, out: Path, splits: list[str] | None, museval: bool
) -> None:
    """Write ``metrics.json`` (every record) and ``summary.json`` (over tracks) into ``out``, and print the summary.

    Without ``splits``, score those of :func:`twinsep.data.dataset.scored_splits`.
    """
    with progress_bar("evaluating") as report:
        chosen = splits or dataset.scored_splits(root)
        records = score_songs(system, config.model, root, chosen, museval=museval, report=report)
    summary = summarise(records)
    for name, content in zip(_FILES, (records, summary), strict=True):
        write_json(out / name, content)
    _print_summary(summary)


def _print_summary(summary: dict[str, Any]) -> None:
    table = Table("split", "stem", "metric", "median", "mean", "tracks")
    for split, stems in summary.items():
        for stem, scores in stems.items():
            for metric, over in scores.items():
                cells = ["–" if over[k] is None else f"{over[k]:.2f}" for k in ("median", "mean")]
                table.add_row(split, stem, metric, *cells, str(over["n"]))
    Console().print(table)
