"""Tracked connections, by ctnetlink (net/netfilter/nf_conntrack_netlink.c)."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct

from core.apply.execute.dispatch import execute
from core.apply.kernel import Kernel, inside
from core.netlink.client import NETFILTER, NLA_NESTED, Netlink, attribute
from core.operations import DeleteConnection

# NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE; attributes of linux/netfilter/nfnetlink_conntrack.h.
_CT_DELETE = 0x102
_TUPLE_ORIG, _ID, _ZONE = 1, 12, 18
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SOURCE = {4: 1, 6: 3}  # CTA_IP_V4_SRC, CTA_IP_V6_SRC; the destination's attribute follows each
_PROTO_NUMBER, _PROTO_SPORT, _PROTO_DPORT = 1, 2, 3
_ICMP_ID = {1: 4, 58: 7}  # CTA_PROTO_ICMP_ID, CTA_PROTO_ICMPV6_ID; type and code follow each
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@execute.register
def _(operation: DeleteConnection, kernel: Kernel) -> None:
    with inside(operation.place):
        netlink = Netlink(NETFILTER)
    with netlink:
        # An entry may have its zone in one direction only, and is then found without it: its id tells.
        for zone in sorted({operation.zone, 0}, reverse=True):
            if _forget(operation, zone, netlink):
                return


def forget_all() -> None:
    """Delete every IPv4 entry of the thread's network namespace. Raises OSError."""
    with Netlink(NETFILTER) as netlink:
        netlink.request(_CT_DELETE, bytes([socket.AF_INET, 0, 0, 0]))


def _forget(operation: DeleteConnection, zone: int, netlink: Netlink) -> bool:
    """Delete the entry; False where there is none in that zone. Raises OSError."""
    try:
        netlink.request(_CT_DELETE, _body(operation, zone))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


def _body(operation: DeleteConnection, zone: int) -> bytes:
    family = bytes([_FAMILIES[operation.family], 0, 0, 0])  # struct nfgenmsg
    zone_of = attribute(_ZONE, struct.pack("!H", zone)) if zone else b""
    return family + _tuple(operation) + zone_of + attribute(_ID, struct.pack("!I", operation.entry_id))


def _tuple(operation: DeleteConnection) -> bytes:
    first = _IP_SOURCE[operation.family]
    source, destination = (ipaddress.ip_address(one).packed for one in (operation.src, operation.dst))
    addresses = attribute(first, source) + attribute(first + 1, destination)
    return _nest(_TUPLE_ORIG, _nest(_TUPLE_IP, addresses) + _nest(_TUPLE_PROTO, _ends(operation)))


def _ends(operation: DeleteConnection) -> bytes:
    number = attribute(_PROTO_NUMBER, bytes([operation.l4_proto]))
    sport = struct.pack("!H", operation.sport)
    if first := _ICMP_ID.get(operation.l4_proto):
        kind, code = bytes([operation.dport >> 8]), bytes([operation.dport & 0xFF])
        return number + attribute(first, sport) + attribute(first + 1, kind) + attribute(first + 2, code)
    dport = struct.pack("!H", operation.dport)
    return number + attribute(_PROTO_SPORT, sport) + attribute(_PROTO_DPORT, dport)


def _nest(kind: int, content: bytes) -> bytes:
    return attribute(kind | NLA_NESTED, content)
