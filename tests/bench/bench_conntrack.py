"""Measure reading 100,000 conntrack entries, sorting and filtering.

Reading is compared with `conntrack -L`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.report import Figure, paired
from tests.bench.size import sized
from tests.support.bulk_conntrack import room_for_entries

COUNT = sized(100_000, 3_000)
NAME = f"bench{os.getpid()}-ct"


def run() -> list[Figure]:
    """Measure all figures in a new namespace with accounting, as for a dashboard."""
    with room_for_entries(2 * COUNT):
        subprocess.run(["ip", "netns", "add", NAME], check=True)
        try:
            command = [
                "nsenter",
                f"--net=/run/netns/{NAME}",
                sys.executable,
                "-m",
                "tests.bench.bench_conntrack",
            ]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        finally:
            subprocess.run(["ip", "netns", "del", NAME], check=True)
    return [Figure(**figure) for figure in json.loads(done.stdout)]


def measure() -> list[Figure]:
    """Measure the figures in the caller's namespace."""
    from core.collect.conntrack import read_conntrack
    from core.model import Namespace
    from core.netlink.netns import HOST_PATH, inode_of
    from tests.support.bulk_conntrack import insert

    Path("/proc/sys/net/netfilter/nf_conntrack_acct").write_text("1")
    insert(COUNT, timeout=36_000)
    namespace = Namespace(inode_of(HOST_PATH), is_host=True, entry=HOST_PATH)

    def read_table() -> float:
        began = time.perf_counter()
        table = read_conntrack(namespace)
        took = time.perf_counter() - began
        assert len(table.entries) == COUNT, table.problems
        return took

    def run_conntrack() -> float:
        began = time.perf_counter()
        subprocess.run(["conntrack", "-L"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        return time.perf_counter() - began

    before = _peak_memory()
    read_table()
    growth = _peak_memory() - before
    ratio = paired(read_table, run_conntrack, repetitions=sized(11, 2))
    began = time.process_time()
    read_table()
    cpu = time.process_time() - began
    return [
        Figure(
            f"decode of {COUNT:,} conntrack entries",
            "<= 1.3 x `conntrack -L >/dev/null`",
            str(ratio),
            "median of 11",
        ),
        Figure("CPU time of one such read", "(report)", f"{cpu * 1000:.0f} ms", "kernel's dump included"),
        Figure(
            "peak memory of the first such read",
            "(report)",
            f"+{growth:.0f} MB",
            "table of 13 MB included",
        ),
        *_present(read_conntrack(namespace)),
    ]


def _present(table) -> list[Figure]:
    """Measure sorting and filtering as in the view, with new columns each time."""
    from core.model import Host, Snapshot
    from core.topology import Topology
    from tui.views.conntrack import COLUMNS, conntrack_rows

    topology = Topology(Snapshot(host=Host(netns=table.ns), conntracks={table.ns: table}))
    filters = ("172.18", "443", "addr:172.18.0.0/17", "fd00::a", "state:est !port:443")
    sorting = {
        column.name: _slowest(lambda c=column: conntrack_rows(topology).sorted_by(c.name, True))
        for column in COLUMNS
    }
    matching = {text: _slowest(lambda t=text: conntrack_rows(topology).matching(t)) for text in filters}
    rows = conntrack_rows(topology)
    row = _slowest(lambda: [rows.row(place) for place in range(1000)])
    return [
        Figure(f"{COUNT:,} conntrack rows: sort", "<= 60 ms", *_worst(sorting)),
        Figure(f"{COUNT:,} conntrack rows: filter", "<= 60 ms", *_worst(matching)),
        Figure(
            f"{COUNT:,} conntrack rows: one row's text", "<= 50 us", f"{row * 1000:.0f} us", "mean of 1,000"
        ),
    ]


def _slowest(work: Callable[[], object]) -> float:
    """Return the slowest of five runs, after one that doesn't count."""
    work()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return max(times)


def _worst(times: dict[str, float]) -> tuple[str, str]:
    name = max(times, key=times.__getitem__)
    return f"{times[name] * 1000:.0f} ms", f"slowest of {len(times)}: {name}"


def _peak_memory() -> float:
    """Return the peak resident memory of this process in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    json.dump([figure.__dict__ for figure in measure()], sys.stdout)
