"""Measure what counting dropped packets costs: small packets, of which 10 % are dropped."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from bpf.drops import DropCounter
from core.netlink.netns import entered
from tests.bench.fastpath_flood import BATCH, Batch
from tests.bench.report import Figure, PairedRatio, paired
from tests.bench.size import sized
from tests.support.host import ThrowawayHost

PACKETS = sized(1_000_000, 20_000)
REPETITIONS = sized(9, 1)
_OPEN, _DROPPED = 9, 10  # ports
_SHARE = 10  # one batch of so many is dropped
_RULE = f"table ip t {{ chain c {{ type filter hook input priority 0; udp dport {_DROPPED} drop; }}; }}"


def run() -> list[Figure]:
    """Measure CPU time with and without counting, alternating."""
    with _flood() as (host, flood):
        flood()
        ratio = paired(lambda: _counted(host, flood), flood, REPETITIONS)
        many = paired(lambda: _counted(host, flood, containers=500), flood, REPETITIONS)
    return [
        Figure("counting drops", "<= 3 % of throughput", _text(ratio), "CPU time of sending and receiving"),
        Figure(
            "the same, 500 containers", "<= 3 % of throughput", _text(many), "their addresses are looked up"
        ),
    ]


def _text(ratio: PairedRatio) -> str:
    drops = PACKETS // _SHARE
    cost = (ratio.seconds - ratio.reference) / drops * 1e9
    loss = f"{1 - 1 / ratio.median:.1%} (of {PACKETS:,} packets, {drops:,} dropped: about {cost:.0f} ns each)"
    return f"{loss}; {ratio.with_minima()}"


@contextmanager
def _flood() -> Iterator[tuple[ThrowawayHost, Callable[[], float]]]:
    """Yield a function that sends all packets to a neighbour and returns its CPU time."""
    host = ThrowawayHost()
    try:
        host.run("ip link add br0 type bridge")
        host.run("ip addr add 10.7.0.1/24 dev br0")
        host.run("ip link set br0 up")
        host.container("sender", "br0", "10.7.0.2/24")
        host.run(["nft", _RULE])
        with entered(f"/run/netns/{host.name}"):
            sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sink.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
            sink.bind(("10.7.0.1", _OPEN))
        with entered(f"/run/netns/{host.full('sender')}"):
            senders = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
            for sender, port in zip(senders, (_OPEN, _DROPPED), strict=True):
                sender.connect(("10.7.0.1", port))
        yield host, lambda: _send_all(*senders, sink)
    finally:
        host.close()


def _send_all(accepted: socket.socket, dropped: socket.socket, sink: socket.socket) -> float:
    batch, received, sent = Batch(), Batch(), 0
    began = time.process_time()
    while sent < PACKETS:
        is_dropped = sent // BATCH % _SHARE == _SHARE - 1
        sent += batch.send((dropped if is_dropped else accepted).fileno())
        if not is_dropped:
            received.receive(sink.fileno())
    return time.process_time() - began


def _counted(host: ThrowawayHost, flood: Callable[[], float], containers: int = 1) -> float:
    """Return the CPU time while drops are counted, which must find all of them."""
    counter = DropCounter()
    try:
        addresses = [f"10.7.{number // 200}.{number % 200 + 2}" for number in range(containers)]
        counter.set_owners({(host.inode, address) for address in addresses})
        seconds = flood()
        found, uncounted = counter.read()
        drops = sum(one.packets for one in found if one.ns == host.inode and one.reason == "NETFILTER_DROP")
        assert drops >= PACKETS // _SHARE - BATCH and not uncounted, (drops, uncounted)
    finally:
        counter.close()
    return seconds
