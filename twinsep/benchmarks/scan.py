"""``twinsep bench scan``: time and memory of every implementation of the selective scan.

Times are compared with the time of the exponentials that the scan must compute, and with other packages.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import statistics
from collections.abc import Callable, Mapping

from twinsep.benchmarks.process import MIB, WorkerProcess
from twinsep.benchmarks.records import BenchmarkOptions, Record, Row, requirement, requirement_rows
from twinsep.utils.backend import TWINS
from twinsep.utils.progress import ProgressCallback

#: Shapes (b, l, e, n): a tiny model over time and over bands, and two shapes of the reference's size.
TINY, TINY_BANDS, SMALL, LARGE = (72, 259, 32, 8), (259, 72, 32, 8), (68, 258, 128, 16), (68, 517, 512, 32)
SHAPES = (TINY, TINY_BANDS, SMALL, LARGE)
#: Implementations in JAX beside the definition: the kernel, and two from JAX's own operations. PyTorch has its kernel,
#: the definition's loop over frames, and those of other packages.
WAYS = ("default", "sequential", "associative")
#: Largest size in bytes of all states (b, l, e, n) in float32 at which implementations that store them are measured.
KEPT = 1 << 30
#: Counted calls of each implementation.
REPETITIONS = 5
#: Seconds of uncounted calls before each counted one: other measurements evict its memory from the caches, and threads
#: stay awake for a while after the machine's rates were measured.
WARM_UP = 0.1
#: Name → shape (b, l, e, n) at which the memory of forward and backward is measured.
MEMORY = {"as it is": (68, 690, 512, 32), "twice N": (68, 690, 512, 64), "half the length": (68, 345, 512, 32)}

Key = tuple[str, str, bool]  # framework, way, with gradients


def measure(_options: BenchmarkOptions, report: ProgressCallback) -> Record:
    """Measure median times in seconds of interleaved calls, and the peak memory in MiB of forward and backward.

    A first call compiles, and uncounted calls precede each counted one. Peak memory excludes the inputs.
    """
    counter = itertools.count(1)
    steps = len(SHAPES) * (1 + REPETITIONS) + len(MEMORY) * len(TWINS)

    def advance() -> None:
        report(next(counter), steps)

    times: list[Record] = []
    with contextlib.ExitStack() as stack:
        workers = {framework: stack.enter_context(WorkerProcess(framework)) for framework in TWINS}
        peers = workers["torch"].ask("scans")
        for shape in SHAPES:
            times += _times(workers, shape, peers, advance)
    memory = _memory(advance)
    return {
        "axes": "b, l, e, n",
        "repetitions": REPETITIONS,
        "peers": peers,
        "left_out": f"ways that keep all states, where these take more than {KEPT >> 30} GiB",
        "times": times,
        "memory": memory,
        "figures": requirements(times, memory),
    }


def _times(
    workers: Mapping[str, WorkerProcess], shape: tuple[int, ...], peers: list[str], advance: Callable[[], None]
) -> list[Record]:
    """Times of every implementation at one shape, in turns."""
    first: dict[Key, float] = {}
    for key in measured_keys(shape, peers):
        framework, way, backward = key
        arguments = {"kind": "scan", "shape": shape, "way": way, "backward": backward}
        first[key] = workers[framework].ask("prepare", name=key_name(key), **arguments)
    found: dict[Key, list[float]] = {key: [] for key in first}
    exponentials: list[float] = []
    advance()
    for _ in range(REPETITIONS):
        exponentials.append(math.prod(shape) / workers["torch"].ask("rates")["exponentials_per_s"])
        for key in found:
            worker, name = workers[key[0]], key_name(key)
            warm_up = worker.ask("call", name=name)
            while warm_up < WARM_UP:
                warm_up += worker.ask("call", name=name)
            found[key].append(worker.ask("call", name=name))
        advance()
    unit = statistics.median(exponentials)
    for worker in workers.values():
        worker.ask("forget")
    return [
        {
            "shape": shape,
            "framework": key[0],
            "way": key[1],
            "backward": key[2],
            "first_call_s": first[key],
            "median_s": round(statistics.median(seconds), 6),
            "times_s": seconds,
            "exponentials_s": round(unit, 6),
            "times_the_exponentials": round(statistics.median(seconds) / unit, 3),
        }
        for key, seconds in found.items()
    ]


def _memory(advance: Callable[[], None]) -> list[Record]:
    """Peak memory of forward and backward, each in a process of its own."""
    memory: list[Record] = []
    for what, shape in MEMORY.items():
        for framework in TWINS:
            with WorkerProcess(framework) as worker:
                worker.ask("prepare", name="scan", kind="scan", shape=shape, way="default", backward=True)
                peak = worker.ask("peak_of", name="scan")
            memory.append({"framework": framework, "what": what, "shape": shape, "peak_mib": peak})
            advance()
    return memory


def measured_keys(shape: tuple[int, ...], peers: list[str]) -> list[Key]:
    """Return the implementations that are timed at a shape.

    JAX's gradients of the definition are excluded, because they store all states several times.
    """
    small = 4 * math.prod(shape) <= KEPT
    keys = [("torch", "default", False), ("torch", "default", True), ("torch", "definition", False)]
    keys += [("torch", "definition", True)] * small
    keys += [("torch", peer, backward) for peer in peers for backward in (False, True) if small]
    keys += [("jax", way, backward) for way in WAYS for backward in (False, True)]
    return [*keys, ("jax", "definition", False)]


def key_name(key: Key) -> str:
    """Return the name of an implementation within its worker."""
    return f"{key[1]}, {'forward and backward' if key[2] else 'forward'}"


def requirements(times: list[Record], memory: list[Record]) -> list[Record]:
    """Compare the measurements with the bounds that the scan must meet."""
    found = {(tuple(t["shape"]), t["framework"], t["way"], t["backward"]): t for t in times}
    bars = {("torch", False): 2.0, ("jax", False): 4.5, ("torch", True): 7.0, ("jax", True): 15.0}
    result = [
        requirement(
            framework,
            f"scan forward{' and backward' * backward} at {LARGE}, of the time of its exponentials",
            found[LARGE, framework, "default", backward]["times_the_exponentials"],
            bar,
        )
        for (framework, backward), bar in bars.items()
    ]
    ours = found[SMALL, "torch", "default", False]["median_s"]
    for way, name, bar in (("definition", "the loop of tensor operations", 4.0), ("mambapy", "mambapy's pscan", 30.0)):
        if (SMALL, "torch", way, False) in found:
            ratio = found[SMALL, "torch", way, False]["median_s"] / ours
            result.append(
                requirement("torch", f"time of {name} ÷ the scan's, forward at {SMALL}", ratio, bar, at_least=True)
            )
    for m in memory:
        if m["what"] == "as it is":
            what = f"MB that forward and backward at {tuple(m['shape'])} take beside their inputs"
            result.append(requirement(m["framework"], what, m["peak_mib"] * MIB / 1e6, 700.0))
    return result


def rows(record: Record) -> list[Row]:
    """Format the record as table rows."""
    table: list[Row] = [
        (
            f"{tuple(t['shape'])}, {key_name((t['framework'], t['way'], t['backward']))} (s)",
            {t["framework"]: t["median_s"]},
        )
        for t in record["times"]
    ]
    for what in MEMORY:
        peaks = {m["framework"]: m["peak_mib"] for m in record["memory"] if m["what"] == what}
        table.append((f"forward and backward, {what} (MiB)", peaks))
    return table + requirement_rows(record)
