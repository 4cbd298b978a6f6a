"""Traffic through the lab: Docker's default and the fast path in turns, the limit beside them."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

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

SECONDS = int(os.environ.get("VNET_BENCH_SECONDS", "2"))  # netperf takes whole ones
REPETITIONS = int(os.environ.get("VNET_BENCH_REPETITIONS", "5"))
_FLOOD = "tests.bench.fastpath_flood"
_BIG, _USUAL = 196608, 65536  # bytes of a frame between containers, with and without BIG TCP

Measure = Callable[[Case], float]


@dataclass(frozen=True)
class Compared:
    """Of each repetition: Docker's default, the fast path, the limit; and the packets' share that was fast."""

    kernel: list[float]
    fast: list[float]
    limit: list[float]
    shares: list[float]

    def __str__(self) -> str:
        gains = sorted(fast / kernel for fast, kernel in zip(self.fast, self.kernel, strict=True))
        of_limit = statistics.median(fast / limit for fast, limit in zip(self.fast, self.limit, strict=True))
        values = (statistics.median(each) for each in (self.kernel, self.fast, self.limit))
        return (
            f"{statistics.median(gains):.2f} x ({gains[0]:.2f} to {gains[-1]:.2f}), {of_limit:.2f} of the limit; "
            + " / ".join(f"{value:,.0f}" for value in values)
        )


def compare(fast: FastPath, case: Case, limit: Case, measure: Measure) -> Compared:
    """In turns, the other order every other time; the limit is measured in the middle."""
    found = Compared([], [], [], [])
    for repetition in range(REPETITIONS):
        turns = [lambda: found.kernel.append(measure(case)), lambda: _accelerated(fast, case, measure, found)]
        if repetition % 2:
            turns.reverse()
        turns.insert(1, lambda: found.limit.append(measure(limit)))
        for turn in turns:
            turn()
    return found


def _accelerated(fast: FastPath, case: Case, measure: Measure, found: Compared) -> None:
    fast.on()
    try:
        found.fast.append(measure(case))
        found.shares.append(fast.share())
    finally:
        fast.off()


def netperf(test: str) -> Measure:
    """Transactions a second, or Mbit/s, as netperf measures them, with all of it on one CPU."""

    def measure(case: Case) -> float:
        words = ["netperf", "-H", case.address, "-p", str(CONTROL), "-t", test, "-l", str(SECONDS), "-P", "0"]
        words += ["-T", f"{CPU},{CPU}", "--", "-P", f",{DATA}", "-k", "THROUGHPUT"]
        done = subprocess.run(
            inside(case.client, *words), capture_output=True, text=True, check=False, timeout=60
        )
        _, found, number = done.stdout.partition("THROUGHPUT=")
        assert found, f"{test} to {case.name}: {done.stdout}{done.stderr}"
        return float(number)

    return measure


class Floods:
    """A receiver of small datagrams in each server's namespace."""

    def __init__(self, lab: Lab) -> None:
        servers = {each.server for each in (*lab.cases, lab.limit)}
        words = sys.executable, "-m", _FLOOD, "receive", str(FLOOD), str(OTHER_CPU)
        self._receivers = {each: lab.serve(each, *words).pid for each in servers}

    def receiver(self, case: Case) -> int:
        """The process that receives."""
        return self._receivers[case.server]

    def measure(self, case: Case) -> float:
        """Datagrams a second that arrive, sent by one CPU."""
        receiver = str(self.receiver(case))
        words = "send", case.address, str(FLOOD), str(SECONDS), str(CPU), receiver
        done = subprocess.run(
            inside(case.client, sys.executable, "-m", _FLOOD, *words), capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, f"flood to {case.name}: {done.stderr}"
        return float(done.stdout)


def figures(lab: Lab, fast: FastPath, floods: Floods) -> Iterator[Figure]:
    """All of it."""
    if has_netperf():
        for test, to_reach in (("TCP_RR", ">= 1.3 x"), ("UDP_RR", ">= 1.3 x"), ("TCP_CRR", ">= 1.0 x")):
            of_limit = "" if test == "TCP_CRR" else ", >= 0.95 of the limit"
            for case in lab.cases:
                yield _figure(fast, lab, case, test, to_reach + of_limit, netperf(test), "transactions a second")
    else:
        yield Figure("TCP_RR, UDP_RR, TCP_CRR, bulk TCP", "", "not measured", "netperf is not installed")
    for case in lab.cases:
        to_reach = ">= 1.9 x" if case.name == "SNAT" else ">= 1.75 x"
        yield _figure(fast, lab, case, "UDP 64 B", to_reach, floods.measure, "datagrams a second, one flow")
    if has_netperf():
        for case in lab.cases:
            yield _figure(fast, lab, case, "bulk TCP", ">= 1.15 x", netperf("TCP_STREAM"), "Mbit/s")
        yield from _big_tcp(lab, fast)


def _figure(
    fast: FastPath, lab: Lab, case: Case, what: str, to_reach: str, measure: Measure, unit: str
) -> Figure:
    found = compare(fast, case, lab.limit, measure)
    how = f"{unit}; {statistics.median(found.shares):.1%} of the packets fast"
    return Figure(f"{what}, {case.name}", to_reach, str(found), how)


def _big_tcp(lab: Lab, fast: FastPath) -> Iterator[Figure]:
    """Docker's default as it is against the fast path with larger frames."""
    for case in lab.cases:
        usual: list[float] = []
        big: list[float] = []
        for repetition in range(REPETITIONS):
            turns = [lambda: usual.append(_bulk(lab, None, case)), lambda: big.append(_bulk(lab, fast, case))]
            for turn in reversed(turns) if repetition % 2 else turns:
                turn()
        gains = sorted(one / other for one, other in zip(big, usual, strict=True))
        yield Figure(
            f"bulk TCP, {case.name}, with BIG TCP", ">= 2 x",
            f"{statistics.median(gains):.2f} x ({gains[0]:.2f} to {gains[-1]:.2f}); "
            f"{statistics.median(usual):,.0f} / {statistics.median(big):,.0f}",
            "Mbit/s; Docker's default without BIG TCP / fast path with it",
        )  # fmt: skip


def _bulk(lab: Lab, fast: FastPath | None, case: Case) -> float:
    if fast is None:
        return netperf("TCP_STREAM")(case)
    _frames_of(lab, _BIG)
    fast.on()
    try:
        return netperf("TCP_STREAM")(case)
    finally:
        fast.off()
        _frames_of(lab, _USUAL)


def _frames_of(lab: Lab, size: int) -> None:
    """Allow TCP frames of that many bytes on all links."""
    sizes = [word for name in ("gso", "gro") for word in (f"{name}_ipv4_max_size", str(size))]
    for namespace, link in lab.links():
        subprocess.run(inside(namespace, "ip", "link", "set", link, *sizes), check=True)
