"""A poller polls soon after a mark, merges bursts and survives errors.

It keeps to its share of a core.
"""

from __future__ import annotations

import threading
import time

import pytest

from core.watch.poller import Poller
from tests.support.waiting import PATIENCE, eventually


@pytest.fixture
def polls() -> list[float]:
    return []


def test_a_burst_of_marks_is_one_poll(polls: list[float]) -> None:
    poller = Poller("x", lambda: polls.append(time.monotonic()), lambda *_: None, debounce=0.5)
    for _ in range(50):
        poller.mark()
    poller.start()
    assert eventually(lambda: len(polls) >= 1)
    poller.mark()
    assert eventually(lambda: len(polls) >= 2)
    poller.stop()
    poller.join()
    assert len(polls) == 2


def test_a_mark_made_while_polling_is_not_lost(polls: list[float]) -> None:
    looking, go_on = threading.Event(), threading.Event()

    def poll() -> None:
        polls.append(time.monotonic())
        looking.set()
        go_on.wait(PATIENCE)

    poller = Poller("x", poll, lambda *_: None, debounce=0.0)
    poller.start()
    poller.mark()
    assert looking.wait(PATIENCE)
    poller.mark()
    go_on.set()
    assert eventually(lambda: len(polls) == 2)
    poller.stop()


def test_without_an_interval_only_marks_cause_polls(polls: list[float]) -> None:
    poller = Poller("x", lambda: polls.append(time.monotonic()), lambda *_: None, debounce=0.0)
    poller.start()
    assert not eventually(lambda: polls, seconds=0.2)
    poller.set_every(0.02)
    assert eventually(lambda: len(polls) >= 3)
    poller.stop()


def test_a_failing_poll_is_reported_and_the_next_one_happens(polls: list[float]) -> None:
    failures: list[tuple[str, str]] = []

    def poll() -> None:
        polls.append(1.0)
        if len(polls) == 1:
            raise ValueError("garbage")

    poller = Poller("nat", poll, lambda part, error: failures.append((part, str(error))), debounce=0.0)
    poller.start()
    poller.mark()
    assert eventually(lambda: failures == [("nat", "garbage")])
    poller.mark()
    assert eventually(lambda: len(polls) == 2)
    poller.stop()


def test_polling_keeps_to_its_share_of_a_core(polls: list[float]) -> None:
    def poll() -> None:
        polls.append(1.0)
        end = time.thread_time() + 0.03
        while time.thread_time() < end:
            pass

    poller = Poller("x", poll, lambda *_: None, every=0.001, debounce=0.0, share=0.1)
    began = time.monotonic()
    poller.start()
    assert eventually(lambda: len(polls) >= 4)
    poller.stop()
    elapsed = time.monotonic() - began
    assert len(polls) <= elapsed / 0.3 + 1  # 30 ms at a tenth of a core: one poll in 300 ms
