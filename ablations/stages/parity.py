"""Stage ``parity``: measure the distances between the twins by module and network, in training and over a song.

:mod:`ablations.comparison` defines the measurements and their tolerances; the tests apply both.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jax_impl
import torch_impl
from ablations import comparison, side_by_side
from ablations.comparison import DTYPES, QUIET, SONG_SNR_DB, TOLERANCE, configuration, distance
from ablations.stages import run_stage
from twinsep.config import Config
from twinsep.separation.overlap_add import ChunkGrid, apply_model
from twinsep.training import schedule
from twinsep.utils import progress, provenance
from twinsep.utils.files import write_json

OUT = Path("results/parity.json")
#: Folder of the measured parts.
WORK = Path("results/work/parity")
#: Parts of the cases in each precision.
SHARES = 2
LOUD = 0.1  # rms of further noise; its gradients are recorded without a tolerance
DRAWS = 5  # of noise at each level; the worst is recorded
STEPS = 10
CURVE_STEPS = 100
#: Mixers whose networks are compared again without JAX's kernels. On a CPU these kernels run scan and attention by the
#: same loops as PyTorch.
SHARED = ("mamba", "transformer")


def main() -> None:
    """Write ``results/parity.json``. Most of the time goes into compiling, on one core: parts run side by side."""
    shares = [(dtype, str(share)) for dtype in DTYPES for share in range(SHARES)]
    parts = sorted([*shares, ("training",)], key=lambda part: part[0] == "float64")  # the longest first
    shutil.rmtree(WORK, ignore_errors=True)
    side_by_side.run_modules({" ".join(part): ["ablations.stages.parity", *part] for part in parts})
    modules: dict[str, Any] = defaultdict(lambda: defaultdict(dict))
    networks: dict[str, Any] = {name: {} for name in comparison.cases()}
    own: dict[str, Any] = {name: {} for name in networks if _is_shared(name)}
    for dtype, share in shares:
        found = _read_part(dtype, share)
        for name, distances in found["modules"].items():
            worst = modules[name][dtype]
            worst.update({key: max(worst.get(key, 0.0), value) for key, value in distances.items()})
        for whole, part in ((networks, "networks"), (own, "own")):
            for name, distances in found[part].items():
                whole[name][dtype] = distances
    training = _read_part("training")
    write_json(
        OUT,
        {
            "tolerance": TOLERANCE,
            "levels": {"gradients": QUIET, "gradients, loud": LOUD},
            "draws": DRAWS,
            "compiled as for users": as_for_users(),
            "modules": _rounded(modules),
            "networks": _rounded(networks),
            "networks, JAX's own operations": _rounded(own),
            "steps": _rounded(training["steps"]),
            "curve": training["curve"],
            "song": training["song"],
            **provenance.describe("cpu"),
        },
    )
    shutil.rmtree(WORK)


def measure_share(dtype: str, share: int) -> dict[str, Any]:
    """Distances of every ``SHARES``-th case: of modules, networks, and networks on JAX's own operations."""
    compute_in(dtype)
    modules: dict[str, Any] = defaultdict(dict)
    networks, own = {}, {}
    cases = list(comparison.cases().items())[share::SHARES]
    of_modules = dict(comparison.module_cases())
    with progress.progress_bar(f"parity in {dtype}") as report:
        for done, (name, model) in enumerate(cases):
            config = configuration(model)
            if name in of_modules:
                wanted = comparison.modules_in_torch(config, dtype, of_modules[name])
                for module, found in comparison.modules_in_jax(config, dtype, of_modules[name]).items():
                    worst = modules[module]
                    for key, prefix in (("forward", "y"), ("backward", "d ")):
                        worst[key] = max(worst.get(key, 0.0), distance(found, wanted[module], prefix))
            if _is_shared(name):
                own[name] = _network(config, dtype, kernels=False)
            networks[name] = _network(config, dtype, as_for_users=dtype == "float32" and name in as_for_users())
            report(done + 1, len(cases))
    return {"modules": modules, "networks": networks, "own": own}


def measure_training() -> dict[str, Any]:
    """Distances after steps of training in either precision, curves of both twins, and a song that both separate."""
    first = configuration(next(iter(comparison.cases().values())))
    steps = {}
    for dtype in DTYPES:
        compute_in(dtype)
        steps[dtype] = training_distance(first, dtype)
    compute_in("float32")
    curve = training_curves(first, CURVE_STEPS)
    return {"steps": steps, "curve": curve, "song": {"snr_db": round(song_snr(first), 1), "bar": SONG_SNR_DB}}


def as_for_users() -> list[str]:
    """The first case of each mixer, whose network in float32 is compiled as for users."""
    return list({name.split(";")[0]: name for name in reversed(comparison.cases())}.values())


def _is_shared(case: str) -> bool:
    return case.split(";")[0] in SHARED


def _part_path(*part: str) -> Path:
    return WORK / f"{'-'.join(part)}.json"


def _read_part(*part: str) -> dict[str, Any]:
    return json.loads(_part_path(*part).read_text())


def compute_in(dtype: str) -> None:
    """Make JAX compute in ``dtype``, and train with all optimisations in float32 only: nobody trains in float64."""
    jax.config.update("jax_enable_x64", dtype == "float64")
    jax.config.update("jax_disable_most_optimizations", dtype == "float64")


def _network(config: Config, dtype: str, *, kernels: bool = True, as_for_users: bool = False) -> dict[str, Any]:
    draws = [(rms, seed) for rms in (QUIET, LOUD) for seed in range(DRAWS)]
    found = comparison.network_in_jax(config, dtype, draws, kernels=kernels, as_for_users=as_for_users)
    wanted = comparison.network_in_torch(config, dtype, draws)
    both = list(zip(found, wanted, strict=True))
    quiet, loud = both[:DRAWS], both[DRAWS:]
    leaf, apart = max((comparison.worst_leaf(*pair) for pair in quiet), key=lambda found: found[1])
    return {
        "forward": max(distance(*pair, "y") for pair in both),
        "loss": max(distance(*pair, "loss") for pair in both),
        "gradients": max(distance(*pair, "d ") for pair in quiet),
        "gradients, loud": max(distance(*pair, "d ") for pair in loud),
        "worst leaf": {"name": leaf, "distance": apart},
    }


# ---------------------------------------------------------------------------- training


def trainers(config: Config, dtype: str) -> tuple[Any, Any]:
    """(PyTorch's, JAX's) trainer with the same initial state in ``dtype``."""
    ours, theirs = torch_impl.train.Trainer(config), jax_impl.train.Trainer(config)
    if dtype == "float64":
        ours.model.double(), ours.average.double()
        for moments in ours.moments.values():
            moments.update({key: moments[key].double() for key in ("exp_avg", "exp_avg_sq")})
        own = theirs.weights, theirs.average, theirs.statistics
        theirs.weights, theirs.average, theirs.statistics = jax.tree.map(lambda w: w.astype(jnp.float64), own)
        # Like the weights, moments must start on the device, or the first step is compiled twice.
        theirs.moments = jax.device_put(theirs.adam.init(theirs.weights), theirs.device)
    return ours, theirs


def batches(config: Config, dtype: str, step: int, *, rms: float = QUIET) -> list[dict[str, np.ndarray]]:
    """The batches that step number ``step`` accumulates: two at every fifth step, else one."""
    seeds = (step, step + 500) if step % 5 == 4 else (step,)
    drawn = [comparison.signals(config, dtype, rms=rms, samples=config.segment_samples, seed=seed) for seed in seeds]
    return [{"mixture": mixture, "target": target} for mixture, target in drawn]


def trained(trainer: Any, config: Config, dtype: str, *, steps: int = STEPS, rms: float = QUIET) -> tuple[Any, Any]:
    """(trainer's state after ``steps`` steps of the configured schedule, loss of each step)."""
    losses = []
    for step in range(steps):
        rate, decay = schedule.learning_rate(step, config.training), schedule.ema_decay(step, config.training)
        losses.append(trainer.step(batches(config, dtype, step, rms=rms), rate, decay)["loss"])
    return trainer.state(), losses


def training_distance(config: Config, dtype: str) -> dict[str, float]:
    """Distances between the trainers' states after ten optimiser steps on identical batches."""
    (wanted, curve), (found, other) = (trained(trainer, config, dtype) for trainer in trainers(config, dtype))
    names = {"parameters": "model/", "average": "ema/", "first moments": "adam_m/", "second moments": "adam_v/"}
    out = {name: distance(found, wanted, prefix) for name, prefix in names.items()}
    return out | {"last loss": abs(other[-1] / curve[-1] - 1)}


def training_curves(config: Config, steps: int) -> dict[str, Any]:
    """Losses of both trainers over ``steps`` steps in float32 on the same noise of LOUD rms."""
    runs = [trained(pair, config, "float32", steps=steps, rms=LOUD) for pair in trainers(config, "float32")]
    ours, theirs = (np.array(curve) for _, curve in runs)
    apart = np.abs(theirs / ours - 1).max()
    rounded = ([round(loss, 6) for loss in curve] for curve in (ours.tolist(), theirs.tolist()))
    return dict(zip(("torch", "jax"), rounded, strict=True)) | {"largest distance": float(f"{apart:.2e}")}


# ---------------------------------------------------------------------------- a song


def song_snr(config: Config, seconds: float = 3.0) -> float:
    """Level of one separated song relative to the difference between the two, in dB."""
    outputs = []
    song = comparison.noise(2, round(seconds * config.model.sample_rate)).astype(np.float32)
    weights = {name: w.astype(np.float32) for name, w in comparison.weights_of(config).items()}
    for twin in (torch_impl, jax_impl):
        model = twin.networks.build(config)
        twin.train.load_weights(model, weights, "parity")
        function = twin.devices.on_numpy(model, twin.devices.find_device("cpu"))
        outputs.append(apply_model(function, song, ChunkGrid(30_000)))
    error = np.square(outputs[0] - outputs[1], dtype=np.float64).sum()
    return float(10 * np.log10(np.square(outputs[0], dtype=np.float64).sum() / error))


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.2e}") if isinstance(value, float) else value


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["training"]:
            run_stage(lambda: write_json(_part_path("training"), measure_training()))
        case [dtype, share]:
            run_stage(lambda: write_json(_part_path(dtype, share), measure_share(dtype, int(share))))
        case _:
            run_stage(main)
