"""The operation on conntrack entries (conntrack(8)), by ctnetlink. It has no undo."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from dataclasses import dataclass
from typing import ClassVar

from core.netlink.client import NETFILTER, NLA_NESTED, Netlink, attribute
from core.operations.base import Operation
from core.operations.executor import Executor, inside
from core.operations.values import HOST, NetnsTarget, recorded
from core.text import end_text

_NAMES = {6: "tcp", 17: "udp", 33: "dccp", 132: "sctp", 136: "udplite"}
_ICMP = {1: "icmp", 58: "icmpv6"}
_GRE = 47  # conntrack(8) knows its keys by its name only

# NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE; attributes of linux/netfilter/nfnetlink_conntrack.h.
_CT_DELETE = 0x102
_TUPLE_ORIG, _ID, _ZONE = 1, 12, 18
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SOURCE = {4: 1, 6: 3}  # CTA_IP_V4_SRC, CTA_IP_V6_SRC; the destination's attribute follows each
_PROTO_NUMBER, _PROTO_SPORT, _PROTO_DPORT = 1, 2, 3
_ICMP_ID = {1: 4, 58: 7}  # CTA_PROTO_ICMP_ID, CTA_PROTO_ICMPV6_ID; type and code follow each
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@recorded()
@dataclass(frozen=True, slots=True)
class DeleteConnection(Operation):
    """Delete one conntrack entry, given by its original direction and `zone`.

    `sport` and `dport` are in host order; for ICMP they hold the echo id, and type << 8 | code. `entry_id` is
    the id of the entry, so that a later connection of the same addresses and ports is not deleted; the
    printed command can express neither it nor a zone of one direction only. An entry that doesn't exist
    counts as deleted.
    """

    is_final: ClassVar[bool] = True

    src: str
    dst: str
    l4_proto: int
    sport: int
    dport: int
    entry_id: int
    place: NetnsTarget = HOST
    zone: int = 0

    @property
    def family(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.src else 4

    def command(self) -> str:
        words = [
            "conntrack -D",
            f"-f ipv{self.family}",
            f"-p {self._protocol}",
            f"-s {self.src} -d {self.dst}",
        ]
        return self.place.inside(" ".join([*words, *self._ports(), f"-w {self.zone}"]))

    @property
    def _protocol(self) -> str:
        names = _NAMES | _ICMP | {_GRE: "gre"}
        return names.get(self.l4_proto) or str(self.l4_proto)

    def _ports(self) -> list[str]:
        if name := _ICMP.get(self.l4_proto):
            kind, code = self.dport >> 8, self.dport & 0xFF
            return [f"--{name}-type {kind} --{name}-code {code} --{name}-id {self.sport}"]
        if not (self.sport or self.dport):
            return []
        if self.l4_proto == _GRE:
            return [f"--srckey {self.sport} --dstkey {self.dport}"]
        return [f"--sport {self.sport} --dport {self.dport}"] if self.l4_proto in _NAMES else []

    def inverse(self) -> tuple[DeleteConnection, ...]:
        return ()

    def describe(self) -> str:
        where = f" in {self.place}" if self.place != HOST else ""
        return f"delete the {self._protocol} connection {self._end(0)} -> {self._end(1)}{where}"

    def _end(self, which: int) -> str:
        address, port = ((self.src, self.sport), (self.dst, self.dport))[which]
        if self.l4_proto not in _NAMES:
            return address
        return end_text(address, port)

    def affects(self) -> tuple[str, ...]:
        return ()  # nothing builds on a connection, and nothing brings it back

    def execute(self, executor: Executor) -> None:
        with inside(self.place):
            netlink = Netlink(NETFILTER)
        with netlink:
            # An entry may have its zone in one direction only, and is then found without it, by its id.
            for zone in sorted({self.zone, 0}, reverse=True):
                if self._delete(zone, netlink):
                    return

    def _delete(self, zone: int, netlink: Netlink) -> bool:
        """Delete the entry; return False if there is none in that zone. Raises OSError."""
        try:
            netlink.request(_CT_DELETE, self._body(zone))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        return True

    def _body(self, zone: int) -> bytes:
        family = bytes([_FAMILIES[self.family], 0, 0, 0])  # struct nfgenmsg
        zone_of = attribute(_ZONE, struct.pack("!H", zone)) if zone else b""
        return family + self._tuple() + zone_of + attribute(_ID, struct.pack("!I", self.entry_id))

    def _tuple(self) -> bytes:
        first = _IP_SOURCE[self.family]
        source, destination = (ipaddress.ip_address(one).packed for one in (self.src, self.dst))
        addresses = attribute(first, source) + attribute(first + 1, destination)
        return _nest(_TUPLE_ORIG, _nest(_TUPLE_IP, addresses) + _nest(_TUPLE_PROTO, self._ends()))

    def _ends(self) -> bytes:
        number = attribute(_PROTO_NUMBER, bytes([self.l4_proto]))
        sport = struct.pack("!H", self.sport)
        if first := _ICMP_ID.get(self.l4_proto):
            kind, code = bytes([self.dport >> 8]), bytes([self.dport & 0xFF])
            return number + attribute(first, sport) + attribute(first + 1, kind) + attribute(first + 2, code)
        dport = struct.pack("!H", self.dport)
        return number + attribute(_PROTO_SPORT, sport) + attribute(_PROTO_DPORT, dport)


def delete_all() -> None:
    """Delete all IPv4 entries of the thread's network namespace. Raises OSError."""
    with Netlink(NETFILTER) as netlink:
        netlink.request(_CT_DELETE, bytes([socket.AF_INET, 0, 0, 0]))


def _nest(kind: int, content: bytes) -> bytes:
    return attribute(kind | NLA_NESTED, content)
