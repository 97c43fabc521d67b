"""Scores of a system on whole songs: one record per track, stem and metric, and summaries over tracks.

A metric that is undefined on a track (see :mod:`twinsep.metrics`) is null in the files, left out of means and
medians over tracks, and not counted in their ``n``.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
from collections import Counter
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
from twinsep.evaluation.bss_eval import bss_eval, is_silent
from twinsep.evaluation.systems import System
from twinsep.separation import separator
from twinsep.separation.overlap_add import Chunking
from twinsep.utils.files import write_json
from twinsep.utils.progress import ProgressCallback, progress_bar

Record = dict[str, Any]
UNITS = {"leakage": "dB re mixture", "bleedless": "0 to 100", "fullness": "0 to 100"}
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
    bleedless: bool = True,
    report: ProgressCallback | None = None,
) -> list[Record]:
    """Records {split, track, target, metric, value, unit} of every track and stem; an undefined value is None.

    The stems are the targets; for the target instrumental also the rest of the mixture ("vocals"), for all sources
    also the sum of all except the vocals ("instrumental"). ``museval`` adds its SDR, SIR, SAR and ISR in dB (medians
    over frames) of the stems that add up to the song, which take most of the time; their records also name the
    "references" that were compared, since SIR and SAR of a stem depend on the other stems (see
    :func:`_museval_medians`). Without ``bleedless``, bleedless and fullness are left out, which take a third of the
    time of a small network. Raises :class:`InputError` for missing data and for an estimate of another length than
    its song.
    """
    rate, targets = config.sample_rate, tuple(t for t in config.targets if t in _SCORED)
    songs = [(split, t) for split in splits for t in dataset.tracks(root, split, sample_rate=rate, targets=targets)]
    records: list[Record] = []
    pending: list[tuple[str, str, list[str], str, Future]] = []
    with _pool(museval) as pool:
        for done, (split, song) in enumerate(songs):
            mixture = song.read("mixture")
            truths, estimates = _stems(system, config, song, mixture)
            for target in truths:
                values = score_stem(estimates[target], truths[target], mixture, config.sample_rate, bleedless=bleedless)
                records += [_record(split, song.name, target, metric, value) for metric, value in values.items()]
            if pool:
                parts = [stem for stem in truths if stem != "instrumental" or len(truths) == 2]
                stacks = [np.stack([stems[stem] for stem in parts]) for stems in (truths, estimates)]
                compared = ", ".join(np.array(parts)[~is_silent(stacks[0])])
                job = pool.submit(_museval_medians, *stacks, config.sample_rate)
                pending.append((split, song.name, parts, compared, job))
            if report:
                report(done + 1, len(songs) + len(songs) * museval)
        for done, (split, name, stems, compared, job) in enumerate(pending):
            for metric, values in job.result().items():
                made = [_record(split, name, t, metric, v) for t, v in zip(stems, values, strict=True)]
                records += [record | {"references": compared} for record in made]
            if report:
                report(len(songs) + done + 1, 2 * len(songs))
    return sorted(records, key=lambda r: (r["split"], r["track"], r["target"], r["metric"]))


def score_stem(
    estimate: np.ndarray, truth: np.ndarray, mixture: np.ndarray, sample_rate: int, *, bleedless: bool = True
) -> dict[str, float]:
    """cSDR, uSDR, SI-SDR and leakage in dB of one stem (2, S), computed in float64.

    With ``bleedless`` also bleedless and fullness, 0 to 100. :mod:`twinsep.metrics` defines them.
    """
    estimate, truth, mixture = (x.astype(np.float64) for x in (estimate, truth, mixture))
    values = {
        "csdr": float(metrics.csdr(estimate, truth, sample_rate=sample_rate)),
        "usdr": float(metrics.usdr(estimate, truth)),
        "si_sdr": float(metrics.si_sdr(estimate, truth)),
        "leakage": float(metrics.leakage(estimate, truth, mixture, sample_rate=sample_rate)),
    }
    if bleedless:
        pair = metrics.bleedless_fullness(estimate, truth, sample_rate=sample_rate)
        values |= dict(zip(("bleedless", "fullness"), map(float, pair), strict=True))
    return values


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
    """museval's four metrics of each stem (stems, 2, S), medians over 1-s frames.

    The references are the stems that are not silent throughout. A stem has NaN if it or its estimate is silent
    throughout, and NaN as SIR if there is no other reference. museval itself would then score no stem at all.
    """
    present, answered = ~is_silent(truths), ~is_silent(estimates)
    medians = {f"museval_{name}": [math.nan] * len(truths) for name in ("sdr", "isr", "sir", "sar")}
    if not (present & answered).any():
        return medians
    # A stem's scores do not depend on other estimates, but museval refuses silent ones: any sound takes their place.
    sounding = np.where(answered[:, None, None], estimates, truths)
    framewise = bss_eval(truths[present], sounding[present], sample_rate=sample_rate)
    for name, rows in framewise.items():
        for stem, frames in zip(np.flatnonzero(present), rows, strict=True):
            if answered[stem] and np.isfinite(frames).any() and (name != "SIR" or present.sum() > 1):
                medians[f"museval_{name.lower()}"][stem] = float(np.nanmedian(frames))
    return medians


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
    """Summarise over tracks: {split: {target: {metric: {median, mean, n}}}}, undefined values left out.

    museval's metrics also have "references": the sets of stems that were compared, by the number of tracks.
    """
    groups: dict[tuple[str, str, str], list[float]] = {}
    references: dict[tuple[str, str, str], Counter[str]] = {}
    for r in records:
        key, value = (r["split"], r["target"], r["metric"]), math.nan if r["value"] is None else r["value"]
        groups.setdefault(key, []).append(value)
        if "references" in r:
            references.setdefault(key, Counter())[r["references"]] += r["value"] is not None
    summary: dict[str, Any] = {}
    for (split, target, metric), values in groups.items():
        over = metrics.aggregate(np.asarray(values))
        rounded: dict[str, Any] = {k: (round(v, 4) if math.isfinite(v) else None) for k, v in over.items()}
        if (split, target, metric) in references:
            rounded["references"] = {key: n for key, n in references[split, target, metric].items() if n}
        summary.setdefault(split, {}).setdefault(target, {})[metric] = rounded
    return summary


def evaluate_checkpoint(
    checkpoint: str | Path,
    *,
    out: Path,
    root: Path | None = None,
    splits: list[str] | None = None,
    museval: bool = False,
    bleedless: bool = True,
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
    _write_scores(system, config, str(root or config.data.root), out, splits, museval, bleedless)


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
    _write_scores(system, config, config.data.root, out, splits, museval, bleedless=True)


def _check_folder(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file where a folder is needed; choose another --out")
    if not overwrite and any((out / name).exists() for name in _FILES):
        raise InputError(f"{out} holds scores: choose another --out, or pass --overwrite to replace them")


def _write_scores(
    system: System, config: Config, root: str, out: Path, splits: list[str] | None, museval: bool, bleedless: bool
) -> None:
    """Write ``metrics.json`` (every record) and ``summary.json`` (over tracks) into ``out``, and print the summary.

    Without ``splits``, score those of :func:`twinsep.data.dataset.scored_splits`.
    """
    with progress_bar("evaluating") as report:
        chosen = splits or dataset.scored_splits(root)
        records = score_songs(system, config.model, root, chosen, museval=museval, bleedless=bleedless, report=report)
    summary = summarise(records)
    for name, content in zip(_FILES, (records, summary), strict=True):
        write_json(out / name, content)
    _print_summary(summary)


def _print_summary(summary: dict[str, Any]) -> None:
    table = Table("split", "stem", "metric", "median", "mean", "tracks", "among (museval)")
    for split, stems in summary.items():
        for stem, scores in stems.items():
            for metric, over in scores.items():
                cells = ["–" if over[k] is None else f"{over[k]:.2f}" for k in ("median", "mean")]
                compared = over.get("references", {})
                among = "; ".join(f"{names} ({n})" if len(compared) > 1 else names for names, n in compared.items())
                table.add_row(split, stem, metric, *cells, str(over["n"]), among)
    Console().print(table)
