"""Measure the live flows view: CPU with 100,000 flows, and a flood of new ones.

2,000 flows are active, against `watch -n1 conntrack -L`; the flood is 20,000 new connections a second for 20
s.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.bench.bench_conntrack import COUNT
from tests.bench.report import Figure
from tests.bench.size import sized
from tests.support.bulk_conntrack import room_for_entries
from tests.support.sandbox import alone

ACTIVE = sized(2000, 20)
SECONDS = sized(20.0, 2.0)
RATE = sized(20_000, 500)
# A plain `watch -n1 conntrack -L` closes conntrack's pipe after the first screenful, and so reads little.
POLLING = "watch -n1 'conntrack -L 2>/dev/null | tail -n 36'"


def run() -> list[Figure]:
    """Measure all figures in a new namespace, without other processes and mounts."""
    with room_for_entries(int(RATE * SECONDS * 1.2)):
        cpu = in_a_namespace("tests.bench.bench_flows_live")
        flood = in_a_namespace("tests.support.dashboard_flood", str(RATE), str(SECONDS))
    return [*(Figure(**figure) for figure in cpu), _flood(flood)]


def in_a_namespace(module: str, *words: str):
    """Run a module in a network namespace that sees no other; return its JSON."""
    name = f"bench{os.getpid()}-lf"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        command = ["nsenter", f"--net=/run/netns/{name}", *alone(sys.executable, "-m", module, *words)]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def _flood(found) -> Figure:
    count = int(RATE * SECONDS)
    correct = (found["sent"], found["rows"], found["packets"]) == (count, count, count)
    return Figure(
        f"flood of {RATE:,} new connections a second for {SECONDS:.0f} s: longest stall",
        "<= 200 ms, memory bounded, correct totals afterwards",
        f"{found['worst'] * 1000:.0f} ms, +{found['memory_most'] - found['memory_before']:.0f} MB, "
        f"totals {'correct' if correct else 'WRONG'}",
        f"{found['longest'] * 1000:.0f} ms including the waits for a CPU; "
        f"{found['memory_now']:.0f} MB with {count:,} flows",
    )


def measure() -> list[Figure]:
    """Measure the figures in the caller's namespace."""
    from tests.support.bulk_conntrack import insert

    Path("/proc/sys/net/netfilter/nf_conntrack_acct").write_text("1")
    insert(COUNT, timeout=36_000)
    with _active_flows():
        dashboard = _share(f"{sys.executable} -m tui.cli", ":flows", "each once", settle=sized(12, 4))
        watch = _share(POLLING, "", "src=", settle=sized(4, 2))
    return [
        Figure(
            f"dashboard CPU, flows view, {COUNT:,} flows of which {ACTIVE:,} are active",
            "<= 15 % of a core",
            f"{dashboard:.1f} %",
            f"{SECONDS:.0f} s at a 1 s refresh",
        ),
        Figure(
            "the same against `watch -n1 conntrack -L` that reads the whole table",
            "<= 1/2",
            f"{dashboard / watch:.2f} x",
            f"`watch` takes {watch:.1f} %; piped into `tail`, or `watch` closes the pipe after a screenful",
        ),
    ]


@contextmanager
def _active_flows() -> Iterator[None]:
    """Keep the counters of 2,000 connections moving.

    UDP to loopback, from as many sources.
    """
    code = (
        "import socket, time\n"
        "sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); sink.bind(('127.0.0.1', 9000))\n"
        f"senders = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range({ACTIVE})]\n"
        "[one.connect(('127.0.0.1', 9000)) for one in senders]\n"
        "while True:\n"
        "    [one.send(b'x' * 100) for one in senders]\n"
        "    time.sleep(0.5)\n"
    )
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    rules = "table ip t { chain c { type filter hook input priority 0; ct state new accept; }; }"
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    limit = 'ulimit -n 8192; exec "$0" "$@"'
    sender = subprocess.Popen(["sh", "-c", limit, sys.executable, "-c", code])
    try:
        yield
    finally:
        sender.kill()
        sender.wait()


def _share(program: str, keys: str, shows: str, settle: float) -> float:
    """Return a program's percentage of a core, with its children, in a terminal."""
    # A killed server may still answer to its name.
    terminal = f"fl{os.getpid()}-{time.monotonic_ns()}"
    subprocess.run(
        ["tmux", "-L", terminal, "new-session", "-d", "-x", "130", "-y", "40", program], check=True
    )
    try:
        pid = int(_tmux(terminal, "display-message", "-p", "#{pane_pid}"))
        if keys:
            time.sleep(sized(8, 3))
            _tmux(terminal, "send-keys", keys, "Enter")
        time.sleep(settle)
        began, before = time.monotonic(), _spent(pid)
        time.sleep(SECONDS)
        share = (_spent(pid) - before) / (time.monotonic() - began)
        screen = _tmux(terminal, "capture-pane", "-p")
    finally:
        subprocess.run(["tmux", "-L", terminal, "kill-server"], check=False)
    assert shows in screen, screen
    return share * 100


def _tmux(terminal: str, *words: str) -> str:
    return subprocess.run(
        ["tmux", "-L", terminal, *words], capture_output=True, text=True, check=True
    ).stdout.strip()


def _spent(pid: int) -> float:
    """Return the CPU seconds of a process and its ended children."""
    return sum(psutil.Process(pid).cpu_times()[:4])


if __name__ == "__main__":
    json.dump([figure.__dict__ for figure in measure()], sys.stdout)
