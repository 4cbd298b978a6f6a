"""A connection that conntrack is made to forget while the fast path carries it."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest

from tests.kernel.fastlab import V4, FastLab
from tests.kernel.streams import talks_fast
from tests.support.fastpath import FastPath, Talk, eventually

pytestmark = pytest.mark.root


def test_a_connection_that_is_forgotten_and_closed_at_once_is_translated_to_its_end() -> None:
    """Its FINs go as its data went, for conntrack could not translate them any more. Where the fast path had
    to ask anew meanwhile (its epoch tells) they are the kernel's, which sends them on as they are."""
    lab = FastLab()
    try:
        fast = lab.accelerate()
        for port in range(7700, 7720):
            with Talk(lab.host, "a", "far", V4["far"], port) as talk:
                assert talks_fast(lab, talk)
                before = fast.status()
                talk.say(2)
                time.sleep(0.02)
                lab.run("conntrack -F")
                talk.client.close()
                assert talk.server.recv(10) == b"", "the FIN arrived"
            assert eventually(partial(_are_fast, fast, before, 6))
            after = fast.status()
            if after["epoch"] == before["epoch"]:
                assert after["verdicts"].get("TCP_FLAGS", 0) == before["verdicts"].get("TCP_FLAGS", 0)
                return
    finally:
        lab.close()
    raise AssertionError("routes or neighbours changed all the time")


def _are_fast(fast: FastPath, before: dict[str, Any], more: int) -> bool:
    """Whether that many more packets took the fast path, or it has to ask anew."""
    now = fast.status()
    return now["epoch"] != before["epoch"] or now["verdicts"]["FAST"] >= before["verdicts"]["FAST"] + more
