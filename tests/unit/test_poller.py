"""A poller looks soon after a mark, folds bursts, keeps to its share, and survives what goes wrong."""

from __future__ import annotations

import threading
import time

import pytest

from core.watch.poller import Poller
from tests.support.waiting import PATIENCE, eventually


@pytest.fixture
def looks() -> list[float]:
    return []


def test_a_burst_of_marks_is_one_look(looks: list[float]) -> None:
    poller = Poller("x", lambda: looks.append(time.monotonic()), lambda *_: None, debounce=0.5)
    for _ in range(50):
        poller.mark()
    poller.start()
    assert eventually(lambda: len(looks) >= 1)
    poller.mark()
    assert eventually(lambda: len(looks) >= 2)
    poller.stop()
    poller.join()
    assert len(looks) == 2


def test_a_mark_made_while_looking_is_not_lost(looks: list[float]) -> None:
    looking, go_on = threading.Event(), threading.Event()

    def look() -> None:
        looks.append(time.monotonic())
        looking.set()
        go_on.wait(PATIENCE)

    poller = Poller("x", look, lambda *_: None, debounce=0.0)
    poller.start()
    poller.mark()
    assert looking.wait(PATIENCE)
    poller.mark()
    go_on.set()
    assert eventually(lambda: len(looks) == 2)
    poller.stop()


def test_without_interval_only_marks_count_and_an_interval_can_come_later(looks: list[float]) -> None:
    poller = Poller("x", lambda: looks.append(time.monotonic()), lambda *_: None, debounce=0.0)
    poller.start()
    assert not eventually(lambda: looks, seconds=0.2)
    poller.set_every(0.02)
    assert eventually(lambda: len(looks) >= 3)
    poller.stop()


def test_a_failing_look_is_reported_and_the_next_one_happens(looks: list[float]) -> None:
    failures: list[tuple[str, str]] = []

    def look() -> None:
        looks.append(1.0)
        if len(looks) == 1:
            raise ValueError("garbage")

    poller = Poller("nat", look, lambda part, error: failures.append((part, str(error))), debounce=0.0)
    poller.start()
    poller.mark()
    assert eventually(lambda: failures == [("nat", "garbage")])
    poller.mark()
    assert eventually(lambda: len(looks) == 2)
    poller.stop()


def test_looking_keeps_to_its_share_of_a_core(looks: list[float]) -> None:
    def look() -> None:
        looks.append(1.0)
        end = time.thread_time() + 0.03
        while time.thread_time() < end:
            pass

    poller = Poller("x", look, lambda *_: None, every=0.001, debounce=0.0, share=0.1)
    began = time.monotonic()
    poller.start()
    assert eventually(lambda: len(looks) >= 4)
    poller.stop()
    elapsed = time.monotonic() - began
    assert len(looks) <= elapsed / 0.3 + 1  # 30 ms at a tenth of a core: one look in 300 ms
