"""How much of a connection stays fast while other containers come and go."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bench import fastpath_turns
from tests.bench.report import Figure
from tests.kernel.fastlab import V4, FastLab
from tests.kernel.streams import Stream
from tests.support.churn import Churn
from tests.support.waiting import wait_until

_RATE = 20
_PACE = 0.001  # seconds from one datagram to the next
_OTHERS = ("NOT_IP", "MULTICAST")  # what the bridge floods


def figures() -> Iterator[Figure]:
    """With addresses of their own, and with few, each of which is at another port a moment later."""
    yield _figure("", ">= 95 %", addresses=200)
    yield _figure(", who get the addresses of those that went", "(report)", addresses=5)


def _figure(what: str, to_reach: str, addresses: int) -> Figure:
    with FastLab() as lab:
        fast = lab.accelerate()
        with Stream(lab, "a", "b", V4["b"], pace=_PACE) as stream:
            assert stream.flows()
            wait_until(lambda: lab.conntrack("dport=6000", "[ASSURED]"), "a settled connection")
            before = fast.status()
            with Churn(lab.host, "docker0", "172.17.2", rate=_RATE, addresses=addresses) as churn:
                wait_until(lambda: churn.gone >= 5 * _RATE * fastpath_turns.SECONDS, "containers")
            after = fast.status()
            stream.stop()
            lost = len(stream.lost())
    gained = {name: count - _ports(before).get(name, 0) for name, count in _ports(after).items()}
    total = sum(gained.values())
    return Figure(
        f"share of a connection that is fast beside {_RATE} containers a second{what}", to_reach,
        f"{gained['FAST'] / total:.1%}; {lost} lost",
        f"{total:,} packets, {churn.rate:.1f} containers a second; {gained.get('PAUSED', 0)} while paused",
    )  # fmt: skip


def _ports(status: dict[str, object]) -> dict[str, int]:
    """Packets by verdict, of the links of a and b."""
    found: dict[str, int] = {}
    for row in status["ports"]:  # type: ignore[attr-defined]
        for name, count in row["verdicts"].items() if row["name"] in ("v-a", "v-b") else ():
            if name not in _OTHERS:
                found[name] = found.get(name, 0) + count
    return found
