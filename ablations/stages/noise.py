"""Stage ``noise``: how much of a score is seed, song, framework and processor, and how many seeds a difference needs.

It also gives the main effects of the repairs of the start, whose intervals rest on that noise.

Both twins draw the same weights and batches from a seed, so seeds are crossed with frameworks, and all runs with songs.
The default row's runs in both frameworks give the variance components of the judged score, all rows that trained the
noise of a comparison. Runs on another processor, which :mod:`ablations.second_processor` keeps, give the difference
that a processor makes: of the default row and, where all rows were trained there, of means and verdicts.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ablations import scores, second_processor, settings
from ablations.scores import Runs
from ablations.stages import collect, run_stage
from ablations.statistics import ALPHA, Difference, difference, main_effect, seeds_to_decide, seeds_to_find, verdict
from ablations.variance import components, homogeneity, pooled_noise
from ablations.verdicts import by_axis
from twinsep.config import Config, from_dict
from twinsep.utils import provenance
from twinsep.utils.files import write_json

OUT = Path("results/noise.json")
#: Differences in dB for which the numbers of seeds are given.
EFFECTS = (0.1, 0.2, 0.3, 0.5, 1.0)
#: Repairs of the start, in the order of :func:`_repairs`.
REPAIRS = ("level features", "the identity start", "the compressed loss")


def main() -> None:
    """Write ``results/noise.json``; what cannot be estimated from the runs of the profile is null."""
    table = scores.read()
    found = {
        "score": "uSDR of the instrumental on a test song, dB",
        "components": _components(table),
        "frameworks": _frameworks(table),
        "comparisons": _comparisons(table),
        "main effects": _main_effects(table),
        "processor": _processor(table),
    }
    write_json(OUT, _finite({**found, **provenance.describe("cpu")}))


def _default_runs(table: pd.DataFrame) -> list[Runs]:
    """The default row in each framework, on the seeds that all have and on the songs with a score."""
    row = settings.default_row()
    runs = [scores.runs(table, n, *scores.JUDGED) for n, g in settings.trained_groups().items() if g.row == row]
    seeds = [seed for seed in runs[0].seeds if all(seed in r.seeds for r in runs)]
    scored = np.isfinite(np.concatenate([r.scores for r in runs])).all(0)
    return [
        Runs(r.framework, r.row, tuple(seeds), r.scores[[r.seeds.index(seed) for seed in seeds]][:, scored])
        for r in runs
    ]


def _components(table: pd.DataFrame) -> dict[str, Any] | None:
    """Variance components of the default row's scores; a factor with a single level is left out."""
    runs = _default_runs(table)
    layout = np.stack([r.scores for r in runs])
    factors = ["framework", "seed", "song"]
    present = [axis for axis, levels in enumerate(layout.shape) if levels > 1]
    if 2 not in present or len(present) < 2:
        return None
    effects = components(layout.squeeze(), [factors[axis] for axis in present])
    return {
        "frameworks": [r.framework for r in runs],
        "seeds": list(runs[0].seeds),
        "songs": layout.shape[2],
        "mean": float(layout.mean()),
        "effects": {
            name: {
                "variance": max(effect.variance, 0.0),
                "sd": max(effect.variance, 0.0) ** 0.5,
                "estimate": effect.variance,
                "mean square": effect.mean_square,
                "df": effect.df,
            }
            for name, effect in effects.items()
        },
    }


def _frameworks(table: pd.DataFrame) -> dict[str, Any] | None:
    """The default row in JAX minus PyTorch on the same seeds, whose noise is that of these differences alone."""
    by_framework = {r.framework: r for r in _default_runs(table)}
    if set(by_framework) != {"torch", "jax"}:
        return None
    # As two rows of one layout, whose interaction with the seeds is what remains of the difference.
    jax, torch = (by_framework[name]._replace(framework="both", row=name) for name in ("jax", "torch"))
    found = difference(jax, torch, pooled_noise([jax, torch]))
    return {"difference": "jax - torch", "seeds": found.seeds, "songs": found.songs, **_judged(found)}


def _judged(found: Difference) -> dict[str, Any]:
    (low, high), (inner_low, inner_high) = found.interval(), found.interval(1 - 2 * ALPHA)
    said = verdict(found, found.p)
    return {
        "mean": found.mean,
        "low": low,
        "high": high,
        "90 % interval": [inner_low, inner_high],
        "df": float(found.spread()[1]),
        "p": found.p,
        "verdict": said,
        "seeds needed": _count(seeds_to_decide(found)) if said == "undecided" else None,
    }


def _comparisons(table: pd.DataFrame) -> dict[str, Any] | None:
    """The pooled noise of a paired difference between two rows, its homogeneity, and the seeds that differences need.

    The difference of a pair of runs is a mean over these songs and has the standard deviation "sd over seeds". "sd over
    songs" is that of one song's true difference, in the median row. No number of seeds: more songs are needed.
    """
    grid = scores.grid(table)
    noise, test = pooled_noise(list(grid.values())), homogeneity(list(grid.values()))
    found = {}
    for name, row in grid.items():
        control = grid.get(f"{row.framework}-{settings.control(row.row)}")
        if control and control is not row:
            found[name] = difference(row, control, noise)
    if not test or not found:
        return None
    songs = next(iter(found.values())).songs
    over_songs = float(np.median([one.song_variance for one in found.values()]))
    bounds = noise.seeds_df / stats.chi2.ppf([1 - ALPHA / 2, ALPHA / 2], noise.seeds_df)
    return {
        "rows": len(grid),
        "songs": songs,
        "sd over seeds": (noise.seeds / songs) ** 0.5,
        "sd over seeds, 95 % interval": np.sqrt(noise.seeds / songs * bounds).tolist(),
        "df": noise.seeds_df,
        "residual sd": noise.residual**0.5,
        "sd over songs": over_songs**0.5,
        "Cochran": test._asdict(),
        "seeds needed": {
            f"{effect:g}": {
                "in this grid": _count(seeds_to_find(effect, songs, over_songs, noise, alone=False)),
                "two rows alone": _count(seeds_to_find(effect, songs, over_songs, noise, alone=True)),
            }
            for effect in EFFECTS
        },
    }


def _main_effects(table: pd.DataFrame) -> dict[str, Any] | None:
    """Repair → its effect, the mean over the rows with it minus the mean over the others, and the single effects.

    The rows are the eight combinations of ``REPAIRS`` in PyTorch; without one of them the result is None.
    """
    records = json.loads(collect.RECORDS.read_text())
    configs = {name: from_dict(next(iter(runs.values()))["configuration"]) for name, runs in records.items()}
    default = configs[f"torch-{settings.default_row()}"]
    cells = {
        cell: scores.runs(table, name, *scores.JUDGED)
        for name, config in configs.items()
        if name.startswith("torch-") and (cell := _repairs(config, default))
    }
    if len(cells) < 2 ** len(REPAIRS):
        return None
    noise = pooled_noise(list(scores.grid(table).values()))
    found = {}
    for place, repair in enumerate(REPAIRS):
        having = [cell for cell in cells if cell[place]]
        rows = [cells[cell] for cell in having]
        others = [cells[*cell[:place], False, *cell[place + 1 :]] for cell in having]
        effect = main_effect(rows, others, noise)
        single = [main_effect([row], [other], noise).mean for row, other in zip(rows, others, strict=True)]
        low, high = effect.interval()
        found[repair] = {
            "mean": effect.mean, "low": low, "high": high, "seeds": effect.seeds, "single effects": sorted(single),
        }  # fmt: skip
    return found


def _repairs(config: Config, default: Config) -> tuple[bool, ...] | None:
    """Which of ``REPAIRS`` a configuration has; None if it differs from the default row in anything else."""
    if type(config.model) is not type(default.model):
        return None
    compressed = config.loss.weights == {"compressed": 1.0}
    own = {key: getattr(config.model, key) for key in ("features", "init")}
    loss = replace(config.loss, weights=default.loss.weights) if compressed else config.loss
    model = replace(config.model, **{key: getattr(default.model, key) for key in own})
    training = replace(config.training, seed=default.training.seed)
    if replace(config, model=model, loss=loss, training=training) != default:
        return None
    return own["features"] == "complex+level", own["init"] == "identity", compressed


def _processor(table: pd.DataFrame) -> dict[str, Any]:
    """The default row trained on another processor minus the same runs here, whose noise is that of these differences.

    Without two kept runs of the same configuration and songs, "difference" is null, and "left out" says why.
    """
    second = json.loads(second_processor.OUT.read_text())
    group = f"torch-{settings.default_row()}"
    stated = {"processor": second["processor"], "commit": second["commit"]}
    records = json.loads(collect.RECORDS.read_text())
    theirs = _scores_there(second["runs"], records, table)
    seeds = theirs[theirs["group"] == group]["seed"].unique()
    if len(seeds) < 2:
        kept_from = f"the runs kept from {stated['processor']} (commit {stated['commit']})"
        reason = "have another configuration, other songs, or fewer than two seeds"
        return {"difference": None, "left out": f"{kept_from} {reason}"}
    there, here = (
        scores.runs(of[of["seed"].isin(seeds)], group, *scores.JUDGED)._replace(framework="both", row=place)
        for place, of in (("there", theirs), ("here", table))
    )
    found = difference(there, here, pooled_noise([there, here]))
    first = records[group][str(seeds[0])]
    return {
        "difference": "there - here",
        "seeds": found.seeds,
        "songs": found.songs,
        **_judged(found),
        "here": {"processor": first["device"], "commit": first["commit"]},
        "there": stated,
        "all rows": _all_rows(theirs, table),
    }


def _scores_there(runs: dict[str, Any], records: dict[str, Any], table: pd.DataFrame) -> pd.DataFrame:
    """The kept scores as a table like ``table``, of the runs that had the configuration and the songs of those here."""
    split, metric = scores.JUDGED
    judged = table[(table["split"] == split) & (table["metric"] == metric)]
    songs = judged.groupby("group")["track"].agg(set)
    lines = []
    for group, of_group in runs.items():
        for seed, own in records.get(group, {}).items():
            run, digest = of_group.get(seed), second_processor.configuration_digest(own["configuration"])
            if run and run["configuration"] == digest and set(run["uSDR"]) == songs[group]:
                framework, row, _ = settings.groups()[group]
                common = (group, framework, row, int(seed), split)
                lines += [(*common, track, metric, value) for track, value in run["uSDR"].items()]
    return pd.DataFrame(lines, columns=table.columns).astype({"seed": "Int64", "value": float})


def _all_rows(theirs: pd.DataFrame, ours: pd.DataFrame) -> dict[str, Any] | None:
    """Means and verdicts of all rows on the other processor and here; None unless all their runs were kept."""
    groups = settings.trained_groups()
    kept = theirs.groupby("group")["seed"].unique()
    if any(set(kept.get(name, ())) != set(group.seeds) for name, group in groups.items()):
        return None
    # The floor, which decides what has trained, is computed in closed form.
    there = pd.concat([theirs, ours[ours["group"].str.startswith("baseline-")]])
    means = [
        np.array([np.nanmean(scores.runs(of, name, *scores.JUDGED).scores) for name in groups]) for of in (there, ours)
    ]
    apart = means[0] - means[1]
    largest = int(np.argmax(np.abs(apart)))
    said = [by_axis(of) for of in (there, ours)]
    return {
        "groups": len(groups),
        "runs": sum(len(group.seeds) for group in groups.values()),
        "mean": float(apart.mean()),
        "rms": float(np.sqrt((apart**2).mean())),
        "largest": {"group": list(groups)[largest], "difference": float(apart[largest])},
        "Spearman": float(stats.spearmanr(*means).statistic) if len(groups) > 1 else None,
        "verdicts": len(said[1]),
        "other verdicts": [
            {"axis": axis, "group": name, "there": said[0][axis, name], "here": verdict_here}
            for (axis, name), verdict_here in said[1].items()
            if said[0][axis, name] != verdict_here
        ],
    }


def _count(seeds: float) -> int | None:
    return int(seeds) if np.isfinite(seeds) else None


def _finite(value: Any) -> Any:
    """``value`` for JSON: numbers rounded to 6 significant digits, those that are not finite null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value


if __name__ == "__main__":
    run_stage(main)
