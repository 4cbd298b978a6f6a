"""Measure requests and bulk between containers of two hosts of an overlay, with and without the fast path."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.bench.fastpath_alternating import SECONDS, alternate, gain
from tests.bench.report import Figure
from tests.support.machine import ok
from tests.support.underlay import Underlay, addresses_of, container, underlay, wait_for_ping

_CPU = f"taskset -c {max(os.sched_getaffinity(0))}"
_SETTLED = 2.5  # seconds until connections are accelerated and headers remembered


def run() -> list[Figure]:
    """Measure both, all processes on one CPU: two hosts of one machine would otherwise share the gain."""
    with _overlay() as under:
        one, other = under.hosts
        address = addresses_of(other, "b")[0]
        _serve(under, "netserver -4", "iperf3 -s -D")

        def requests() -> float:
            words = f"{_CPU} netperf -H {address} -t TCP_RR -l {SECONDS} -P 0 -- -r 1,1"
            return float(one.run(words, inside="a").split()[5])

        def bulk() -> float:
            found = json.loads(one.run(f"{_CPU} iperf3 -c {address} -t {SECONDS} -J", inside="a"))
            return float(found["end"]["sum_received"]["bits_per_second"])

        rows = []
        for name, target, offload, measure, unit in (
            ("TCP_RR", ">= 1.4 x", True, requests, 1),
            ("TCP stream", ">= 1.3 x", True, bulk, 1e9),
            ("TCP stream, uplinks that don't segment tunnels' frames,", "(report)", False, bulk, 1e9),
        ):
            _offload(under, offload)
            kernel, fast = alternate(lambda: _turn(under, False), lambda: _turn(under, True), measure)
            values = " / ".join(f"{sorted(each)[len(each) // 2] / unit:,.1f}" for each in (kernel, fast))
            rows.append(
                Figure(f"{name} between containers of two hosts", target, f"{gain(fast, kernel)}; {values}",
                       f"kernel / fast path on both hosts, {len(kernel)} runs of {SECONDS} s, one CPU")
            )  # fmt: skip
    return rows


@contextmanager
def _overlay() -> Iterator[Underlay]:
    """Yield two hosts that a veth pair joins, with a container of an overlay on each."""
    with underlay(2) as under:
        one, other = under.hosts
        for host in under.hosts:
            host.run("ip link del up0")
        under.middle.run(f"ip link add up0 netns {one.pid} type veth peer name up0 netns {other.pid}")
        for host in under.hosts:
            host.run(f"ip addr add {under.address(host)}/24 dev up0")
            host.run("ip link set up0 up")
        for host in under.hosts:
            ok(host, f"network join blue {under.remotes()}")
        container(one, "a", "blue")
        wait_for_ping(one, "a", container(other, "b", "blue"))
        yield under


def _offload(under: Underlay, on: bool) -> None:
    """Set whether the uplinks segment large frames of tunnels, as few NICs of virtual machines do."""
    for host in under.hosts:
        for feature in ("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"):
            host.run(f"ethtool -K up0 {feature} {'on' if on else 'off'}")


def _serve(under: Underlay, *commands: str) -> None:
    for command in commands:
        under.hosts[1].run(["sh", "-c", f"{_CPU} {command} >/dev/null 2>&1 </dev/null"], inside="b")
    time.sleep(0.5)


def _turn(under: Underlay, on: bool) -> None:
    for host in under.hosts:
        ok(host, "accelerate blue --yes" if on else "accelerate --off --yes")
    time.sleep(_SETTLED if on else 0)
