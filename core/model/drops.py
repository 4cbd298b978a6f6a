"""Dropped packets: counters by reason, single packets, and high rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Direction = Literal["", "to", "from"]


@dataclass(frozen=True, slots=True)
class Drop:
    """Packets that one kernel function dropped for one reason at one interface.

    `reason` is the kernel's name without "SKB_DROP_REASON_"; `ns` the namespace's inode, 0 if unknown;
    `ifindex` 0 if there is none; `function` "" if the kernel hides it. `address` is a container's that the
    packets went `direction` ("to", "from"), "" if none was recognized. `rate` is in packets a second.
    """

    reason: str
    ns: int
    ifindex: int
    function: str = ""
    address: str = ""
    direction: Direction = ""
    packets: int = 0
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class DroppedPacket:
    """One dropped packet.

    `at` is Unix time, `length` in bytes; ports are 0 if there are none. `where` has reason, namespace,
    interface and function, without counters. `src` is "" if it isn't an IP packet: then `l4_proto` is its
    EtherType.
    """

    at: float
    where: Drop
    length: int
    l4_proto: str = ""
    src: str = ""
    dst: str = ""
    sport: int = 0
    dport: int = 0


@dataclass(frozen=True, slots=True)
class Drops:
    """What was dropped since `since` (Unix time), until `taken_at`.

    `uncounted` packets had no room in the kernel's map. `packets` are the last ones that were reported;
    `reporting` is set while further ones are.
    """

    since: float
    taken_at: float
    drops: tuple[Drop, ...] = ()
    uncounted: int = 0
    packets: tuple[DroppedPacket, ...] = ()
    reporting: bool = False


@dataclass(frozen=True, slots=True)
class HeavyDrop:
    """A high rate of drops that lasts: `rate` in packets a second (about).

    `container` is the uid of the container concerned, "" for a namespace's own packets; `ns` and `ifindex`
    are where most of them were dropped when that began. `function` is set if the kernel gives no reason.
    """

    reason: str
    ns: int
    ifindex: int
    container: str = ""
    rate: float = 0.0
    function: str = ""
