"""Observe the drops of one probe by the tracepoint skb:kfree_skb."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bpf.drops import DropCounter
from core.model import DroppedPacket
from core.model.probe import DropEvent, PacketTuple

_LATE = 0.02  # seconds in which the kernel still reports the last packet


@contextmanager
def observe_drops(sent: PacketTuple) -> Iterator[Sequence[DropEvent]]:
    """Record the dropped packets of a probe. Raises DropsUnavailable."""
    counter, events = DropCounter(), list[DropEvent]()
    try:
        counter.report(True)
        yield events
        time.sleep(_LATE)
        events += [_event(one) for one in counter.packets() if _belongs(one, sent)]
    finally:
        counter.close()


def _belongs(packet: DroppedPacket, sent: PacketTuple) -> bool:
    """Return whether a packet is the probe or its answer, perhaps translated."""
    if packet.l4_proto.removesuffix("v6") != sent.protocol:
        return False
    if sent.protocol == "icmp":
        return {packet.src, packet.dst} == {sent.src, sent.dst}
    return bool({packet.sport, packet.dport} & {sent.sport}) and bool(
        {packet.src, packet.dst} & {sent.src, sent.dst}
    )


def _event(packet: DroppedPacket) -> DropEvent:
    where = packet.where
    addresses = PacketTuple(
        packet.l4_proto.removesuffix("v6"), packet.src, packet.sport, packet.dst, packet.dport
    )
    return DropEvent(packet.at, where.reason, where.function, where.ns, where.ifindex, addresses)
