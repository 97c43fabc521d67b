"""Reading ahead and writing behind: what waits for a disk or a codec, in a thread beside what computes."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


@contextlib.contextmanager
def prefetch(items: Iterable[T], most: int = 2) -> Iterator[Iterator[T]]:
    """The items in their order, made by a thread that is at most so many ahead.

    What making them raises is raised where the item was to come. On leaving, whatever the reason, the thread has ended,
    and what it waited in is closed.
    """
    ready: queue.Queue[Any] = queue.Queue(most)
    left = threading.Event()
    failed: list[BaseException] = []

    def make() -> None:
        try:
            for item in items:
                if not _put(ready, item, left):
                    return
        except BaseException as error:  # whatever it is, whoever waits has to know
            failed.append(error)
        _put(ready, _END, left)

    def come() -> Iterator[T]:
        while (item := ready.get()) is not _END:
            yield item
        if failed:
            raise failed[0]

    thread = threading.Thread(target=make, name="twinsep-ahead", daemon=True)
    thread.start()
    try:
        yield come()
    finally:
        left.set()
        thread.join()


@contextlib.contextmanager
def write_behind(take: Callable[[T], None], most: int = 2) -> Iterator[Callable[[T], None]]:
    """``take`` in a thread, which is at most so many items behind: a function that hands one over and goes on.

    What taking one raises is raised at the next, or on leaving; nothing is taken after it. On leaving all have been
    taken, unless for an exception: then those not begun are dropped.
    """
    given: queue.Queue[Any] = queue.Queue(most)
    stopped = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        while not stopped.is_set():
            try:
                item = given.get(timeout=_PATIENCE)
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
        if not _put(given, item, stopped):
            raise failed[0]

    thread = threading.Thread(target=work, name="twinsep-behind", daemon=True)
    thread.start()
    try:
        yield hand_over
        _put(given, _END, stopped)
    except BaseException:
        stopped.set()
        raise
    finally:
        thread.join()
    if failed:
        raise failed[0]


#: Seconds after which a thread that waits looks whether it still should.
_PATIENCE = 0.05


def _put(items: queue.Queue[Any], item: Any, left: threading.Event) -> bool:
    """Whether the item found a place before ``left`` was set."""
    while not left.is_set():
        with contextlib.suppress(queue.Full):
            items.put(item, timeout=_PATIENCE)
            return True
    return False
