"""Parallel execution of kernels that release the GIL.

Numba's threading layers are not used: one must not be entered from two threads at once, another crashes in a forked
child. Here any number of threads may call at once, a forked child makes its own pool, and idle threads sleep.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from typing import Any

from threadpoolctl import ThreadpoolController

PIECES = 4  # pieces of work per thread, so that a delayed thread does not delay the others


@lru_cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="twinsep-kernel")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # the child inherits the pool without its threads


def in_parallel(kernel: Callable[..., None], tasks: int, threads: int, *arguments) -> None:
    """Call kernel(*arguments, start, stop) on pieces of range(tasks), on `threads` threads including the caller's."""
    threads = min(threads, tasks)
    if threads < 2:
        kernel(*arguments, 0, tasks)
        return
    pieces = min(tasks, PIECES * threads)
    ranges = iter([(i * tasks // pieces, (i + 1) * tasks // pieces) for i in range(pieces)])

    def work() -> None:
        for start, stop in ranges:  # the iterator is shared, so that each piece goes to one thread
            kernel(*arguments, start, stop)

    helpers = [_pool(threads - 1).submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        helper.result()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let NumPy's matrix products use one thread.

    The products of a narrow layer are over before OpenBLAS has woken its threads: with two of them a training step of
    ``tiny`` takes twice as long.
    """
    before = [library.num_threads for library in _blas()]
    for library in _blas():
        library.set_num_threads(1)
    try:
        yield
    finally:
        for library, threads in zip(_blas(), before, strict=True):
            library.set_num_threads(threads)


@cache
def _blas() -> list[Any]:
    return [found for found in ThreadpoolController().lib_controllers if found.internal_api == "openblas"]


def cores() -> int:
    """Return the number of cores that this process may run on."""
    with contextlib.suppress(AttributeError):  # only Linux can bind processes to cores
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
