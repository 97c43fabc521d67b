"""Compiled loops on several threads, for kernels that release the GIL.

Numba's own threading layers are kept clear of: one must not be entered twice at a time, another dies in a forked child.
Here any number of threads may call at once, a forked child makes its own pool, and idle threads sleep.
"""

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

PIECES = 4  # of work per thread, so that a thread that is held up does not hold up the others


@lru_cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="twinsep-kernel")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # the child has the pool but none of its threads


def in_parallel(kernel: Callable[..., None], tasks: int, threads: int, *arguments) -> None:
    """kernel(*arguments, start, stop) over pieces of 0 … tasks on `threads` threads, the calling one among them."""
    threads = min(threads, tasks)
    if threads < 2:
        kernel(*arguments, 0, tasks)
        return
    pieces = min(tasks, PIECES * threads)
    ranges = iter([(i * tasks // pieces, (i + 1) * tasks // pieces) for i in range(pieces)])

    def work() -> None:
        for start, stop in ranges:  # shared: each piece is handed to one thread
            kernel(*arguments, start, stop)

    helpers = [_pool(threads - 1).submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        helper.result()


def cores() -> int:
    """Cores that this process may run on."""
    with contextlib.suppress(AttributeError):  # Linux alone binds processes to cores
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
