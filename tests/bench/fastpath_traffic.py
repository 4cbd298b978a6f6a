"""Measure traffic through the lab on one CPU: TCP, small datagrams, connections."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

from tests.bench import fastpath_alternating
from tests.bench.fastpath_alternating import measure_paths
from tests.bench.fastpath_lab import (
    CONTROL,
    CPU,
    DATA,
    FLOOD,
    OTHER_CPU,
    Case,
    FastPath,
    Lab,
    has_netperf,
    inside,
)
from tests.bench.report import Figure
from tests.bench.size import sized

_FLOOD = "tests.bench.fastpath_flood"
_BIG, _USUAL = 196608, 65536  # bytes of a frame between containers, with and without BIG TCP

_LIMIT = ", >= 0.95 of the limit"
_TRANSACTIONS = "transactions a second"
_TESTS = (
    ("TCP_RR", ">= 1.3 x" + _LIMIT, _TRANSACTIONS),
    ("UDP_RR", ">= 1.3 x" + _LIMIT, _TRANSACTIONS),
    ("TCP_CRR", ">= 1.0 x", "connections a second"),
    ("TCP_STREAM", ">= 1.15 x", "Mbit/s"),
)


def netperf(test: str, case: Case) -> float:
    """Return netperf's transactions a second, or Mbit/s.

    Both ends are on the measured CPU.
    """
    words = ["netperf", "-H", case.address, "-p", str(CONTROL), "-t", test, "-P", "0"]
    words += ["-l", str(fastpath_alternating.SECONDS), "-T", f"{CPU},{CPU}", "--", "-P", f",{DATA}"]
    words += ["-k", "THROUGHPUT"]
    done = subprocess.run(
        inside(case.client, *words), capture_output=True, text=True, check=False, timeout=60
    )
    _, found, number = done.stdout.partition("THROUGHPUT=")
    assert found, f"{test} to {case.name}: {done.stdout}{done.stderr}"
    return float(number)


class Floods:
    """Run a receiver of small datagrams in each server's namespace."""

    def __init__(self, lab: Lab) -> None:
        words = sys.executable, "-m", _FLOOD, "receive", str(FLOOD), str(OTHER_CPU)
        self._receivers = {each: lab.serve(each, *words).pid for each in lab.servers()}

    def receiver(self, case: Case) -> int:
        """Return the receiving process."""
        return self._receivers[case.server]

    def measure(self, case: Case) -> float:
        """Return the datagrams a second that arrive, sent by the measured CPU."""
        words = (
            case.address,
            str(FLOOD),
            str(fastpath_alternating.SECONDS),
            str(CPU),
            str(self.receiver(case)),
        )
        done = subprocess.run(
            inside(case.client, sys.executable, "-m", _FLOOD, "send", *words),
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, f"flood to {case.name}: {done.stderr}"
        return float(done.stdout)


def figures(lab: Lab, fast: FastPath, floods: Floods) -> Iterator[Figure]:
    """Measure everything on every path through the host."""
    cases = sized(lab.cases, lab.cases[-1:])
    if has_netperf():
        for test, target, unit in _TESTS:
            for case in cases:
                yield _figure(lab, fast, case, test, target, partial(netperf, test), unit)
        for case in cases:
            yield _with_big_tcp(lab, fast, case)
    else:
        yield Figure("TCP_RR, UDP_RR, TCP_CRR, TCP_STREAM", "", "not measured", "netperf is not installed")
    for case in cases:
        target = ">= 1.9 x" if case.name == "SNAT" else ">= 1.75 x"
        yield _figure(lab, fast, case, "UDP 64 B, one flow", target, floods.measure, "packets a second")


def _figure(
    lab: Lab,
    fast: FastPath,
    case: Case,
    what: str,
    target: str,
    measure: Callable[[Case], float],
    unit: str,
) -> Figure:
    results = measure_paths(
        fast, lambda: measure(case), lambda: measure(case), lambda: measure(lab.limit_of(case))
    )
    how = f"{unit}; {median(results.shares):.1%} of the packets fast"
    return Figure(f"{what}, {case.name}", target, results.as_text(), how)


def _with_big_tcp(lab: Lab, fast: FastPath, case: Case) -> Figure:
    """Measure Docker's default against the fast path with larger frames."""
    results = measure_paths(fast, lambda: netperf("TCP_STREAM", case), lambda: _big(lab, case))
    how = "Mbit/s; Docker's default / the fast path with BIG TCP"
    return Figure(f"TCP_STREAM with BIG TCP, {case.name}", ">= 2 x", results.as_text(), how)


def _big(lab: Lab, case: Case) -> float:
    _allow_frames_of(lab, _BIG)
    try:
        return netperf("TCP_STREAM", case)
    finally:
        _allow_frames_of(lab, _USUAL)


def _allow_frames_of(lab: Lab, size: int) -> None:
    """Allow TCP to make frames of that many bytes, on all links."""
    sizes = [word for name in ("gso", "gro") for word in (f"{name}_ipv4_max_size", str(size))]
    for namespace, link in lab.links():
        subprocess.run(inside(namespace, "ip", "link", "set", link, *sizes), check=True)
