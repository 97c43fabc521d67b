"""Runs independent jobs on all cores with a progress bar, and stops cleanly."""

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
    """``work(job)`` for every job, in ``workers`` processes (1: in this one); the first failure is raised.

    After a failure or Ctrl-C the jobs under way are finished and no more are started.
    """
    if not jobs:
        return
    with progress_bar("songs", disable=not progress) as report:
        for done, _ in enumerate(_finished(work, jobs, min(workers, len(jobs))), 1):
            report(done, len(jobs))


def _finished(work: Callable[[T], None], jobs: Sequence[T], workers: int) -> Iterator[None]:
    """Yields once for each finished job."""
    if workers <= 1:
        for job in jobs:
            work(job)
            yield
        return
    # Spawned, as a fork would copy the locks of threads that it does not copy.
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
    """In a worker: the parent answers Ctrl-C, and when the parent is gone, so is the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent,), daemon=True).start()


def _follow(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
