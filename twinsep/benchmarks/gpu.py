"""``twinsep bench gpu``: scan, training step and memory on an NVIDIA GPU, measured only when named.

The scan is compared with the bytes that it must move, u, Δ, z, B, C and y once, at the rate of a large copy.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from typing import Any

from twinsep.benchmarks.process import WorkerProcess
from twinsep.benchmarks.records import BenchmarkOptions, Record, Row, requirement, requirement_rows
from twinsep.benchmarks.scan import LARGE, SMALL, TINY
from twinsep.config import preset
from twinsep.errors import TwinsepError
from twinsep.utils.backend import TWINS
from twinsep.utils.progress import ProgressCallback

DEVICE = "cuda"
SHAPES = (TINY, SMALL, LARGE)
#: Implementations of the scan: the default of either twin on a GPU, and those from whole-array operations.
WAYS = {"torch": ("default", "chunked"), "jax": ("default", "associative")}
#: Types of u, Δ, B, C and z; the state is float32.
TYPES = ("float32", "bfloat16")
#: Calls whose mean time is taken, and how often.
CALLS, REPETITIONS = 10, 5
#: Steps after the first ones, which compile or record.
STEPS = 5
_PROFILE: dict[str, Any] = {"batch_size": 8, "segment_seconds": 4.0}
_STAGES = ["enc1", "enc2", "enc3", "bottleneck", "dec3", "dec2", "dec1"]
_PAPER: dict[str, Any] = {"segment_seconds": 3.0, "precision": "bfloat16"}
#: (preset, options of its training, the MiB that it may take if it is to fit a card of 24 or 80 GB).
TRAININGS: tuple[tuple[str, dict[str, Any], float | None], ...] = (
    ("tiny", {"batch_size": 1, "segment_seconds": 1.5}, None),
    ("small", {**_PROFILE, "precision": "float32"}, None),
    ("small", {**_PROFILE, "precision": "bfloat16"}, None),
    ("paper", {**_PAPER, "batch_size": 2, "rematerialise": _STAGES}, 22_000.0),
    ("paper", {**_PAPER, "batch_size": 1}, 76_000.0),
    ("paper", {**_PAPER, "batch_size": 8, "rematerialise": _STAGES}, 76_000.0),
)


def measure(_options: BenchmarkOptions, report: ProgressCallback) -> Record:
    """Measure times in seconds and peak device memory in MiB; a training that does not fit has an error instead."""
    counter = itertools.count(1)
    total = sum(len(_scan_keys(framework)) for framework in TWINS) + len(TRAININGS)

    def advance() -> None:
        report(next(counter), total)

    scans, rates = [], dict[str, Any]()
    for framework in TWINS:
        with WorkerProcess(framework, device=DEVICE) as worker:
            rates = rates or worker.ask("device_rates")
            scans += [_scan(worker, *key, rates, advance) for key in _scan_keys(framework)]
    steps = [_training(*each, advance) for each in TRAININGS]
    figures = [
        requirement("torch", f"MiB of {s['preset']}, {s['options']}", s["peak_mib"], s["most_mib"])
        for s in steps
        if s["most_mib"] and "peak_mib" in s
    ]
    return {"axes": "b, l, e, n", "rates": rates, "scans": scans, "trainings": steps, "figures": figures}


def _scan_keys(framework: str) -> list[tuple[tuple[int, ...], str, str, bool]]:
    keys = itertools.product(SHAPES, WAYS[framework], TYPES, (False, True))
    return [key for key in keys if key[1] == "default" or key[2] == "float32"]  # the others take one type alone


def _scan(
    worker: WorkerProcess,
    shape: tuple[int, ...],
    way: str,
    dtype: str,
    backward: bool,
    rates: dict[str, Any],
    advance: Callable[[], None],
) -> Record:
    """Time one implementation; relate the bytes that it must move to those that a copy moves in that time."""
    key = {"shape": shape, "way": way, "backward": backward, "dtype": dtype}
    record: Record = {"framework": worker.framework, **key}
    try:
        worker.ask("prepare", name="scan", kind="scan", device=DEVICE, **key)
        times = [worker.ask("calls", name="scan", times=CALLS) for _ in range(REPETITIONS)]
    except TwinsepError as error:
        advance()
        return record | {"error": str(error)}
    b, l, e, n = shape
    moved = (4 * b * l * e + 2 * b * l * n) * (4 if dtype == "float32" else 2) * (1 + 2 * backward)
    median = statistics.median(times)
    advance()
    return record | {
        "median_s": float(f"{median:.3e}"),
        "times_s": [float(f"{t:.3e}") for t in times],
        "share_of_bandwidth": round(moved / median / rates["copied_bytes_per_s"], 3),
    }


def _training(name: str, options: dict[str, Any], most: float | None, advance: Callable[[], None]) -> Record:
    """Time steps of one configuration in PyTorch, in a process of its own, and read its peak memory on the device."""
    config = preset(name).override({"training": options})
    record: Record = {"framework": "torch", "preset": name, "options": options, "most_mib": most}
    with WorkerProcess("torch", device=DEVICE) as worker:
        try:
            worker.ask("open", config=config.to_dict(), device=DEVICE, batch=config.training.batch_size)
            first = [worker.ask("step") for _ in range(3)]
            times = [worker.ask("step") for _ in range(STEPS)]
            separation = [worker.ask("separate") for _ in range(3)][-1]
            record |= {"first_s": first, "times_s": times, "median_s": statistics.median(times)}
            record |= {"separation_s": separation, "peak_mib": worker.ask("device_peak")}
        except TwinsepError as error:
            record["error"] = str(error)
    advance()
    return record


def rows(record: Record) -> list[Row]:
    """Format the record as table rows."""
    table: list[Row] = [
        (
            f"{tuple(s['shape'])}, {s['way']}, {s['dtype']}, forward{' and backward' * s['backward']} (ms)",
            {s["framework"]: 1e3 * s["median_s"]},
        )
        for s in record["scans"]
        if "median_s" in s
    ]
    for s in record["trainings"]:
        what = f"{s['preset']}, {s['options']}"
        if "median_s" in s:
            table += [(f"{what} (s)", {s["framework"]: s["median_s"]})]
            table += [(f"{what} (MiB)", {s["framework"]: s["peak_mib"]})]
    return table + requirement_rows(record)
