"""Measure how long the fast path takes to start, and its memory."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from bpf import maps, syscall
from core.netlink.netns import entered
from tests.bench.fastpath_lab import FastPath, Lab, inside, named
from tests.bench.report import Figure
from tests.bench.size import sized

_REPETITIONS = sized(5, 1)
# The dashboard's modules, then those that show the fast path's flows.
_READER = """
import psutil
import tui.app
def resident():
    return psutil.Process().memory_info().rss // 1024
before = resident()
from bpf.client import FastFlowReader
reader = FastFlowReader()
for _ in range(20):
    flows = reader.read()
print(resident() - before)
"""


def figures(lab: Lab, fast: FastPath) -> Iterator[Figure]:
    """Measure time, then memory."""
    yield from _times(lab, fast)
    yield from _memory(lab, fast)


def _times(lab: Lab, fast: FastPath) -> Iterator[Figure]:
    cold, warm, whole = [], [], []
    for _ in range(_REPETITIONS):
        with entered(named(lab.host.name)):
            folder = Path(tempfile.mkdtemp())
            cold.append(_start(folder))
            warm.append(_start(folder))
            shutil.rmtree(folder)
        began = time.perf_counter()
        fast.on()
        whole.append(time.perf_counter() - began)
        fast.off()
    how = f"median of {_REPETITIONS}"
    yield Figure("compile + load + attach", "<= 1.5 s", f"{median(cold):.2f} s", how)
    yield Figure("the same, compiled before", "<= 0.3 s", f"{median(warm):.2f} s", how)
    how += "; starts two processes of Python, reads links and rules"
    yield Figure("from the command to forwarding", "(report)", f"{median(whole):.2f} s", how)


def _start(folder: Path) -> float:
    """Return the seconds to have the program at one link.

    Its compiled form is kept in that folder.
    """
    began = time.perf_counter()
    loaded = maps.load(maps.flow_capacity(), folder)
    link = syscall.attach_tcx(loaded.program, socket.if_nametoindex("up0"))
    took = time.perf_counter() - began
    os.close(link)
    loaded.close()
    return took


def _memory(lab: Lab, fast: FastPath) -> Iterator[Figure]:
    fast.on()
    try:
        done = subprocess.run(
            inside(named(lab.host.name), sys.executable, "-c", _READER),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        own = [_kilobytes(pid) for pid in fast.processes()]
    finally:
        fast.off()
    added = f"{int(done.stdout) / 1024:.1f} MB"
    yield Figure("resident memory added to the dashboard", "<= 40 MB", added, "reading all flows, 20 times")
    private, resident = (sum(each) / 1024 for each in zip(*own, strict=True))
    how = f"{resident:.0f} MB resident including shared memory; the maps are kernel memory"
    yield Figure("memory of supervisor and daemon", "(report)", f"{private:.0f} MB private", how)


def _kilobytes(pid: int) -> tuple[int, int]:
    """Return private and resident memory."""
    found = {"Private_Clean:": 0, "Private_Dirty:": 0, "Rss:": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, *rest = line.split()
        if name in found:
            found[name] = int(rest[0])
    return found["Private_Clean:"] + found["Private_Dirty:"], found["Rss:"]
