"""Reading ahead and writing behind: a disk or a codec works in a thread beside the computation."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()
# Seconds after which a waiting thread checks whether it should stop.
_POLL = 0.05


@contextlib.contextmanager
def prefetch(items: Iterable[T], most: int = 2) -> Iterator[Iterator[T]]:
    """Iterate over ``items`` in a thread that is at most ``most`` items ahead; yields them in their order.

    An exception of ``items`` is raised in place of the item. On exit the thread has ended.
    """
    ready: queue.Queue[Any] = queue.Queue(most)
    stopped = threading.Event()
    failed: list[BaseException] = []

    def produce() -> None:
        try:
            for item in items:
                if not _put(ready, item, stopped):
                    return
        except BaseException as error:  # the consumer must learn of any
            failed.append(error)
        _put(ready, _END, stopped)

    def consume() -> Iterator[T]:
        while (item := ready.get()) is not _END:
            yield item
        if failed:
            raise failed[0]

    thread = threading.Thread(target=produce, name="twinsep-ahead", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stopped.set()
        thread.join()


@contextlib.contextmanager
def write_behind(take: Callable[[T], None], most: int = 2) -> Iterator[Callable[[T], None]]:
    """Call ``take`` in a thread: yields a function that hands over an item, waiting if ``most`` items wait already.

    An exception of ``take`` is raised at the next item or on exit, and no item is taken after it. On exit all items
    have been taken; after an exception inside the ``with``, those still waiting are dropped.
    """
    waiting: queue.Queue[Any] = queue.Queue(most)
    stopped = threading.Event()
    failed: list[BaseException] = []

    def consume() -> None:
        while not stopped.is_set():
            try:
                item = waiting.get(timeout=_POLL)
            except queue.Empty:
                continue
            if item is _END:
                return
            try:
                take(item)
            except BaseException as error:
                failed.append(error)
                stopped.set()

    def hand_over(item: T) -> None:
        if not _put(waiting, item, stopped):
            raise failed[0]

    thread = threading.Thread(target=consume, name="twinsep-behind", daemon=True)
    thread.start()
    try:
        yield hand_over
        _put(waiting, _END, stopped)
    except BaseException:
        stopped.set()
        raise
    finally:
        thread.join()
    if failed:
        raise failed[0]


def _put(items: queue.Queue[Any], item: Any, stopped: threading.Event) -> bool:
    """Put ``item`` into the queue; return False if ``stopped`` is set before there is room."""
    while not stopped.is_set():
        with contextlib.suppress(queue.Full):
            items.put(item, timeout=_POLL)
            return True
    return False
