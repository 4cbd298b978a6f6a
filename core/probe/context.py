"""Read the conntrack entry of a probe, and the neighbour entry of its next hop."""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import Any

from core.collect.conntrack_decode import Decoder
from core.collect.routes import read_neighbours
from core.flows.describe import address_text
from core.model.probe import PacketTuple, Tracked, UnresolvedNeighbour
from core.netlink.client import (
    NETFILTER,
    NLM_F_REQUEST,
    ROUTE,
    Netlink,
    attribute,
    attributes,
    message,
    u32,
)
from core.netlink.nfnetlink import header, nest
from core.probe.packets import ECHO_REQUESTS, ICMP, ICMPV6, TCP, UDP

# linux/netfilter/nfnetlink_conntrack.h, rtnetlink.h
_CT_GET, _TUPLE_ORIG, _TUPLE_IP, _TUPLE_PROTO = 0x101, 1, 1, 2
_GET_ROUTE, _RTMSG = 26, struct.Struct("=BBBBBBBBI")
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_UNRESOLVED = ("incomplete", "failed")
_PROTOCOLS = {"tcp": TCP, "udp": UDP}
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


def read_tracked(netlink: Netlink, ns: int, addresses: PacketTuple) -> Tracked | None:
    """Return the conntrack entry of a request, None without one.

    `netlink` is a NETFILTER socket of the namespace `ns`; entries of zones aren't found."""
    family = ipaddress.ip_address(addresses.src).version
    body = header(_FAMILIES[family]) + nest(_TUPLE_ORIG, *_tuple(addresses, family))
    try:
        (answer,) = netlink.exchange(message(_CT_GET, NLM_F_REQUEST, 0, body), 1)
    except OSError:
        return None
    decoder = Decoder(1)
    decoder.feed(answer)
    rows = decoder.entries
    if not len(rows):
        return None
    return Tracked(ns, _end(rows[0], "orig", addresses), _end(rows[0], "reply", addresses))


def _tuple(addresses: PacketTuple, family: int) -> tuple[bytes, bytes]:
    first = 1 if family == 4 else 3
    octets = [ipaddress.ip_address(one).packed for one in (addresses.src, addresses.dst)]
    ip = nest(_TUPLE_IP, attribute(first, octets[0]), attribute(first + 1, octets[1]))
    if addresses.protocol == "icmp":
        number, base = (ICMP, 4) if family == 4 else (ICMPV6, 7)
        parts = [
            attribute(base, struct.pack("!H", addresses.sport)),
            attribute(base + 1, bytes([ECHO_REQUESTS[number]])), attribute(base + 2, bytes(1)),
        ]  # fmt: skip
    else:
        number = _PROTOCOLS[addresses.protocol]
        ports = (addresses.sport, addresses.dport)
        parts = [attribute(kind, struct.pack("!H", port)) for kind, port in enumerate(ports, 2)]
    return ip, nest(_TUPLE_PROTO, attribute(1, bytes([number])), *parts)


def _end(row: Any, side: str, sent: PacketTuple) -> PacketTuple:
    sport, dport = int(row[f"{side}_sport"]), int(row[f"{side}_dport"])
    if sent.protocol == "icmp":  # conntrack has type and code as port
        dport = sent.dport
    src, dst = (address_text(row[f"{side}_{end}"].tobytes()) for end in ("src", "dst"))
    return PacketTuple(sent.protocol, src, sport, dst, dport)


def read_unresolved(route: Netlink, ns: int, target: str) -> UnresolvedNeighbour | None:
    """Return the next hop to `target` if ARP or NDP doesn't find its MAC.

    `route` is a ROUTE socket of the namespace `ns`."""
    address = ipaddress.ip_address(target)
    family = _FAMILIES[address.version]
    body = _RTMSG.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    try:
        found = route.request(_GET_ROUTE, body + attribute(_RTA_DST, address.packed))
        given = attributes(found[0].payload, _RTMSG.size)
        hop = str(ipaddress.ip_address(given.get(_RTA_GATEWAY) or address.packed))
        entries = read_neighbours(route)
    except (OSError, IndexError, ValueError):
        return None
    ifindex = u32(given.get(_RTA_OIF, bytes(4)))
    return next(
        (
            UnresolvedNeighbour(ns, ifindex, hop, one.state)
            for one in entries
            if (one.ifindex, one.address) == (ifindex, hop) and one.state in _UNRESOLVED and not one.proxy
        ),
        None,
    )


def open_sockets() -> tuple[Netlink, Netlink]:
    """Open sockets of the thread's namespace for `read_tracked` and `read_unresolved`."""
    netfilter = Netlink(NETFILTER)
    try:
        return netfilter, Netlink(ROUTE)
    except BaseException:
        netfilter.close()
        raise
