"""Measure the dashboard on the demo lab: start, idle CPU, latency, memory."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from core.lab import Lab, LabSettings
from tests.bench.report import Figure, paired, percentile
from tests.bench.size import sized
from tests.support.terminal import Terminal

_STARTS = sized(7, 1)
_IDLE = sized(30, 2)  # seconds
_SETTLED = sized(8, 2)
_PROBES = sized(40, 2)
_KEYS = sized(100, 10)
_ENTRIES = sized(100_000, 3_000)
_PROGRAM = [sys.executable, "-m", "tui.cli"]


def run() -> list[Figure]:
    """Measure all figures, each in its own lab (see `main`)."""
    figures = []
    for name, lab in (
        ("start", Lab()),
        ("bytecode", Lab(LabSettings(traffic=False))),
        ("idle", Lab(LabSettings(traffic=False))),
        ("latency", Lab(LabSettings(traffic=False))),
        ("large_host", Lab(LabSettings(traffic=False, namespaces=sized(200, 10)))),
    ):
        with lab:
            figures += _inside(lab, name)
    return figures


def _inside(lab: Lab, name: str) -> list[Figure]:
    reading, writing = os.pipe()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "BENCH_OUT": str(writing)}
    process = lab.popen_inside(
        [sys.executable, "-m", "tests.bench.bench_dashboard", name], env=environment, pass_fds=(writing,)
    )
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    if process.wait() or not text:
        raise RuntimeError(f"measuring {name} failed")
    return [Figure(**figure) for figure in json.loads(text)]


def _cpu_share(pid: int, seconds: float) -> float:
    """Return the percentage of a core of the process and its children over that time."""

    def spent() -> float:
        times = psutil.Process(pid).cpu_times()
        return times.user + times.system + times.children_user + times.children_system

    before, started = spent(), time.monotonic()
    time.sleep(seconds)
    return 100 * (spent() - before) / (time.monotonic() - started)


def start() -> list[Figure]:
    """Measure start to first paint, and to first data; medians of seven."""
    paints, data = [], []
    for _ in range(_STARTS):
        with Terminal(_PROGRAM) as terminal:
            paints.append(terminal.wait_for("vnet-tui") - terminal.started)
            data.append(terminal.wait_for("br-shop") - terminal.started)
    return [
        Figure(
            "start to first paint, demo lab",
            "<= 0.5 s idle",
            f"{statistics.median(paints):.2f} s",
            f"median of {_STARTS}",
        ),
        Figure(
            "start to first data, demo lab",
            "<= 1.0 s idle",
            f"{statistics.median(data):.2f} s",
            f"median of {_STARTS}",
        ),
    ]


def bytecode() -> list[Figure]:
    """Measure start to first paint with the bytecode of set-up, against without."""
    root = Path(__file__).parents[2]
    with tempfile.TemporaryDirectory() as compiled, tempfile.TemporaryDirectory() as plain:
        for folder in (compiled, plain):
            for name in ("core", "bpf", "tui"):
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(root / name, Path(folder, name), ignore=ignored)
        subprocess.run([sys.executable, "-m", "compileall", "-q", compiled], check=True)
        ratio = paired(lambda: _first_paint(compiled), lambda: _first_paint(plain), _STARTS)
    how = "alternating, medians of 7, PYTHONDONTWRITEBYTECODE=1"
    return [Figure("first paint, with / without bytecode", "(report)", str(ratio), how)]


def _first_paint(folder: str) -> float:
    """Return the seconds from the start to the first paint of that folder's program."""
    words = ["env", f"--chdir={folder}", "PYTHONDONTWRITEBYTECODE=1", f"PYTHONPATH={folder}", *_PROGRAM]
    with Terminal(words) as terminal:
        return terminal.wait_for("vnet-tui") - terminal.started


def idle() -> list[Figure]:
    """Measure the CPU time while nothing changes."""
    with Terminal(_PROGRAM) as terminal:
        terminal.wait_for("br-shop")
        _drain(terminal, _SETTLED)
        share = _drained_cpu(terminal, _IDLE)
        memory = psutil.Process(terminal.pid).memory_info().rss / 2**20
    return [
        Figure(
            "CPU of the dashboard, demo lab, no change",
            "<= 2 % of a core",
            f"{share:.1f} %",
            f"over {_IDLE} s",
        ),
        Figure("resident memory, demo lab", "(report)", f"{memory:.0f} MB", ""),
    ]


def latency() -> list[Figure]:
    """Measure from `ip link add` in a container's namespace to its row on the screen."""
    names = json.loads(
        subprocess.run(["ip", "-j", "netns"], capture_output=True, text=True, check=True).stdout
    )
    inside = next(entry["name"] for entry in names if entry["name"].startswith("web"))
    times = []
    with Terminal(_PROGRAM) as terminal:
        terminal.wait_for("br-shop")
        terminal.press(":links\r")
        terminal.press("/probe\r")
        _drain(terminal, 3)
        for number in range(_PROBES):
            name = f"probe{number:03}"
            seen = len(terminal.output)
            began = time.monotonic()
            subprocess.run(["ip", "-n", inside, "link", "add", name, "type", "bridge"], check=True)
            times.append(terminal.wait_for(name, since=seen) - began)
            subprocess.run(["ip", "-n", inside, "link", "del", name], check=True)
            _drain(terminal, 0.4)
    return [
        Figure(
            "`ip link add` in any namespace to its row on the screen", "p95 <= 150 ms",
            f"p95 {percentile(times, 0.95) * 1000:.0f} ms, median {statistics.median(times) * 1000:.0f} ms",
            f"{_PROBES} links, with the time of `ip` itself",
        )
    ]  # fmt: skip


def large_host() -> list[Figure]:
    """Measure 200 namespaces and 100,000 conntrack entries in the conntrack view."""
    from tests.support.bulk_conntrack import insert

    insert(_ENTRIES)
    with Terminal(_PROGRAM) as terminal:
        terminal.wait_for("vnet-tui")
        terminal.press("7")
        terminal.wait_for(str(_ENTRIES // 1000), timeout=30)
        _drain(terminal, _SETTLED)
        share = _drained_cpu(terminal, _IDLE)
        memory = psutil.Process(terminal.pid).memory_info().rss / 2**20
        times = []
        for number in range(_KEYS):
            _drain(terminal, 0.13)
            began = terminal.press("j" if number % 10 else "\x04")
            if not terminal.read(1.0):
                raise AssertionError("a key press painted nothing")
            times.append(time.monotonic() - began)
    return [
        Figure(
            f"CPU, 200 namespaces, {_ENTRIES:,} conntrack entries in view",
            "<= 15 % of a core", f"{share:.1f} %",
            f"over {_IDLE} s",
        ),
        Figure(
            f"key press to repaint, {_ENTRIES:,} conntrack rows in view and updating", "p95 <= 50 ms",
            f"p95 {percentile(times, 0.95) * 1000:.0f} ms, median {statistics.median(times) * 1000:.0f} ms",
            f"{_KEYS} key presses",
        ),
        Figure(f"resident memory with {_ENTRIES:,} conntrack entries", "<= 200 MB", f"{memory:.0f} MB", ""),
    ]  # fmt: skip


def _drain(terminal: Terminal, seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        terminal.read(left)


def _drained_cpu(terminal: Terminal, seconds: float) -> float:
    import threading

    measured: list[float] = []
    meter = threading.Thread(target=lambda: measured.append(_cpu_share(terminal.pid, seconds)))
    meter.start()
    _drain(terminal, seconds + 0.2)
    meter.join()
    return measured[0]


if __name__ == "__main__":
    made = {"start": start, "bytecode": bytecode, "idle": idle, "latency": latency, "large_host": large_host}[
        sys.argv[1]
    ]()
    with os.fdopen(int(os.environ["BENCH_OUT"]), "w") as out:
        json.dump([figure.__dict__ for figure in made], out)
