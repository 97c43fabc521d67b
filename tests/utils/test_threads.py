"""Threads that read ahead and write behind: order, bounds, errors, and none left over."""

import threading
import time

import pytest

from twinsep.utils.threads import prefetch, write_behind


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name in ("twinsep-ahead", "twinsep-behind")]


def test_items_keep_their_order_and_come_from_another_thread():
    makers = set()

    def items():
        for number in range(100):
            makers.add(threading.current_thread().name)
            yield number

    with prefetch(items()) as stream:
        assert list(stream) == list(range(100))
    assert makers == {"twinsep-ahead"}


def test_prefetch_is_no_further_ahead_than_asked_for():
    made = []
    with prefetch((made.append(n) or n for n in range(100)), most=3) as stream:
        assert next(stream) == 0
        time.sleep(0.3)
        assert len(made) <= 1 + 3 + 1  # taken, waiting, and in hand
    assert len(made) <= 6


def test_an_exception_of_the_items_is_raised_in_its_place():
    def items():
        yield 1
        raise ValueError("at the second")

    with prefetch(items()) as stream:
        assert next(stream) == 1
        with pytest.raises(ValueError, match="at the second"):
            next(stream)


def test_an_exception_of_the_consumer_ends_the_thread():
    def run():
        with prefetch(iter(range(10**9))) as stream:
            next(stream)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()


def test_all_items_are_taken_in_order_by_another_thread():
    taken = []
    with write_behind(lambda item: taken.append((item, threading.current_thread().name))) as hand_over:
        for number in range(100):
            hand_over(number)
    assert taken == [(number, "twinsep-behind") for number in range(100)]


def test_write_behind_holds_no_more_items_than_asked_for():
    go, handed = threading.Event(), []

    def give(hand_over):
        for number in range(10):
            hand_over(number)
            handed.append(number)

    with write_behind(lambda _: go.wait(), most=2) as hand_over:
        giver = threading.Thread(target=give, args=(hand_over,))
        giver.start()
        time.sleep(0.3)
        assert len(handed) <= 3  # in hand, and two that wait
        go.set()
        giver.join()
    assert handed == list(range(10))


@pytest.mark.parametrize("after", [0, 5])
def test_an_exception_of_take_is_raised_and_no_item_is_taken_after_it(after):
    taken = []

    def take(item):
        if item == 2:
            raise OSError("no space")
        taken.append(item)

    def run():
        with write_behind(take) as hand_over:
            for number in range(3 + after):
                hand_over(number)

    with pytest.raises(OSError, match="no space"):
        run()
    assert taken == [0, 1]


def test_an_exception_of_the_producer_drops_the_items_that_wait():
    taken = []

    def slow(item):
        taken.append(item)
        time.sleep(0.2)

    def run():
        with write_behind(slow, most=5) as hand_over:
            for number in range(5):
                hand_over(number)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert len(taken) < 5
