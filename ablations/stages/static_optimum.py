"""Stage ``static_optimum``: the best constant gains under each loss, and what they score.

A network that does not yet distinguish one frame from another can only emit constant gains, one real gain in [0, 1] per
band, and its loss moves these towards the gains that it likes best. A loss whose best constant gains are 1 everywhere,
the identity, teaches such a network to return the mixture.

Gains are fitted by gradient, as a network is trained: one segment a step, in the order of the training of seed 0. They
are fitted twice, from one half and from 1. Where a loss leaves the gains undetermined, as SI-SDR leaves their scale,
the two results differ. Least squares, for comparison, is solved in closed form on the same segments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ablations import settings
from ablations.stages import run_stage
from twinsep import losses, metrics
from twinsep.config import Config, ModelConfig
from twinsep.data import dataset
from twinsep.data.loader import TrainingBatches
from twinsep.evaluation.systems import least_squares_gains, per_bin
from twinsep.kernels.threads import cores
from twinsep.stft import istft, stft
from twinsep.utils import provenance
from twinsep.utils.backend import keep_freed_memory
from twinsep.utils.files import write_atomically, write_json
from twinsep.utils.progress import ProgressCallback, progress_bar

OUT = Path("results/static_optimum.json")
TABLES = Path("results/tables")
TARGET = "instrumental"
#: Steps of a fit, each on a segment of its own; at most as many as a row is trained.
STEPS = 160
#: Gains before the fit.
STARTS = (0.5, 1.0)
#: Peak of the learning rate, which falls to 0 along a cosine, and decays of Adam's moments.
RATE, BETAS = 0.1, (0.9, 0.99)
#: Terms that no row has alone.
TERMS = ("band", "log_magnitude")
#: Names of the gains that no loss is fitted for.
MIXTURE, LEAST_SQUARES = "mixture", "least squares"
#: The splits whose songs are scored.
SPLITS = ("valid", "test")

#: (estimate (1, 1, 2, S), target (1, 1, 2, S)) → scalar.
Objective = Callable[[Tensor, Tensor], Tensor]
#: Gain of each band, in [0, 1].
Gains = Float[np.ndarray, " k"]
#: Split → mean over songs of the uSDR, dB.
Means = dict[str, float]


class Segment(NamedTuple):
    """A training segment: mixture and target, (2, S)."""

    mixture: np.ndarray
    target: np.ndarray


def main() -> None:
    """Write ``results/static_optimum.json`` and ``results/tables/static_optimum.{csv,md,tex}``."""
    torch.set_num_threads(1)  # fastest for one segment, and the same sums whatever the number of cores
    keep_freed_memory()
    config = settings.configuration(f"torch-{settings.default_row()}", 0)
    mixes, segments = loss_mixes(config), training_segments(config)
    gains = {MIXTURE: [np.ones(config.model.n_bands)]}
    with progress_bar("fitting") as report, ThreadPoolExecutor(cores()) as pool:
        fits = {
            name: [pool.submit(constant_gains, objective(mix), segments, config.model, start) for start in STARTS]
            for name, mix in mixes.items()
        }
        for done, (name, fitted) in enumerate(fits.items(), 1):
            gains[name] = [fit.result() for fit in fitted]
            report(done, len(mixes))
    gains[LEAST_SQUARES] = [least_squares(segments, config.model)]
    with progress_bar("evaluating") as report:
        scores = score(gains, config, report)
    optima = {name: _optimum(mixes.get(name), gains[name], scores[name]) for name in gains}
    measured = {"number": len(segments), "seconds": config.training.segment_seconds}
    write_json(OUT, {"starts": STARTS, "segments": measured, "optima": optima, **provenance.describe("cpu")})
    _write_table(_table(optima), _caption(optima, len(segments), config))


def loss_mixes(config: Config) -> dict[str, Config]:
    """Name → the configuration with that loss: the default row, the rows of the axis ``loss``, and ``TERMS`` alone."""
    rows = {row: entry["override"]["loss"] for row, entry in settings.rows().items() if "loss" in settings.axes(row)}
    alone = {f"{term} alone": {"weights": {term: 1.0}} for term in TERMS}
    others = {name: config.override({"loss": loss}) for name, loss in {**rows, **alone}.items()}
    return {settings.default_row(): config, **others}


def training_segments(config: Config) -> list[Segment]:
    """The first segments that a run of ``config`` is trained on, ``STEPS`` or as many as it has steps."""
    examples = map(TrainingBatches(config).example, range(min(STEPS, config.training.steps)))
    return [Segment(example["mixture"], example["target"][0]) for example in examples]


# ---------------------------------------------------------------------------- fits


def objective(config: Config) -> Objective:
    """The training loss of ``config`` as a function of waveforms."""
    return lambda estimate, target: losses.mix(estimate, target, mixture=None, config=config)[0]


def constant_gains(loss: Objective, segments: Sequence[Segment], config: ModelConfig, start: float) -> Gains:
    """Fit the gains that minimise ``loss`` over ``segments``, from ``start`` in every band.

    One step of Adam (Kingma and Ba 2015, arXiv 1412.6980) on each segment, after which the gains are clipped to [0, 1].
    The rate falls along a cosine; the result is the mean over the last half of the steps (Polyak and Juditsky 1992).
    """
    gains = torch.full((config.n_bands,), start, requires_grad=True)
    optimiser = torch.optim.Adam([gains], betas=BETAS)
    late = []
    for step, segment in enumerate(segments):
        optimiser.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / len(segments))) / 2
        optimiser.zero_grad()
        estimate, target = apply_gains(gains, segment.mixture, config), torch.from_numpy(segment.target)
        loss(estimate[None, None], target[None, None]).backward()
        optimiser.step()
        with torch.no_grad():
            gains.clamp_(0, 1)
        if step >= len(segments) // 2:
            late.append(gains.detach().numpy().astype(np.float64))
    return np.mean(late, axis=0)


def apply_gains(gains: Float[Tensor, " k"], mixture: np.ndarray, config: ModelConfig) -> Float[Tensor, "2 s"]:
    """Multiply the bins of each band of a mixture (2, S) by its gain; bins without a band by 0.5, as baselines do."""
    band = np.full(config.n_bins, config.n_bands)
    for k, (lo, hi) in enumerate(config.band_table):
        band[lo:hi] = k
    mask = torch.cat([gains, gains.new_full((1,), 0.5)])[torch.from_numpy(band)][:, None]
    return _istft(_stft(torch.from_numpy(mixture), config) * mask, mixture.shape[1], config)


def least_squares(segments: Iterable[Segment], config: ModelConfig) -> Gains:
    """The gains of the baseline ``band_gain``, fitted on ``segments`` and clipped to [0, 1]."""
    spectra = ((_stft(segment.mixture, config), {TARGET: _stft(segment.target, config)}) for segment in segments)
    return np.clip(least_squares_gains(spectra, config)[TARGET], 0, 1)


# ---------------------------------------------------------------------------- scores


def score(gains: Mapping[str, Sequence[Gains]], config: Config, report: ProgressCallback) -> dict[str, list[Means]]:
    """Name → for each of its gains, split → uSDR in dB, the mean over the songs of that split."""
    songs = [(split, song) for split in SPLITS for song in _songs(split, config)]
    masks = {(n, i): per_bin(one, config.model)[:, None] for n, fits in gains.items() for i, one in enumerate(fits)}

    def scores_of(song: dataset.Track) -> dict[tuple[str, int], float]:
        """Return the uSDR of each fit."""
        mixture, truth = song.read("mixture"), song.read(TARGET)
        spectrum = _stft(mixture, config.model)
        estimates = (
            (fit, _istft(spectrum * mask.astype(np.float32), mixture.shape[1], config.model))
            for fit, mask in masks.items()
        )
        return {fit: float(metrics.usdr(estimate, truth)) for fit, estimate in estimates}

    values: dict[tuple[str, int, str], list[float]] = {}
    with ThreadPoolExecutor(cores()) as pool:
        scored = pool.map(scores_of, [song for _, song in songs])
        for done, (split, _) in enumerate(songs, 1):
            for (name, index), value in next(scored).items():
                values.setdefault((name, index, split), []).append(value)
            report(done, len(songs))
    means = {key: metrics.aggregate(found)["mean"] for key, found in values.items()}
    return {n: [{split: means[n, i, split] for split in SPLITS} for i in range(len(gains[n]))] for n in gains}


def _songs(split: str, config: Config) -> tuple[dataset.Track, ...]:
    model = config.model
    return dataset.tracks(config.data.root, split, sample_rate=model.sample_rate, targets=model.targets)


def _stft(waveform: Any, config: ModelConfig) -> Any:
    return stft(waveform, n_fft=config.n_fft, hop=config.hop)


def _istft(spectrum: Any, length: int, config: ModelConfig) -> Any:
    return istft(spectrum, n_fft=config.n_fft, hop=config.hop, length=length)


# ---------------------------------------------------------------------------- files


def _optimum(mix: Config | None, gains: Sequence[Gains], scores: Sequence[Means]) -> dict[str, Any]:
    """The record of a loss: its terms, and gains and scores from each start."""
    fits = [
        {
            "mean gain": round(float(one.mean()), 4),
            **{f"{split} uSDR": round(means[split], 4) for split in SPLITS},
            "gains": [round(float(gain), 4) for gain in one],
        }
        for one, means in zip(gains, scores, strict=True)
    ]
    loss = None if mix is None else {"terms": mix.loss.weights, "log_floor": mix.loss.log_floor}
    return {"loss": loss, "apart": round(float(np.ptp(gains, axis=0).max()), 4), "fits": fits}


def _table(optima: Mapping[str, dict[str, Any]]) -> pd.DataFrame:
    """The table: what the first start leads to, and how far from that the second one ends."""
    lines = []
    for name, optimum in optima.items():
        first, *second = optimum["fits"]
        line = {"loss": name, **{key: value for key, value in first.items() if key != "gains"}}
        if second:
            line |= {"from 1: mean gain": second[0]["mean gain"], "from 1: test uSDR": second[0]["test uSDR"]}
            line |= {"apart": optimum["apart"]}
        lines.append(line)
    return pd.DataFrame(lines)


def _write_table(table: pd.DataFrame, caption: str) -> None:
    write_atomically(TABLES / "static_optimum.csv", table.to_csv(index=False, float_format="%.4f").encode())
    shown = table.map(lambda cell: cell if isinstance(cell, str) else "–" if pd.isna(cell) else f"{cell:.2f}")
    markdown = shown.to_markdown(index=False, disable_numparse=True)
    write_atomically(TABLES / "static_optimum.md", f"{caption}\n\n{markdown}\n".encode())
    tex = shown.to_latex(
        index=False,
        escape=True,
        caption=caption,
        label="tab:static_optimum",
        column_format="l" + "r" * (shown.shape[1] - 1),
    )
    write_atomically(TABLES / "static_optimum.tex", tex.encode())


def _caption(optima: Mapping[str, dict[str, Any]], count: int, config: Config) -> str:
    said = "; ".join(
        f"{name}: {_in_words(optimum['loss'], config)}" for name, optimum in optima.items() if optimum["loss"]
    )
    return (
        f"The best constant gains under each loss, profile {settings.params()['profile']}: one gain in [0, 1] for each "
        f"of {config.model.n_bands} bands, fitted to {count} training segments of "
        f"{config.training.segment_seconds:g} s, from gains of {STARTS[0]:g} and, to compare, of {STARTS[1]:g}. "
        "uSDR: of the instrumental, mean over songs, dB; apart: the largest difference between the gains from the two "
        f"starts. {said}. Least squares is solved in closed form."
    )


def _in_words(loss: Mapping[str, Any], config: Config) -> str:
    """The terms of a loss with their weights, and its floor where that is not the default one."""
    terms = " + ".join(f"{weight:g} {term}" for term, weight in loss["terms"].items())
    return terms if loss["log_floor"] == config.loss.log_floor else f"{terms}, floor {loss['log_floor']:g}"


if __name__ == "__main__":
    run_stage(main)
