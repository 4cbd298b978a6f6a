"""A computing thread delays the dashboard's event loop only briefly."""

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
_ATTEMPTS = 10
_DEFAULT_INTERVAL = 0.005  # seconds: Python's default


@pytest.fixture(autouse=True)
def restored_interval() -> Iterator[None]:
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
    """Return the seconds of system calls while another thread keeps the GIL.

    The median of five, because the kernel may not run the other thread during some of them.
    """
    sys.setswitchinterval(interval)
    found = []
    with busy_thread():
        for _ in range(5):
            began = time.monotonic()
            for _ in range(_CALLS):
                time.sleep(0)
            found.append(time.monotonic() - began)
    return statistics.median(found)


async def test_the_event_loop_resumes_quickly_after_system_calls() -> None:
    sys.setswitchinterval(_DEFAULT_INTERVAL)
    async with dashboard():
        interval = sys.getswitchinterval()
    assert interval < _DEFAULT_INTERVAL / 2
    # On a busy machine the kernel may not run the computing thread at all during a measurement.
    assert any(seconds_of_calls(interval) < seconds_of_calls(_DEFAULT_INTERVAL) / 2 for _ in range(_ATTEMPTS))
