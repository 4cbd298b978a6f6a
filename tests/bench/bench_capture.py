"""Measure `vnet-tui capture` of 64-byte packets: drops that the kernel reports, CPU time.

The rates are those of the sender. tcpdump, if it is installed, captures the same for comparison.
"""

from __future__ import annotations

import re
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench.report import Figure
from tests.bench.size import sized
from tests.support.host import ThrowawayHost
from tests.support.waiting import wait_until

RATES = sized((100_000, 200_000), (5_000,))
SECONDS = sized(10.0, 1.0)
REPETITIONS = sized(3, 1)
_CAPTURE = (sys.executable, "-m", "tui.cli", "capture")


def run() -> list[Figure]:
    """Measure at each rate, alternating with tcpdump."""
    host = ThrowawayHost()
    try:
        host.namespace("far")
        host.run(f"ip link add in0 type veth peer name out0 netns {host.full('far')}")
        host.run("ip link set in0 up")
        host.run("ip link set out0 up", inside="far")
        return [figure for rate in RATES for figure in _at(host, rate)]
    finally:
        host.close()


def _at(host: ThrowawayHost, rate: int) -> list[Figure]:
    tools = {"vnet-tui": _vnet_tui}
    if shutil.which("tcpdump"):
        tools["tcpdump"] = _tcpdump
    found: dict[str, list[tuple[int, int, float, float]]] = {name: [] for name in tools}
    for _ in range(REPETITIONS):
        for name, measure in tools.items():
            found[name].append(measure(host, rate))
    return [_figure(name, rate, runs) for name, runs in found.items()]


def _figure(name: str, rate: int, runs: list[tuple[int, int, float, float]]) -> Figure:
    lost, cpu = [dropped for _, dropped, _, _ in runs], [share for _, _, share, _ in runs]
    achieved = statistics.median(reached for *_, reached in runs)
    target = "0 dropped" if name == "vnet-tui" and rate <= 100_000 else "(report)"
    return Figure(
        f"{name}, 64-byte packets, {rate:,} a second",
        target,
        f"{max(lost):,} dropped of {runs[0][0]:,}; {statistics.median(cpu):.0%} of a core",
        f"most of {len(runs)} runs of {SECONDS:g} s, {achieved:,.0f} a second sent; median CPU",
    )


def _vnet_tui(host: ThrowawayHost, rate: int) -> tuple[int, int, float, float]:
    with TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "bench.pcapng"
        words = [*_CAPTURE, "in0", "udp port 9", "-w", str(path), "--max-size", "2G"]
        return _measured(host, rate, words, path, r"([\d,]+) packets", r"([\d,]+) dropped")


def _tcpdump(host: ThrowawayHost, rate: int) -> tuple[int, int, float, float]:
    with TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "bench.pcap"
        words = ["tcpdump", "-Z", "root", "-B", "65536", "-i", "in0", "-w", str(path), "udp port 9"]
        return _measured(host, rate, words, path, r"(\d+) packets captured", r"(\d+) packets dropped")


def _measured(
    host: ThrowawayHost, rate: int, words: list[str], path: Path, count: str, lost: str
) -> tuple[int, int, float, float]:
    """Return packets captured and dropped, share of a core, and the rate that was sent."""
    process = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{host.name}", *words], stderr=subprocess.PIPE, text=True
    )
    wait_until(path.exists, "the capture file")
    time.sleep(0.5)
    far = ["nsenter", f"--net=/run/netns/{host.full('far')}", sys.executable, "-m"]
    flood = [*far, "tests.support.packet_flood", "out0", str(rate), str(SECONDS)]
    done = subprocess.run(flood, capture_output=True, text=True, check=True)
    sent, seconds = done.stdout.split()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    time.sleep(1.0)
    process.terminate()
    _, said = process.communicate()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    captured, dropped = (re.search(pattern, said) for pattern in (count, lost))
    assert captured is not None, said
    missing = int(dropped[1].replace(",", "")) if dropped else 0
    got = int(captured[1].replace(",", ""))
    assert got + missing >= int(sent), f"{sent} sent, but {said}"
    return got, missing, cpu / float(seconds), int(sent) / float(seconds)


if __name__ == "__main__":
    for figure in run():
        print(figure)
