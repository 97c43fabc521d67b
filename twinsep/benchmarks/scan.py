"""``twinsep bench scan``: the selective scan in every way there is, in time beside the exponentials it has to compute
and beside other packages, and in memory."""

from __future__ import annotations

import contextlib
import math
import statistics

from twinsep.benchmarks.process import MIB, WorkerProcess
from twinsep.benchmarks.records import BenchmarkOptions, Record, Row, requirement, requirement_rows
from twinsep.utils.backend import TWINS
from twinsep.utils.progress import ProgressCallback

#: (b, l, e, n): a tiny model over time and over bands, and two of the reference's kind.
TINY, TINY_BANDS, SMALL, LARGE = (72, 259, 32, 8), (259, 72, 32, 8), (68, 258, 128, 16), (68, 517, 512, 32)
SHAPES = (TINY, TINY_BANDS, SMALL, LARGE)
#: Ways in JAX beside the definition: the kernel, and by its own operations. PyTorch's are its kernel, the definition's
#: loop over frames, and other packages'.
WAYS = ("default", "sequential", "associative")
#: Bytes of all states (b, l, e, n) in float32 up to which ways are tried that keep them, several times over.
KEPT = 1 << 30
REPETITIONS = 5
#: Seconds of calls of the same before each that counts: after what else was measured its memory is in no cache, and the
#: machine's rates leave threads awake for a while.
WARM_UP = 0.1
#: At which the memory of forward and backward is measured, and with what of it doubled.
MEMORY = {"as it is": (68, 690, 512, 32), "twice N": (68, 690, 512, 64), "half the length": (68, 345, 512, 32)}

Key = tuple[str, str, bool]  # framework, way, with gradients


def measure(_options: BenchmarkOptions, report: ProgressCallback) -> Record:
    """Medians of interleaved calls, in seconds, after one that compiles, each warmed up.

    The share of other work on the machine is that of all. Peak memory of forward and backward is in MiB above what was
    there before, inputs being there.
    """
    steps = len(SHAPES) * (1 + REPETITIONS) + len(MEMORY) * len(TWINS)
    done, times = 0, []
    with contextlib.ExitStack() as stack:
        workers = {framework: stack.enter_context(WorkerProcess(framework)) for framework in TWINS}
        peers = workers["torch"].ask("scans")
        for shape in SHAPES:
            keys = asked(shape, peers)
            first = {
                key: workers[key[0]].ask(
                    "prepare", name=named(key), kind="scan", shape=shape, way=key[1], backward=key[2]
                )
                for key in keys
            }
            found: dict[Key, list[float]] = {key: [] for key in keys}
            exponentials: list[float] = []
            report(done := done + 1, steps)
            for _ in range(REPETITIONS):
                exponentials.append(math.prod(shape) / workers["torch"].ask("rates")["exponentials_per_s"])
                for key in keys:
                    worker, name = workers[key[0]], named(key)
                    before = worker.ask("call", name=name)
                    while before < WARM_UP:
                        before += worker.ask("call", name=name)
                    found[key].append(worker.ask("call", name=name))
                report(done := done + 1, steps)
            unit = statistics.median(exponentials)
            for worker in workers.values():
                worker.ask("forget")
            times += [
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
    memory: list[Record] = []
    for what, shape in MEMORY.items():
        for framework in TWINS:
            with WorkerProcess(framework) as worker:  # a new one, whose memory is its own
                worker.ask("prepare", name="scan", kind="scan", shape=shape, way="default", backward=True)
                memory.append(
                    {
                        "framework": framework,
                        "what": what,
                        "shape": shape,
                        "peak_mib": worker.ask("peak_of", name="scan"),
                    }
                )
            report(done := done + 1, steps)
    return {
        "axes": "b, l, e, n",
        "repetitions": REPETITIONS,
        "peers": peers,
        "left_out": f"ways that keep all states, where these take more than {KEPT >> 30} GiB",
        "times": times,
        "memory": memory,
        "figures": figures(times, memory),
    }


def asked(shape: tuple[int, ...], peers: list[str]) -> list[Key]:
    """What is timed at a shape. The definition's gradients in JAX keep every state several times over."""
    small = 4 * math.prod(shape) <= KEPT
    keys = [("torch", "default", False), ("torch", "default", True), ("torch", "definition", False)]
    keys += [("torch", "definition", True)] * small
    keys += [("torch", peer, backward) for peer in peers for backward in (False, True) if small]
    keys += [("jax", way, backward) for way in WAYS for backward in (False, True)]
    return [*keys, ("jax", "definition", False)]


def named(key: Key) -> str:
    """For a worker."""
    return f"{key[1]}, {'forward and backward' if key[2] else 'forward'}"


def figures(times: list[Record], memory: list[Record]) -> list[Record]:
    """What the scan has to reach."""
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
    """The record as rows of a table."""
    table: list[Row] = [
        (
            f"{tuple(t['shape'])}, {named((t['framework'], t['way'], t['backward']))} (s)",
            {t["framework"]: t["median_s"]},
        )
        for t in record["times"]
    ]
    for what in MEMORY:
        peaks = {m["framework"]: m["peak_mib"] for m in record["memory"] if m["what"] == what}
        table.append((f"forward and backward, {what} (MiB)", peaks))
    return table + requirement_rows(record)
