"""``twinsep bench stream``: a live signal in either framework: time of a block, memory after an hour, drift."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from twinsep.benchmarks.records import BenchmarkOptions, Record, Row, requirement, requirement_rows
from twinsep.config import preset
from twinsep.errors import TwinsepError
from twinsep.model.stream import Stream
from twinsep.utils import provenance
from twinsep.utils.backend import TWINS, twin
from twinsep.utils.progress import ProgressCallback

PRESET = "tiny-causal"
#: Samples of a pushed block ÷ hop → number of blocks whose times are taken.
BLOCKS = {0.25: 4_000, 1: 10_000, 4: 500}
#: Seconds of the stream after which memory and drift are measured.
SECONDS = (60, 3600)
#: Largest 99.9th percentile of a block's time ÷ its length, in one framework and in the other.
SLOWEST = (0.7, 1.0)
#: Largest memory after an hour ÷ memory after a minute, and largest distance from the stream in float64, relative.
GROWTH, DRIFT = 1.01, 1e-5
#: Largest latency, ms.
LATENCY_MS = 50.0


def measure(_options: BenchmarkOptions, report: ProgressCallback) -> Record:
    """Measure, for the preset :data:`PRESET` with random weights and white noise, in a process of each framework:

    real-time factors (a block's time ÷ its length) by block size, resident memory after a minute and an hour, and
    the distance from the stream of PyTorch in float64, which is the whole signal's to 1e-13, in the same time.
    """
    model = preset(PRESET).model
    assert model.latency is not None
    found = []
    for framework in TWINS:
        found.append({"framework": framework, **_in_process(framework)})
        report(len(found), len(TWINS))
    latency = 1000 * model.latency / model.sample_rate
    slowest = {x["framework"]: _at_hop(x)["p999"] for x in found}
    faster, slower = sorted(slowest, key=lambda name: slowest[name])
    title = "99.9th percentile of a block's time ÷ its length"
    figures = [requirement(name, "latency (ms)", latency, LATENCY_MS) for name in TWINS]
    figures += [
        requirement(name, title, slowest[name], bar) for name, bar in zip((faster, slower), SLOWEST, strict=True)
    ]
    for x in found:
        growth = x["memory_mib"][str(SECONDS[1])] / x["memory_mib"][str(SECONDS[0])]
        figures.append(requirement(x["framework"], "memory, an hour ÷ a minute", growth, GROWTH))
        drift = max(x["drift"].values()) / DRIFT
        figures.append(requirement(x["framework"], f"distance from float64 ÷ {DRIFT:g}", drift, 1.0))
    return {"preset": PRESET, "streams": found, "latency_ms": round(latency, 2), "figures": figures}


def rows(record: Record) -> list[Row]:
    """Format the record as table rows."""
    table: list[Row] = []
    for i, block in enumerate(record["streams"][0]["blocks"]):
        for key, what in (
            ("median", "median"),
            ("p999", "99.9th percentile"),
            ("worst", f"worst of {block['count']:,}"),
        ):
            values = {x["framework"]: x["blocks"][i][key] for x in record["streams"]}
            table.append((f"blocks of {block['samples']} samples: time ÷ length, {what}", values))
    return table + requirement_rows(record)


def _at_hop(found: Record) -> Record:
    return next(block for block in found["blocks"] if block["samples"] == preset(PRESET).model.hop)


def _in_process(framework: str) -> Record:
    done = subprocess.run(
        [sys.executable, "-m", "twinsep.benchmarks.stream", framework], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise TwinsepError(f"the stream with {framework} ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def main(framework: str) -> None:
    """Entry point of that process: print the record as JSON. It has one thread, as in ``twinsep listen``."""
    network = twin(framework).load(PRESET)
    stream, model = network.stream(), network.config.model
    rng = np.random.default_rng(0)
    noise = (0.1 * rng.standard_normal((2, 64 * model.hop))).astype(np.float32)
    stream.push(noise)  # compiles
    with threadpool_limits(1):
        blocks = [_times(stream, noise, round(share * model.hop), count) for share, count in BLOCKS.items()]
        record: dict[str, Any] = {"blocks": blocks, "memory_mib": _memory(stream, noise, model.sample_rate)}
        record["drift"] = _drift(network.stream(), model, noise)
    print(json.dumps(record))


def _times(stream: Stream, noise: np.ndarray, samples: int, count: int) -> Record:
    """Times of ``count`` blocks ÷ their length. Of blocks shorter than a hop only one in a few computes anything."""
    ratios = []
    length = samples / preset(PRESET).model.sample_rate
    for i in range(count):
        start = i * samples % (noise.shape[1] - samples)
        block = noise[:, start : start + samples]
        began = time.perf_counter()
        stream.push(block)
        ratios.append((time.perf_counter() - began) / length)
    percentiles = np.percentile(ratios, [50, 99.9, 100])
    named = zip(("median", "p999", "worst"), (round(float(x), 4) for x in percentiles), strict=True)
    return {"samples": samples, "count": count, **dict(named)}


def _memory(stream: Stream, noise: np.ndarray, rate: int) -> dict[str, float]:
    """Peak resident MiB of the process after each of :data:`SECONDS`."""
    found: dict[str, float] = {}
    pushed = 0
    for seconds in SECONDS:
        while pushed < seconds * rate:
            stream.push(noise)
            pushed += noise.shape[1]
        found[str(seconds)] = float(provenance.peak_memory_mib())
    return found


def _drift(stream: Stream, model: Any, noise: np.ndarray) -> dict[str, float]:
    """Largest distance of the stream in float32 from that in float64 up to each of :data:`SECONDS`, relative."""
    exact = Stream(twin("torch", "devices").stream_on_numpy(twin("torch").load(PRESET).double()), model)
    found: dict[str, float] = {}
    pushed, worst = 0, 0.0
    for seconds in SECONDS:
        while pushed < seconds * model.sample_rate:
            y, wanted = stream.push(noise), exact.push(noise)
            pushed += noise.shape[1]
            worst = max(worst, float(np.abs(y - wanted).max() / np.abs(wanted).max()))
        found[str(seconds)] = worst
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
