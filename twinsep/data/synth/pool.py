"""Pool of worker processes for independent jobs, with a progress bar and a clean stop."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

from twinsep.utils.env import temporary_env
from twinsep.utils.progress import progress_bar

T = TypeVar("T")
_THREAD_COUNTS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def run_jobs(work: Callable[[T], None], jobs: Sequence[T], *, workers: int, progress: bool) -> None:
    """Call ``work(job)`` for every job, in ``workers`` processes or, for 1, in this process.

    Raises the first failure. After a failure or Ctrl-C no further jobs start, and the running ones finish.
    """
    if not jobs:
        return
    with progress_bar("songs", disable=not progress) as report:
        for done, _ in enumerate(_finished(work, jobs, min(workers, len(jobs))), 1):
            report(done, len(jobs))


def _finished(work: Callable[[T], None], jobs: Sequence[T], workers: int) -> Iterator[None]:
    """Yield once for each finished job."""
    if workers <= 1:
        for job in jobs:
            work(job)
            yield
        return
    # Spawned, because a fork copies the locks of threads but not the threads.
    context = multiprocessing.get_context("spawn")
    # One BLAS thread each: the processes already take every core.
    one_thread = temporary_env(dict.fromkeys(_THREAD_COUNTS, "1"))
    with one_thread, ProcessPoolExecutor(workers, context, _start) as pool:
        futures = [pool.submit(work, job) for job in jobs]
        try:
            for future in as_completed(futures):
                future.result()
                yield
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start() -> None:
    """Set up a worker: it ignores Ctrl-C, which the parent handles, and ends when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
