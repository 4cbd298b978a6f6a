"""A flood of new connections on the dashboard: fast, bounded memory, right totals."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import pytest

from tests.support.heartbeat import Heartbeat
from tests.support.host import ThrowawayHost
from tests.support.sandbox import alone

pytestmark = pytest.mark.root

RATE, SECONDS = 20_000, 3  # fewer in all than the smallest table of a current machine holds
LONGEST_STALL = 0.2  # seconds
TRIES = 3  # a machine that was stopped doesn't say so


def flooded(host: ThrowawayHost) -> dict[str, Any]:
    program = [sys.executable, "-m", "tests.support.dashboard_flood", str(RATE), str(SECONDS)]
    return json.loads(host.run(alone(*program)))


def test_a_flood_of_connections() -> None:
    for _ in range(TRIES):
        host = ThrowawayHost()
        try:
            found = flooded(host)
            tracked = int(host.run("conntrack -C"))
        finally:
            host.close()
        if found["worst"] <= LONGEST_STALL:
            break
    sent = RATE * SECONDS
    assert (found["sent"], tracked) == (sent, sent)
    assert (found["rows"], found["packets"]) == (sent, sent), found["screen"]
    assert f"{sent:,} flows, each once" in found["screen"], found["screen"]
    assert found["beats"] > 20
    assert found["worst"] <= LONGEST_STALL, f"the event loop stood still for {found['worst'] * 1000:.0f} ms"
    # Some copies of a row of 150 bytes, its keys, speeds and counters, and the incoming dump.
    assert found["memory_most"] - found["memory_before"] < 64 + 4 * sent / 1000, found


async def test_the_heartbeat_detects_a_blocked_loop() -> None:
    heart = Heartbeat()
    heart.start()
    await asyncio.sleep(0.05)
    until = time.thread_time() + LONGEST_STALL
    while time.thread_time() < until:
        pass
    before = heart.beats
    while heart.beats < before + 3:
        await asyncio.sleep(0.01)
    heart.stop()
    assert heart.worst > LONGEST_STALL * 0.9
