"""Read the host's links and the peers of its veth pairs.

The kernel reports links of other namespaces by their id (IFLA_TARGET_NETNSID), so no namespace is entered
and no socket is opened in one.
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
from core.text import parse_tag

_GETLINK, _GETADDR, _GETROUTE, _GETRULE = 18, 22, 26, 34
_TARGET_NETNSID, _EXT_MASK = 46, 29
_IFLA_XDP, _XDP_ATTACHED = 43, 2
_RTA_METRICS, _RTA_MULTIPATH, _RTA_NH_ID = 8, 9, 30
_GETNEXTHOP, _NHA_ID, _NHA_GROUP = 106, 1, 2
_NHMSG = bytes(8)  # struct nhmsg, any family
# Attributes of routing rules (FRA_*, linux/fib_rules.h) and routes (RTA_*) with which all packets of a flow
# take one route: addresses, ports, links, marks, tables. A type of service, a flow label, a tunnel's key,
# or an unknown attribute may separate them.
_RULE_PLAIN = frozenset({1, 2, 3, 4, 6, 10, 11, *range(13, 25), 28, 29})
_ROUTE_PLAIN = frozenset({*range(1, 10), 11, 12, *range(15, 27), 30})
_RTAX_MTU = 2
_RTMSG = struct.Struct("=BBBBBBBBI")
_IFA_TARGET_NETNSID, _IFA_ADDRESS, _IFA_LOCAL = 10, 1, 2
_STRICT = 12  # NETLINK_GET_STRICT_CHK
_SKIP_STATS = struct.pack("=I", 1 << 3)
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")

# A link of another namespace: the namespace's id (None: the host) and the ifindex there.
PeerKey = tuple[int | None, int]


@dataclass(frozen=True, slots=True)
class Peer:
    """Describe the peer of a veth; `addresses` without prefix lengths."""

    mac: str
    mtu: int
    up: bool
    addresses: tuple[str, ...] = ()
    has_xdp: bool = False


@dataclass(frozen=True, slots=True)
class RouteInfo:
    """Describe the routes, as far as the program's own lookup doesn't.

    `multipath`: a route has several next hops, or a next hop group. `by_packet`: routes or rules depend on
    more than all packets of a flow have in common (type of service, flow label, something unknown). `mtu`:
    the smallest MTU that an IPv4 route names, or 0.
    """

    multipath: bool
    by_packet: bool
    mtu: int


@dataclass(frozen=True, slots=True)
class LinkState:
    """Hold links of the host by ifindex, their peers, and filters of other tools.

    `call_iptables`, `call_ip6tables`: net.bridge.bridge-nf-call-*.
    """

    links: Mapping[int, Link]
    peers: Mapping[PeerKey, Peer] = field(default_factory=dict)
    filters: Filters = field(default_factory=Filters)
    call_iptables: bool = False
    call_ip6tables: bool = False


class LinkReader(Netlink):
    """Read links through an rtnetlink socket with strict checking.

    With it the kernel filters dumps as requested.
    """

    def __init__(self) -> None:
        super().__init__(ROUTE)
        self._socket.setsockopt(SOL_NETLINK, _STRICT, 1)

    def links(self) -> dict[int, Link]:
        """Return the host's own links with their addresses."""
        found = {}
        addresses = links.read_addresses(self)
        for message in self.dump(_GETLINK, _LINK.pack(0, 0, 0, 0, 0) + attribute(_EXT_MASK, _SKIP_STATS)):
            ifindex = _LINK.unpack_from(message.payload)[2]
            found[ifindex] = links.link(message.payload, 0, addresses.get(ifindex, ()))
        return found

    def peers(self, wanted: Iterable[PeerKey]) -> dict[PeerKey, Peer]:
        """Return the peers that were asked for, without those that no longer exist."""
        found: dict[PeerKey, Peer] = {}
        known: dict[int | None, dict[int, tuple[str, ...]]] = {}
        for peer_key in wanted:
            nsid, ifindex = peer_key
            with suppress(OSError):
                if nsid not in known:
                    known[nsid] = self._addresses(nsid)
                found[peer_key] = self._peer(nsid, ifindex, known[nsid].get(ifindex, ()))
        return found

    def _peer(self, nsid: int | None, ifindex: int, addresses: tuple[str, ...]) -> Peer:
        body = _LINK.pack(0, 0, ifindex, 0, 0) + attribute(_EXT_MASK, _SKIP_STATS)
        body += _target(_TARGET_NETNSID, nsid)
        payload = self.request(_GETLINK, body)[0].payload
        link = links.link(payload, 0)
        xdp = attributes(attributes(payload, _LINK.size).get(_IFLA_XDP, b"")).get(_XDP_ATTACHED, b"\0")
        return Peer(link.mac, link.mtu, link.admin_up, addresses, xdp[0] != 0)

    def _addresses(self, nsid: int | None) -> dict[int, tuple[str, ...]]:
        """Return all addresses of a namespace by ifindex."""
        found: dict[int, tuple[str, ...]] = {}
        for family in (socket.AF_INET, socket.AF_INET6):
            body = _ADDRESS.pack(family, 0, 0, 0, 0) + _target(_IFA_TARGET_NETNSID, nsid)
            try:
                messages = self.dump(_GETADDR, body)
            except OSError as error:
                if error.errno in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                    continue  # no IPv6
                raise
            for message in messages:
                ifindex = _ADDRESS.unpack_from(message.payload)[4]
                given = attributes(message.payload, 8)
                own = given.get(_IFA_LOCAL) or given.get(_IFA_ADDRESS, b"")
                found[ifindex] = (*found.get(ifindex, ()), address(own))
        return found

    def route_info(self) -> RouteInfo:
        """Read what the program's own route lookup doesn't report."""
        multipath, by_packet, mtus = False, self._has_rules_by_packet(), []
        groups = self._next_hop_groups()
        for family in (socket.AF_INET, socket.AF_INET6):
            for message in self._routes(family):
                found = attributes(message.payload, _RTMSG.size)
                multipath |= _RTA_MULTIPATH in found or found.get(_RTA_NH_ID) in groups
                by_packet |= _tos(message) != 0 or not found.keys() <= _ROUTE_PLAIN
                if family == socket.AF_INET and _RTA_METRICS in found:
                    mtus.append(_route_mtu(found[_RTA_METRICS]))
        return RouteInfo(multipath, by_packet, min(filter(None, mtus), default=0))

    def _next_hop_groups(self) -> set[bytes]:
        """Return the ids of next hop groups."""
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
            return []  # no IPv6


def _tos(message: Message) -> int:
    """Return the type of service that a route or rule is for, 0 for any."""
    return int(_RTMSG.unpack_from(message.payload)[3])


def _route_mtu(metrics: bytes) -> int:
    return int.from_bytes(attributes(metrics, 0).get(_RTAX_MTU, b""), sys.byteorder)


def _target(attr_type: int, nsid: int | None) -> bytes:
    return b"" if nsid is None else attribute(attr_type, struct.pack("=i", nsid))


ALL = "all"
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0  # seconds until the same request is repeated


def find_bridges(
    targets: Iterable[str], links: Mapping[int, Link], networks: Mapping[str, str]
) -> tuple[set[int], tuple[str, ...]]:
    """Return the ifindexes of the bridges that match these names, and unknown names.

    `networks`: bridges by the names of the engines' networks.
    """
    by_name: dict[str, set[int]] = {}
    for link in links.values():
        if link.kind == "bridge":
            for name in (link.name, *link.altnames, *((parse_tag(link.alias) or {}).get("net") or ())):
                by_name.setdefault(name, set()).add(link.ifindex)
    everything = set().union(*by_name.values())
    found: set[int] = set()
    unknown = []
    for target in targets:
        matches = (
            everything if target == ALL else by_name.get(target) or by_name.get(networks.get(target, ""))
        )
        found |= matches or set()
        if not matches and target != ALL:
            unknown.append(target)
    return found, tuple(unknown)


class EngineNetworks:
    """Read the bridges of the engines' networks on a thread, as an engine may be slow.

    The same request is repeated with growing delays: a network's bridge exists before its engine reports
    it.
    """

    def __init__(self, on_ready: Callable[[], None]) -> None:
        self.networks: Mapping[str, str] = {}
        self._on_ready = on_ready
        self._question: Hashable = None
        self._due, self._delay = 0.0, _FIRST_DELAY
        self._thread: threading.Thread | None = None

    def refresh(self, question: Hashable) -> None:
        """Ask the engines if it is time; `on_ready` is called when their answer is there."""
        now = time.monotonic()
        if question != self._question:
            self._question, self._due, self._delay = question, now, _FIRST_DELAY
        if now >= self._due and (self._thread is None or not self._thread.is_alive()):
            self._due, self._delay = now + self._delay, min(2 * self._delay, _LONGEST_DELAY)
            self._thread = threading.Thread(target=self._read, daemon=True)
            self._thread.start()

    def _read(self) -> None:
        self.networks = engine_networks()
        self._on_ready()


def engine_networks() -> dict[str, str]:
    """Return the bridges of the engines' networks by name and id; engines may be slow."""
    found = {}
    for engine in (engines.read_podman(), engines.read_docker()):
        for network in engine.networks:
            if network.bridge:
                found[network.name] = found[network.id] = network.bridge
    return found
