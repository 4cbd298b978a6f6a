"""The memory that the fast path takes: of the program that shows it, and of its own processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench.fastpath_lab import FastPath, Lab, inside, named
from tests.bench.report import Figure

# What the dashboard has loaded anyway, and then what it takes to show the fast path's flows.
_READER = """
from pathlib import Path
import tui.app
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4
before = resident()
from bpf.reader import FlowReader
reader = FlowReader()
for _ in range(20):
    flows = reader.read()
print(resident() - before)
"""


def figures(lab: Lab, fast: FastPath) -> Iterator[Figure]:
    """Both, in MB."""
    fast.on()
    try:
        done = subprocess.run(
            inside(named(lab.host.name), sys.executable, "-c", _READER),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        own = [_kilobytes(pid) for pid in fast.processes()]
    finally:
        fast.off()
    yield Figure(
        "resident memory added to the dashboard", "<= 40 MB", f"{int(done.stdout) / 1024:.1f} MB",
        "reading all flows of maps of the usual size, 20 times",
    )  # fmt: skip
    private, resident = (sum(each) / 1024 for each in zip(*own, strict=True))
    yield Figure(
        "memory of keeper and holder", "(report)", f"{private:.0f} MB of their own",
        f"{resident:.0f} MB resident with what is shared; the maps are the kernel's",
    )  # fmt: skip


def _kilobytes(pid: int) -> tuple[int, int]:
    """Private and resident memory."""
    found = {"Private_Clean:": 0, "Private_Dirty:": 0, "Rss:": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, *rest = line.split()
        if name in found:
            found[name] = int(rest[0])
    return found["Private_Clean:"] + found["Private_Dirty:"], found["Rss:"]
