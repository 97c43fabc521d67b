"""``twinsep bench processes``: a training shared by two processes, and songs on a Ray cluster, against one process.

A process of one thread trains with batches of two segments. Two such processes train

- together, with batches of two each, as more processes see more songs in the same time;
- sharing a batch of two, a segment each, as more processes take the same steps sooner;
- alone, exchanging nothing: the most that this machine allows two processes.

Songs are separated by ``twinsep separate``, with the cores of this machine either in one process or as a cluster.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from twinsep import audio
from twinsep.benchmarks.process import WorkerProcess
from twinsep.benchmarks.records import BenchmarkOptions, Record, Row, requirement, requirement_rows
from twinsep.benchmarks.step import ONE_THREAD
from twinsep.benchmarks.workloads import noise
from twinsep.config import Config
from twinsep.errors import TwinsepError
from twinsep.utils.progress import ProgressCallback

#: Processes, and segments of a batch.
PROCESSES = BATCH = 2
#: Rounds for each repetition of other benchmarks: the ratio of two steps on two cores varies by some percent.
ROUNDS = 4
#: Environment of a process of one thread that may run on any core, as torchrun makes it.
ONE_THREAD_EACH = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
#: Least ratio of the steps a second of both processes to those of one, whether they share a batch or have one each.
SPEEDUP_BAR = 1.7
#: Songs of a batch, and their length in seconds.
SONGS, SECONDS = 20, 60.0
#: Largest ratio of the time of a batch on the cluster to that in one process.
CLUSTER_BAR = 1.05
EXECUTORS = ("local", "ray")


def measure(options: BenchmarkOptions, report: ProgressCallback) -> Record:
    """Measure seconds of a step in turns, and of a batch of songs once for each executor.

    Without Ray no songs are separated, and the record names what is not installed.
    """
    missing = [] if importlib.util.find_spec("ray") else ["ray"]
    executors = () if missing else EXECUTORS
    rounds = 1 + options.warmups + ROUNDS * options.repetitions
    done, total = itertools.count(1), rounds + len(executors)
    steps = _steps(ONE_THREAD, options, lambda: report(next(done), total))
    batches = _batches(executors, lambda: report(next(done), total))
    ratios = {
        f"steps a second of {PROCESSES} processes ÷ those of one": steps["one_s"] / steps["shared_s"],
        f"batches of {BATCH} a second of {PROCESSES} processes ÷ those of one": (
            PROCESSES * steps["one_s"] / steps["together_s"]
        ),
    }
    figures = [requirement("torch", title, ratio, SPEEDUP_BAR, at_least=True) for title, ratio in ratios.items()]
    if executors:
        ratio = batches["ray"] / batches["local"]
        figures.append(requirement("torch", f"time of {SONGS} songs on a Ray cluster ÷ locally", ratio, CLUSTER_BAR))
    return {
        "configuration": ONE_THREAD.to_dict(),
        "batch": BATCH,
        "processes": PROCESSES,
        "steps": steps,
        "songs": {"count": SONGS, "seconds": SECONDS, "batch_s": batches},
        "not_installed": missing,
        "figures": figures,
    }


def _steps(config: Config, options: BenchmarkOptions, report: Callable[[], None]) -> Record:
    """Median seconds of a step of one process, and of all together, sharing a batch, and alone.

    Where all take part, a step has taken place once the last of them is done.
    """
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(PROCESSES) as pool:
        teams = {"one": [stack.enter_context(WorkerProcess("torch", variables=ONE_THREAD_EACH))]}
        teams |= {name: [stack.enter_context(worker) for worker in _group()] for name in ("together", "shared")}
        teams["alone"] = [
            stack.enter_context(WorkerProcess("torch", variables=ONE_THREAD_EACH)) for _ in range(PROCESSES)
        ]
        for name, workers in teams.items():
            own = BATCH // PROCESSES if name == "shared" else BATCH
            whole = {"together": BATCH * PROCESSES}.get(name, BATCH)
            sized = config.override({"training": {"batch_size": whole}}).to_dict()
            # All at once, because those of a group wait for each other.
            list(pool.map(lambda worker, c=sized, n=own: worker.ask("open", config=c, batch=n), workers))
        times: dict[str, list[float]] = {name: [] for name in teams}
        for _ in range(1 + options.warmups + ROUNDS * options.repetitions):
            for name, workers in teams.items():
                times[name].append(max(pool.map(lambda worker: worker.ask("step"), workers)))
            report()
    counted = {name: each[-ROUNDS * options.repetitions :] for name, each in times.items()}
    return {f"{name}_s": round(statistics.median(each), 6) for name, each in counted.items()} | {"times_s": counted}


def _group() -> list[WorkerProcess]:
    """Processes that average their gradients."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {**ONE_THREAD_EACH, "WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    numbered = [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(PROCESSES)]
    return [WorkerProcess("torch", variables=each) for each in numbered]


def _batches(executors: tuple[str, ...], report: Callable[[], None]) -> dict[str, float]:
    """Seconds of a batch of songs by executor, the start of the program and of the cluster included."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        songs = Path(folder) / "songs"
        songs.mkdir()
        for number in range(SONGS if executors else 0):
            song = noise(2, round(SECONDS * 44_100), seed=number)
            audio.write(songs / f"{number}.wav", song, 44_100, subtype="PCM_16")
        for executor in executors:
            started = time.perf_counter()
            command = [sys.executable, "-m", "twinsep.cli", "separate", str(songs), "--device", "cpu"]
            command += ["--executor", executor, "--out", f"{folder}/{executor}"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise TwinsepError(f"separating songs with --executor {executor} failed: {done.stderr.strip()[-300:]}")
            found[executor] = round(time.perf_counter() - started, 3)
            report()
    return found


def rows(record: Record) -> list[Row]:
    """Format the record as table rows."""
    steps, count, batch = record["steps"], record["processes"], record["batch"]
    table: list[Row] = [
        (f"step of one process, batch of {batch} (s)", {"torch": steps["one_s"]}),
        (f"step of {count} processes, batches of {batch} each (s)", {"torch": steps["together_s"]}),
        (f"step of {count} processes that share a batch of {batch} (s)", {"torch": steps["shared_s"]}),
        (f"step of {count} processes that exchange nothing (s)", {"torch": steps["alone_s"]}),
    ]
    songs = record["songs"]
    for executor, seconds in songs["batch_s"].items():
        table.append((f"{songs['count']} songs, {executor} (s)", {"torch": seconds}))
    return table + requirement_rows(record)
