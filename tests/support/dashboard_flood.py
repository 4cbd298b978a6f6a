"""Run the dashboard in the caller's namespace during a flood of new connections.

Prints as JSON how its event loop fared, its memory, and the screen at the end. The dashboard takes the
caller's network namespace for the host.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from tests.support.heartbeat import Heartbeat
from tests.support.waiting import PATIENCE
from tests.ui.driver import screen_lines
from tui.app import VnetApp
from tui.screens.dashboard import Dashboard
from tui.sources import LiveSource

_TRACKING = "table ip t { chain c { type filter hook input priority 0; ct state new accept; }; }"


def prepare() -> None:
    """Have this namespace track and count connections, with long timeouts."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["nft", "-f", "-"], input=_TRACKING, text=True, check=True)
    for name, value in (("nf_conntrack_acct", 1), ("nf_conntrack_udp_timeout", 3600)):
        Path(f"/proc/sys/net/netfilter/{name}").write_text(str(value))


async def watched(rate: int, seconds: float) -> dict[str, object]:
    """Open the view, run the flood, and wait until the dashboard shows it whole."""
    app = VnetApp(LiveSource())
    async with app.run_test(size=(130, 40)) as pilot:
        dashboard = app.screen_stack[0]
        assert isinstance(dashboard, Dashboard)
        dashboard.go_to("flows", "ns:host")
        await _until(lambda: dashboard.presenter.context.snapshot.pending == frozenset())
        before, heart = memory("VmRSS"), Heartbeat()
        heart.start()
        words = [sys.executable, "-m", "tests.support.udp_flood", str(rate), str(seconds)]
        flood = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        output, _ = await flood.communicate()
        sent = int(output)
        whole = f"{sent:,} flows, each once"
        await _until(lambda: whole in "\n".join(screen_lines(app)))
        heart.stop()
        table, host = (
            dashboard.presenter.context.flow_view.table,
            dashboard.presenter.context.topology.host,
        )
        mine = np.concatenate([np.full(len(one.entries), one.ns == host) for one in table.tables])
        found = {
            "sent": sent,
            "rows": int(mine.sum()),
            "packets": int(table.packets[mine].sum()),
            "bytes": int(table.octets[mine].sum()),
            "screen": "\n".join(screen_lines(app)),
            "beats": heart.beats,
            "worst": heart.worst,
            "longest": heart.longest,
            "memory_before": before,
            "memory_most": memory("VmHWM"),
            "memory_now": memory("VmRSS"),
        }
        await pilot.pause(0)
    return found


async def _until(condition) -> None:
    """Wait until the condition holds or PATIENCE ends; results show what is missing."""
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        await asyncio.sleep(0.05)


def memory(name: str) -> float:
    """Return this process's memory in MB.

    VmRSS now, VmHWM at most (proc_pid_status(5)).
    """
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{name}:")[2].split()[0]) / 1024


if __name__ == "__main__":
    prepare()
    answer = asyncio.run(watched(int(sys.argv[1]), float(sys.argv[2])))
    print(json.dumps(answer))
