"""Measure a bundle (`B`) of 200,000 connections, and the stalled event loop."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.bench_flows_live import in_a_namespace
from tests.bench.report import Figure
from tests.bench.size import sized
from tests.support.bulk_conntrack import insert, room_for_entries
from tests.support.heartbeat import Heartbeat
from tests.support.waiting import PATIENCE
from tui.app import VnetApp
from tui.sources import LiveSource

COUNT = sized(200_000, 2_000)
_TIMES = sized(5, 1)
_SETTLED = sized(8.0, 1.0)


def run() -> list[Figure]:
    """Measure all figures in a new namespace."""
    with room_for_entries(2 * COUNT):
        found = in_a_namespace("tests.bench.bench_bundle")
    seconds, stalls = ([one[name] for one in found] for name in ("seconds", "stall"))
    what = f"`B`, a bundle of a host with {COUNT:,} connections"
    how = f"median of {_TIMES}; {min(seconds):.1f} to {max(seconds):.1f} s; {found[-1]['size'] / 1e6:.1f} MB"
    return [
        Figure(what, "<= 15 s", f"{statistics.median(seconds):.1f} s", how),
        Figure(
            "the longest stall of the event loop meanwhile",
            "<= 50 ms",
            f"{max(stalls) * 1000:.0f} ms",
            f"maximum of {_TIMES} bundles, the minimum is {min(stalls) * 1000:.0f} ms",
        ),
    ]


async def measure(folder: Path) -> list[dict[str, float]]:
    """Write bundles into a folder, in the caller's namespace."""
    app, found = VnetApp(LiveSource()), []
    async with app.run_test(size=(130, 40)) as pilot:
        await pilot.press(*":flows", "enter")
        await asyncio.sleep(_SETTLED)
        for number in range(1, _TIMES + 1):
            heart, began = Heartbeat(), time.monotonic()
            heart.start()
            await pilot.press("B")
            # The file gets its name when it is complete.
            while len(bundles := sorted(folder.glob("vnet-bundle-*.tar.gz"))) < number:
                assert time.monotonic() < began + PATIENCE, "the bundle did not come"
                await asyncio.sleep(0.02)
            seconds = time.monotonic() - began
            heart.stop()
            size = bundles[-1].stat().st_size
            found.append({"seconds": seconds, "stall": heart.worst, "size": size})
    return found


if __name__ == "__main__":
    Path("/proc/sys/net/netfilter/nf_conntrack_acct").write_text("1")
    insert(COUNT, timeout=36_000)
    with tempfile.TemporaryDirectory() as made:
        os.chdir(made)
        figures = asyncio.run(measure(Path(made)))
        os.chdir("/")
    json.dump(figures, sys.stdout)
