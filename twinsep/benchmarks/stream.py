"""``twinsep bench stream``: a live signal in either framework: time of a block, memory after an hour, drift."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

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
#: Hops of the noise that is streamed again and again.
NOISE_HOPS = 64
#: Seconds of the stream after which memory and drift are measured.
SECONDS = (60, 3600)
#: Largest 99.9th percentile of a block's time ÷ its length, in one framework and in the other.
SLOWEST = (0.7, 1.0)
#: Largest memory after an hour ÷ memory after a minute, and largest distance from the stream in float64, relative.
GROWTH, DRIFT = 1.01, 1e-5
#: Largest latency, ms.
LATENCY_MS = 50.0


def measure(_options: BenchmarkOptions, report: ProgressCallback) -> Record:
    """Measure, for the preset :data:`PRESET` with random weights and white noise:

    - real-time factors (a block's time ÷ its length) by block size, in a process of each framework, one after the
      other;
    - resident memory after a minute and an hour, and the distance from the stream of PyTorch in float64, which is the
      whole signal's to 1e-13, in the same time. These streams play at the same time, a process each.
    """
    model = preset(PRESET).model
    assert model.latency is not None
    total = len(TWINS) + SECONDS[-1]
    found: list[Record] = []
    for framework in TWINS:
        found.append({"framework": framework, "blocks": _in_process(framework)})
        report(len(found), total)
    kept = _hour(lambda seconds: report(len(TWINS) + seconds, total))
    found = [x | kept[x["framework"]] for x in found]
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


def _in_process(framework: str) -> list[Record]:
    done = subprocess.run(
        [sys.executable, "-m", "twinsep.benchmarks.stream", framework], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise TwinsepError(f"the stream with {framework} ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def main(framework: str) -> None:
    """Entry point of that process: print the times of blocks as JSON. It has one thread, as in ``twinsep listen``."""
    network = twin(framework).load(PRESET)
    stream, noise = network.stream(), _noise()
    stream.push(noise)  # compiles
    with threadpool_limits(1):
        blocks = [_times(stream, noise, round(share * stream.hop), count) for share, count in BLOCKS.items()]
    print(json.dumps(blocks))


def _noise() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (0.1 * rng.standard_normal((2, NOISE_HOPS * preset(PRESET).model.hop))).astype(np.float32)


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


def _hour(report: Callable[[int], None]) -> dict[str, Record]:
    """Memory and drift by framework: {"memory_mib": peak MiB of its process after each of :data:`SECONDS`, "drift":
    largest distance from the stream in float64 until then ÷ the largest sample of the block}."""
    model = preset(PRESET).model
    block = NOISE_HOPS * model.hop
    found: dict[str, Record] = {framework: {"memory_mib": {}, "drift": {}} for framework in TWINS}
    memory, drift, pushed = dict.fromkeys(TWINS, 0.0), dict.fromkeys(TWINS, 0.0), 0
    with contextlib.ExitStack() as stack:
        exact = stack.enter_context(_player("torch", double=True))
        players = {framework: stack.enter_context(_player(framework, double=False)) for framework in TWINS}
        for seconds in SECONDS:
            while pushed < seconds * model.sample_rate:
                wanted, _ = _receive(exact)
                for framework, player in players.items():
                    samples, memory[framework] = _receive(player)
                    distance = float(np.abs(samples - wanted).max() / np.abs(wanted).max())
                    drift[framework] = max(drift[framework], distance)
                pushed += block
                report(min(pushed // model.sample_rate, SECONDS[-1]))
            for framework in TWINS:
                found[framework]["memory_mib"][str(seconds)] = memory[framework]
                found[framework]["drift"][str(seconds)] = drift[framework]
    return found


@contextlib.contextmanager
def _player(framework: str, *, double: bool) -> Iterator[Connection]:
    """A process that runs :func:`play`, and is killed at the end."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=play, args=(there, framework, double), daemon=True)
    process.start()
    there.close()  # so that the end of the process ends the connection
    try:
        yield here
    finally:
        process.kill()
        process.join()


def play(connection: Connection, framework: str, double: bool) -> None:
    """Send (samples of the stems, peak resident MiB) for block after block, in float64 if ``double``, until killed."""
    network = twin(framework).load(PRESET)
    stream = network.stream()
    if double:
        stream = Stream(twin(framework, "devices").stream_on_numpy(network.double()), network.config.model)
    noise = _noise()
    with threadpool_limits(1), contextlib.suppress(BrokenPipeError):
        while True:
            connection.send((stream.push(noise), float(provenance.peak_memory_mib())))


def _receive(connection: Connection) -> tuple[np.ndarray, float]:
    try:
        return connection.recv()
    except EOFError as error:
        raise TwinsepError("a process that played the stream ended, see above") from error


if __name__ == "__main__":
    main(*sys.argv[1:])
