"""Measure how much of a connection stays fast while containers come and go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from tests.bench import fastpath_alternating
from tests.bench.report import Figure
from tests.bench.size import sized
from tests.kernel.fastlab import V4, FastLab
from tests.kernel.streams import Stream
from tests.support.churn import OFTEN, Churn, flap, reroute
from tests.support.repeated import Repeated
from tests.support.waiting import wait_until

_RATE = 20
_PACE = 0.001  # seconds from one datagram to the next
_OTHERS = ("NOT_IP", "MULTICAST")  # the bridge floods it


def figures() -> Iterator[Figure]:
    """Measure with unique addresses, with reused ones, and other changes.

    Reused addresses are at another port a moment later.
    """
    yield _figure(f"with {_RATE} new containers a second", ">= 95 %", lambda lab: _churn(lab, 200))
    yield _figure(
        f"with {_RATE} new containers a second that reuse addresses",
        ">= 95 %", lambda lab: _churn(lab, 5),
    )  # fmt: skip
    yield _figure(f"with a container that changes its MAC {OFTEN} times a second", ">= 95 %", flap)
    yield _figure(f"with {OFTEN} changes of a route a second", "(report)", reroute)


def _churn(lab: FastLab, addresses: int) -> Churn:
    return Churn(lab.host, "docker0", "172.17.2", rate=_RATE, addresses=addresses)


def _figure(what: str, target: str, change: Callable[[FastLab], Churn | Repeated]) -> Figure:
    with FastLab() as lab:
        fast = lab.accelerate()
        with Stream(lab, "a", "b", V4["b"], pace=_PACE) as stream:
            assert stream.flows()
            wait_until(lambda: lab.conntrack("dport=6000", "[ASSURED]"), "a settled connection")
            before = fast.status()
            began = time.monotonic()
            with change(lab) as changes:
                wait_until(
                    lambda: changes.done >= sized(5, 1) * _RATE * fastpath_alternating.SECONDS, "changes"
                )
                rate = changes.done / (time.monotonic() - began)
            after = fast.status()
            stream.stop()
            lost = len(stream.lost())
    gained = {name: count - _ports(before).get(name, 0) for name, count in _ports(after).items()}
    total = sum(gained.values())
    return Figure(
        f"fast share of a connection {what}", target,
        f"{gained['FAST'] / total:.1%}; {lost} lost",
        f"{total:,} packets, {rate:.1f} changes a second; {gained.get('PAUSED', 0)} while paused",
    )  # fmt: skip


def _ports(status: dict[str, object]) -> dict[str, int]:
    """Return the packets by verdict, of the links of a and b."""
    found: dict[str, int] = {}
    for row in status["ports"]:  # type: ignore[attr-defined]
        for name, count in row["verdicts"].items() if row["name"] in ("v-a", "v-b") else ():
            if name not in _OTHERS:
                found[name] = found.get(name, 0) + count
    return found
