"""Commands run side by side, each on a core of its own.

Two trainings with one thread each take twice the steps of one training with two threads, so the runs of a group share
the machine instead of taking turns.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from twinsep.errors import INTERRUPTED, Interrupted, TwinsepError

#: Variables by which libraries learn their number of threads.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def run_modules(commands: Mapping[str, Sequence[str]], *, device: str = "cpu") -> None:
    """Run ``python -m`` with each command; what it prints appears on the standard error, line by line, after its label.

    On a CPU each command has one core and one thread, as many at a time as there are cores; on another device they take
    turns. Raises :class:`TwinsepError`, once all have ended, if one failed, and :class:`Interrupted` on Ctrl-C.
    """
    environment = os.environ | (dict.fromkeys(_THREADS, "1") if device == "cpu" else {})
    cores: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in available_cores():
        cores.put(core)
    lock = threading.Lock()

    def take_core() -> None:
        # On Linux the affinity is that of the calling thread, and the processes that it starts inherit it.
        if device == "cpu" and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {cores.get()})

    def run(label: str) -> int:
        command = [sys.executable, "-m", *commands[label]]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                with lock:
                    print(f"{label}: {line.rstrip()}", file=sys.stderr, flush=True)
        return process.returncode

    workers = cores.qsize() if device == "cpu" else 1
    with ThreadPoolExecutor(workers, initializer=take_core) as pool:
        codes = dict(zip(commands, pool.map(run, commands), strict=True))
    if INTERRUPTED in codes.values():
        raise Interrupted("interrupted; the same command resumes the unfinished runs")
    failed = [label for label, code in codes.items() if code]
    if failed:
        raise TwinsepError(f"{', '.join(failed)} failed, as said above; the same command resumes the unfinished runs")


def available_cores() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
