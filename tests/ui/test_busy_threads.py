"""A thread that computes keeps the dashboard's event loop waiting for little."""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.ui.driver import dashboard

_CALLS = 20  # system calls of a redraw
_PYTHONS = 0.005  # seconds: what Python sets


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


@contextmanager
def busy_thread() -> Iterator[None]:
    computing, ended = threading.Event(), threading.Event()

    def compute() -> None:
        computing.set()
        while not ended.is_set():
            sum(range(100))

    thread = threading.Thread(target=compute)
    thread.start()
    computing.wait()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def seconds_of_calls(interval: float) -> float:
    """Seconds that some calls take that let others run, beside a thread that does not: the median of five, of
    which some may find that the system does not run the thread just then."""
    sys.setswitchinterval(interval)
    found = []
    with busy_thread():
        for _ in range(5):
            began = time.monotonic()
            for _ in range(_CALLS):
                time.sleep(0)
            found.append(time.monotonic() - began)
    return statistics.median(found)


async def test_the_event_loop_is_back_soon_after_each_system_call() -> None:
    sys.setswitchinterval(_PYTHONS)
    async with dashboard():
        interval = sys.getswitchinterval()
    assert seconds_of_calls(interval) < seconds_of_calls(_PYTHONS) / 2
