"""What the fast path must know of the host: its links, and what is at the far end of its veth pairs.

The kernel tells about links of other namespaces by their id (IFLA_TARGET_NETNSID), so no namespace is ever
entered and no socket opened in one.
"""

from __future__ import annotations

import errno
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from bpf.hooks import Filters
from core.collect import engines, links
from core.collect.link_kinds import address
from core.model import Link
from core.netlink.client import ROUTE, SOL_NETLINK, Message, Netlink, attribute, attributes
from core.tags import words_of

_GETLINK, _GETADDR, _GETROUTE, _GETRULE = 18, 22, 26, 34
_TARGET_NETNSID, _EXT_MASK = 46, 29
_IFLA_XDP, _XDP_ATTACHED = 43, 2
_RTA_METRICS, _RTA_MULTIPATH, _RTA_NH_ID = 8, 9, 30
_GETNEXTHOP, _NHA_ID, _NHA_GROUP = 106, 1, 2
_NHMSG = bytes(8)  # struct nhmsg: of any family
# What routing rules (FRA_*, linux/fib_rules.h) and routes (RTA_*) may ask for so that all packets of a flow
# take one way: addresses, ports, links, marks, tables. A type of service, a flow label, a tunnel's key, or
# what is not known here, may tell them apart.
_RULE_PLAIN = frozenset({1, 2, 3, 4, 6, 10, 11, *range(13, 25), 28, 29})
_ROUTE_PLAIN = frozenset({*range(1, 10), 11, 12, *range(15, 27), 30})
_RTAX_MTU = 2
_RTMSG = struct.Struct("=BBBBBBBBI")
_IFA_TARGET_NETNSID, _IFA_ADDRESS, _IFA_LOCAL = 10, 1, 2
_STRICT = 12  # NETLINK_GET_STRICT_CHK
_SKIP_STATS = struct.pack("=I", 1 << 3)
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")

# A link of another namespace: (its namespace's id here, None for the host itself; its ifindex there).
Far = tuple[int | None, int]


@dataclass(frozen=True, slots=True)
class End:
    """The far end of a veth pair: what the fast path must know of it. `addresses` without prefix lengths."""

    mac: str
    mtu: int
    up: bool
    addresses: tuple[str, ...] = ()
    has_xdp: bool = False


@dataclass(frozen=True, slots=True)
class RouteFacts:
    """`multipath`: whether a route has several next hops, or an object that stands for several; `by_packet`:
    whether routes or rules ask for more than all packets of a flow have in common (the type of service, the
    flow label, something unknown); `mtu`: the smallest one that an IPv4 route names, 0 where none does."""

    multipath: bool
    by_packet: bool
    mtu: int


@dataclass(frozen=True, slots=True)
class Scene:
    """Links of the host by ifindex, far ends of its veth pairs, filters and programs of others, and what
    br_netfilter is told (net.bridge.bridge-nf-call-*)."""

    links: Mapping[int, Link]
    ends: Mapping[Far, End] = field(default_factory=dict)
    filters: Filters = field(default_factory=Filters)
    call_iptables: bool = False
    call_ip6tables: bool = False


class Kernel(Netlink):
    """An rtnetlink socket in the host's namespace that filters dumps as it is told (strict checking)."""

    def __init__(self) -> None:
        super().__init__(ROUTE)
        self._socket.setsockopt(SOL_NETLINK, _STRICT, 1)

    def links(self) -> dict[int, Link]:
        """The host's own links with their addresses."""
        found = {}
        addresses = links.read_addresses(self)
        for message in self.dump(_GETLINK, _LINK.pack(0, 0, 0, 0, 0) + attribute(_EXT_MASK, _SKIP_STATS)):
            ifindex = _LINK.unpack_from(message.payload)[2]
            found[ifindex] = links.link(message.payload, 0, addresses.get(ifindex, ()))
        return found

    def ends(self, wanted: Iterable[Far]) -> dict[Far, End]:
        """The far ends asked for, without those that are gone meanwhile."""
        found: dict[Far, End] = {}
        known: dict[int | None, dict[int, tuple[str, ...]]] = {}
        for far in wanted:
            nsid, ifindex = far
            with suppress(OSError):
                if nsid not in known:
                    known[nsid] = self._addresses(nsid)
                found[far] = self._end(nsid, ifindex, known[nsid].get(ifindex, ()))
        return found

    def _end(self, nsid: int | None, ifindex: int, addresses: tuple[str, ...]) -> End:
        body = _LINK.pack(0, 0, ifindex, 0, 0) + attribute(_EXT_MASK, _SKIP_STATS)
        body += _target(_TARGET_NETNSID, nsid)
        payload = self.request(_GETLINK, body)[0].payload
        there = links.link(payload, 0)
        xdp = attributes(attributes(payload, _LINK.size).get(_IFLA_XDP, b"")).get(_XDP_ATTACHED, b"\0")
        return End(there.mac, there.mtu, there.admin_up, addresses, xdp[0] != 0)

    def _addresses(self, nsid: int | None) -> dict[int, tuple[str, ...]]:
        """All addresses of a namespace by ifindex."""
        found: dict[int, tuple[str, ...]] = {}
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _ADDRESS.pack(family, 0, 0, 0, 0) + _target(_IFA_TARGET_NETNSID, nsid)
            try:
                messages = self.dump(_GETADDR, body)
            except OSError as error:
                if error.errno in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                    continue  # without IPv6
                raise
            for message in messages:
                ifindex = _ADDRESS.unpack_from(message.payload)[4]
                given = attributes(message.payload, 8)
                own = given.get(_IFA_LOCAL) or given.get(_IFA_ADDRESS, b"")
                found[ifindex] = (*found.get(ifindex, ()), address(own))
        return found

    def route_facts(self) -> RouteFacts:
        """What the program's own lookup of routes does not tell."""
        multipath, by_packet, mtus = False, self._has_rules_by_packet(), []
        groups = self._next_hop_groups()
        for family in (socket.AF_INET, socket.AF_INET6):
            for message in self._routes(family):
                found = attributes(message.payload, _RTMSG.size)
                multipath |= _RTA_MULTIPATH in found or found.get(_RTA_NH_ID) in groups
                by_packet |= _tos(message) != 0 or not found.keys() <= _ROUTE_PLAIN
                if family == socket.AF_INET and _RTA_METRICS in found:
                    mtus.append(_route_mtu(found[_RTA_METRICS]))
        return RouteFacts(multipath, by_packet, min(filter(None, mtus), default=0))

    def _next_hop_groups(self) -> set[bytes]:
        """The ids of the next hop objects that stand for several."""
        try:
            messages = self.dump(_GETNEXTHOP, _NHMSG)
        except OSError:
            return set()
        found = (attributes(message.payload, len(_NHMSG)) for message in messages)
        return {given[_NHA_ID] for given in found if _NHA_GROUP in given}

    def _has_rules_by_packet(self) -> bool:
        return any(
            _tos(message) or not attributes(message.payload, _RTMSG.size).keys() <= _RULE_PLAIN
            for family in (socket.AF_INET, socket.AF_INET6)
            for message in self._routes(family, _GETRULE)
        )

    def _routes(self, family: int, kind: int = _GETROUTE) -> list[Message]:
        try:
            return self.dump(kind, _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0))
        except OSError:
            return []  # without IPv6


def _tos(message: Message) -> int:
    """The type of service that a route or rule is for, 0 for any."""
    return int(_RTMSG.unpack_from(message.payload)[3])


def _route_mtu(metrics: bytes) -> int:
    return int.from_bytes(attributes(metrics, 0).get(_RTAX_MTU, b""), sys.byteorder)


def _target(attr_type: int, nsid: int | None) -> bytes:
    return b"" if nsid is None else attribute(attr_type, struct.pack("=i", nsid))


ALL = "all"
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds until the engines are asked the same again


def bridges_of(
    targets: Iterable[str], links: Mapping[int, Link], networks: Mapping[str, str]
) -> tuple[set[int], tuple[str, ...]]:
    """The ifindexes of the bridges that these names mean, and the names that mean none; `networks` are
    bridges by the names of the engines' networks."""
    by_name: dict[str, set[int]] = {}
    for link in links.values():
        if link.kind == "bridge":
            for name in (link.name, *link.altnames, *((words_of(link.alias) or {}).get("net") or ())):
                by_name.setdefault(name, set()).add(link.ifindex)
    everything = set().union(*by_name.values())
    found: set[int] = set()
    unknown = []
    for target in targets:
        meant = everything if target == ALL else by_name.get(target) or by_name.get(networks.get(target, ""))
        found |= meant or set()
        if not meant and target != ALL:
            unknown.append(target)
    return found, tuple(unknown)


class EngineNames:
    """The bridges of the engines' networks by their names, asked for aside: an engine may take its time.

    The same question is asked again, ever more rarely: a network's bridge is there before its engine tells of
    the network."""

    def __init__(self, ready: Callable[[], None]) -> None:
        self.networks: Mapping[str, str] = {}
        self._ready = ready
        self._question: Hashable = None
        self._due, self._pause = 0.0, _FIRST_PAUSE
        self._thread: threading.Thread | None = None

    def ask(self, question: Hashable) -> None:
        """Ask the engines, if it is time, and not under way; `ready` is called when their answer is there."""
        now = time.monotonic()
        if question != self._question:
            self._question, self._due, self._pause = question, now, _FIRST_PAUSE
        if now >= self._due and (self._thread is None or not self._thread.is_alive()):
            self._due, self._pause = now + self._pause, min(2 * self._pause, _LONGEST_PAUSE)
            self._thread = threading.Thread(target=self._read, daemon=True)
            self._thread.start()

    def _read(self) -> None:
        self.networks = engine_networks()
        self._ready()


def engine_networks() -> dict[str, str]:
    """The bridges of the engines' networks by these networks' names and ids; an engine may take its time."""
    found = {}
    for engine in (engines.read_podman(), engines.read_docker()):
        for network in engine.networks:
            if network.bridge:
                found[network.name] = found[network.id] = network.bridge
    return found
