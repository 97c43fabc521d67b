"""``twinsep bench processes``: a training shared by two processes, and songs on a Ray cluster, against one process.

A process of one thread trains with batches of two segments; two such processes train with the same batches, one segment
each. Songs are separated by ``twinsep separate``, with the cores of this machine either in one process or as a cluster.
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

#: Segments of a batch, and processes that share it.
PROCESSES = 2
#: Environment of a process of one thread that may run on any core, as torchrun makes it.
ONE_THREAD_EACH = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
#: Least ratio of the steps a second of both processes to those of one.
SPEEDUP_BAR = 1.7
#: Songs of a batch, and their length in seconds.
SONGS, SECONDS = 20, 60.0
#: Largest ratio of the time of a batch on the cluster to that in one process.
CLUSTER_BAR = 1.05
EXECUTORS = ("local", "ray")


def measure(options: BenchmarkOptions, report: ProgressCallback) -> Record:
    """Measure seconds of a step in turns, and of a batch of songs once for each executor; Ray only where installed."""
    executors = EXECUTORS if importlib.util.find_spec("ray") else ()
    rounds = 1 + options.warmups + options.repetitions
    done, total = itertools.count(1), rounds + len(executors)
    steps = _steps(ONE_THREAD, options, lambda: report(next(done), total))
    batches = _batches(executors, lambda: report(next(done), total))
    speedup = steps["one_s"] / steps["shared_s"]
    figures = [
        requirement(
            "torch", f"steps a second of {PROCESSES} processes ÷ those of one", speedup, SPEEDUP_BAR, at_least=True
        )
    ]
    if executors:
        ratio = batches["ray"] / batches["local"]
        figures.append(requirement("torch", f"time of {SONGS} songs on a Ray cluster ÷ locally", ratio, CLUSTER_BAR))
    return {
        "configuration": ONE_THREAD.to_dict(),
        "batch": PROCESSES,
        "steps": steps,
        "songs": {"count": SONGS, "seconds": SECONDS, "batch_s": batches},
        "figures": figures,
    }


def _steps(config: Config, options: BenchmarkOptions, report: Callable[[], None]) -> Record:
    """Median seconds of a step in one process, and in processes that share the batch."""
    shared_batch = config.override({"training": {"batch_size": PROCESSES}}).to_dict()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {**ONE_THREAD_EACH, "WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(PROCESSES) as pool:
        one = stack.enter_context(WorkerProcess("torch", variables=ONE_THREAD_EACH))
        numbered = [{**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(PROCESSES)]
        shared = [stack.enter_context(WorkerProcess("torch", variables=each)) for each in numbered]
        one.ask("open", config=shared_batch, batch=PROCESSES)
        # All at once, because each waits for the others.
        list(pool.map(lambda worker: worker.ask("open", config=shared_batch, batch=1), shared))
        times: dict[str, list[float]] = {"one": [], "shared": []}
        for _ in range(1 + options.warmups + options.repetitions):
            times["one"].append(one.ask("step"))
            times["shared"].append(max(pool.map(lambda worker: worker.ask("step"), shared)))
            report()
    counted = {name: each[-options.repetitions :] for name, each in times.items()}
    return {f"{name}_s": round(statistics.median(each), 6) for name, each in counted.items()} | {"times_s": counted}


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
    table: list[Row] = [
        ("step of one process (s)", {"torch": record["steps"]["one_s"]}),
        (f"step of {record['batch']} processes (s)", {"torch": record["steps"]["shared_s"]}),
    ]
    songs = record["songs"]
    for executor, seconds in songs["batch_s"].items():
        table.append((f"{songs['count']} songs, {executor} (s)", {"torch": seconds}))
    return table + requirement_rows(record)
