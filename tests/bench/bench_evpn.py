"""Measure overlays of many hosts and containers that are announced by BGP EVPN."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import psutil

from core.frr_config import DEFAULT_ASN
from core.plan.vxlan import vni_by_name
from tests.bench.report import Figure
from tests.bench.size import sized
from tests.support.gobgp import RouteGenerator
from tests.support.machine import PROGRAM, Machine, ok
from tests.support.terminal import Terminal
from tests.support.underlay import FrrDaemons, flood_list, underlay
from tests.support.waiting import wait_until

VNI = vni_by_name("blue")
# Hosts, and containers of each.
SIZES = sized(((50, 20), (200, 20), (1000, 4)), ((3, 2),))
_REPETITIONS = sized(5, 1)
_MIB = 1 << 20


def run() -> list[Figure]:
    """Announce the hosts to one that runs FRRouting; measure that one."""
    return [figure for hosts, each in SIZES for figure in measure(hosts, each)]


def measure(hosts: int, each: int) -> list[Figure]:
    """Announce that many hosts; return what reading and showing them takes."""
    addresses = [f"198.18.{number >> 8}.{number & 255}" for number in range(hosts)]
    containers = [
        (addresses[number % hosts], f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}",
         f"10.239.{225 + (number >> 8)}.{number & 255}")
        for number in range(hosts * each)
    ]  # fmt: skip
    what = f"{hosts:,} hosts and {len(containers):,} containers"
    with underlay(1) as under:
        (host,) = under.hosts
        frr = FrrDaemons(host)
        host.run(f"ip route add 198.18.0.0/15 via {RouteGenerator.address}")
        ok(host, f"network join blue --peer {RouteGenerator.address}")
        with RouteGenerator(under, DEFAULT_ASN, VNI) as generator:
            wait_until(lambda: frr.established() == {generator.address}, "the session")
            before = memory(host)
            generator.announce(addresses, containers)
            wait_until(lambda: len(macs(host)) == len(containers), "all MACs")
            assert flood_list(host, f"vx{VNI}") == set(addresses)
            shown = timed(lambda: shows(host, len(containers)))
            after = memory(host)
            dashboard, redraw = opened(host)
        figures = [
            Figure(f"`show overlay --json`, {what}", "", f"{shown:.2f} s", f"median of {_REPETITIONS}"),
            Figure(f"dashboard with `:overlay`, {what}", "", f"{dashboard / _MIB:.0f} MiB", "RSS"),
            Figure(
                f"from End or Home to the whole screen, {what}", "<= 0.1 s", f"{redraw * 1000:.0f} ms",
                f"median of {4 * _REPETITIONS}",
            ),
        ]  # fmt: skip
        for name, was in before.items():
            method = f"RSS; {was / _MIB:.0f} MiB before the hosts were announced"
            figures.append(Figure(f"{name}, {what}", "", f"{after[name] / _MIB:.0f} MiB", method))
        return figures


def macs(host: Machine) -> set[str]:
    """Return the MACs that the kernel knows behind other hosts."""
    entries = host.json(f"bridge -j fdb show dev vx{VNI}")
    return {one["mac"] for one in entries if one.get("dst") and "extern_learn" in one["flags"]}


def memory(host: Machine) -> dict[str, int]:
    """Return the resident memory of FRRouting's daemons."""
    pids = {name: int(host.run(f"pgrep -x {name}")) for name in ("zebra", "bgpd")}
    inside = {
        name: int(host.run(["awk", "/VmRSS/ {print $2}", f"/proc/{pid}/status"]))
        for name, pid in pids.items()
    }
    return {name: kib * 1024 for name, kib in inside.items()}


def shows(host: Machine, count: int) -> None:
    """Print the overlay as JSON, and check that each container is in it."""
    (found,) = json.loads(ok(host, "show overlay --json"))["overlay"]
    assert sum(len(one["macs"]) for one in found["hosts"] if not one["local"]) == count


def timed(work: Callable[[], object]) -> float:
    """Return the median duration."""
    durations = []
    for _ in range(_REPETITIONS):
        started = time.perf_counter()
        work()
        durations.append(time.perf_counter() - started)
    return statistics.median(durations)


def opened(host: Machine) -> tuple[int, float]:
    """Open the view in a dashboard; return its resident memory, and the time from a key to its screen."""
    with Terminal(host.words(*PROGRAM), columns=130) as terminal:
        terminal.wait_for("blue")
        terminal.press(":overlay\r")
        terminal.wait_for("announced")
        terminal.settle()
        times = []
        for _ in range(2 * _REPETITIONS):
            for key in ("\x1b[F", "\x1b[H"):
                started = terminal.press(key)
                times.append(terminal.settle() - started)
        found = psutil.Process(terminal.program().pid).memory_info().rss
    return found, statistics.median(times)
