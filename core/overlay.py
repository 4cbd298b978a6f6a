"""Describe VXLAN overlays: their hosts, and the MACs behind each host.

Everything is derived from VXLAN links, their forwarding tables (RFC 7348) and neighbour entries, so it is the
same for overlays of vnet-tui, Docker Swarm, flannel, Calico and Cilium.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal
from weakref import WeakKeyDictionary

from core.frr_config import GROUP
from core.model import FdbEntry, Link, LinkKey, Neighbour, NetState, Network, Ref
from core.model.link import ALL_ZERO
from core.model.overlay import BgpPeer, Vni
from core.networks import sandbox_of
from core.text import parse_tag
from core.topology import Topology

# Bytes beyond a tunnel's MTU in packets of the underlay, by IP version: inner Ethernet, outer IP, UDP, VXLAN.
OVERHEAD = {4: 14 + 20 + 8 + 8, 6: 14 + 40 + 8 + 8}
# How an entry came about: from packets, by a command, by a routing daemon; "local" is on this host.
Source = Literal["learned", "static", "extern_learn", "local"]
# Links of tools that name theirs always so.
_OWNERS = (
    (re.compile(r"flannel[.-].*"), "flannel"),
    (re.compile(r"vxlan(-v6)?\.calico"), "Calico"),
    (re.compile(r"cilium_vxlan"), "Cilium"),
)
_SWARM = re.compile(r"\d+-[0-9a-z]{10}")
_UNUSABLE = ("failed", "incomplete", "none")


@dataclass(frozen=True, slots=True)
class OverlayMac:
    """A MAC address of an overlay, with the IP addresses that are known for it.

    `container` is the uid of the local container that has it, `link` the bridge port (or the link itself)
    that it is behind on this host. `is_gateway`: this host's bridge has it as well, as each host has the same
    gateway.
    """

    mac: str
    source: Source
    addresses: tuple[str, ...] = ()
    container: str = ""
    link: LinkKey | None = None
    is_gateway: bool = False


@dataclass(frozen=True, slots=True)
class OverlayHost:
    """A host of an overlay, by its address in the underlay (VTEP).

    `source` is that of its entry in the flood list if it is `flooded`, else that of its MACs. `prefixes` are
    routed to it. `session` is the BGP session with it that exchanges EVPN routes, None without one.
    """

    address: str
    source: Source
    flooded: bool = False
    macs: tuple[OverlayMac, ...] = ()
    prefixes: tuple[str, ...] = ()
    session: BgpPeer | None = None

    @property
    def is_local(self) -> bool:
        """Return whether it is this host."""
        return self.source == "local"

    @property
    def is_group(self) -> bool:
        """Return whether the address is a multicast group, which stands for all hosts."""
        return bool(self.address) and ipaddress.ip_address(self.address).is_multicast


@dataclass(frozen=True, slots=True)
class Overlay:
    """An overlay on this host: one VXLAN link.

    `vni` is 0 if packets carry any (`external`). `owner` is "vnet-tui", "Docker Swarm", "flannel", "Calico",
    "Cilium" or "" for other programs. `hosts` begins with this host. `has_flood_list` is False if broadcasts
    aren't sent to other hosts. `underlay_ns` is the namespace whose links carry it, None if unknown.
    """

    link: Link
    vni: int
    owner: str
    network: Network | None
    bridge: Link | None
    local: str
    port: int
    underlay_ns: int | None
    hosts: tuple[OverlayHost, ...] = ()

    @property
    def name(self) -> str:
        """The network's name, or the link's without a network."""
        return self.network.name if self.network else self.link.name

    @property
    def remotes(self) -> tuple[OverlayHost, ...]:
        """The other hosts."""
        return self.hosts[1:]

    @property
    def has_flood_list(self) -> bool:
        """Return whether it sends broadcasts to other hosts."""
        return any(host.flooded for host in self.remotes)

    def overhead(self) -> int:
        """Return the bytes beyond the tunnel's MTU in packets of the underlay."""
        addresses = [host.address for host in self.hosts if host.address]
        return OVERHEAD[6 if any(":" in one for one in addresses) else 4]


def host_ref(overlay: Overlay, host: OverlayHost) -> Ref:
    """Return the ref of a host of an overlay: the tunnel link, and the host's address."""
    return Ref("vtep", (*overlay.link.key, "" if host.is_local else host.address))


_FOUND: WeakKeyDictionary[Topology, tuple[Overlay, ...]] = WeakKeyDictionary()


def overlays(topology: Topology) -> tuple[Overlay, ...]:
    """Return all overlays, the host's first; cached."""
    if topology not in _FOUND:
        tunnels = [link for link in topology.snapshot.links() if link.kind == "vxlan"]
        tunnels.sort(key=lambda link: (link.ns != topology.host, topology.label(link.ns), link.name))
        tables = {ns: _Tables(topology.snapshot.nets[ns]) for ns in {link.ns for link in tunnels}}
        _FOUND[topology] = tuple(_overlay(topology, tables[link.ns], link) for link in tunnels)
    return _FOUND[topology]


def overlay_of(topology: Topology, link: LinkKey) -> Overlay | None:
    """Return the overlay of a VXLAN link or its bridge."""
    for one in overlays(topology):
        if link == one.link.key or (one.bridge is not None and link == one.bridge.key):
            return one
    return None


def find_host(topology: Topology, ref: Ref) -> tuple[Overlay, OverlayHost] | None:
    """Return the host of a ref with its overlay, None if it is gone."""
    overlay = overlay_of(topology, LinkKey(int(ref.key[0]), int(ref.key[1])))
    if overlay is None:
        return None
    return next(((overlay, one) for one in overlay.hosts if host_ref(overlay, one) == ref), None)


def owner_of(topology: Topology, link: Link, network: Network | None) -> str:
    """Return the program that created a VXLAN link, "" if unknown."""
    if "tunnel" in (parse_tag(link.alias) or ()):
        return "vnet-tui"
    space = topology.snapshot.namespaces.get(link.ns)
    names = (sandbox_of(space), *space.names) if space else ()
    if (network is not None and network.engine == "docker") or any(map(_SWARM.fullmatch, names)):
        return "Docker Swarm"
    return next((owner for pattern, owner in _OWNERS if pattern.fullmatch(link.name)), "")


class _Tables:
    """Forwarding and neighbour entries of a namespace by link."""

    def __init__(self, net: NetState) -> None:
        self.net = net
        self.fdb: dict[int, list[FdbEntry]] = {}
        for entry in net.fdb:
            self.fdb.setdefault(entry.port, []).append(entry)
        self.neighbours: dict[int, list[Neighbour]] = {}
        for neighbour in usable(net.neighbours):
            self.neighbours.setdefault(neighbour.ifindex, []).append(neighbour)


def usable(neighbours: Iterable[Neighbour]) -> Iterator[Neighbour]:
    """Iterate over the entries that have a MAC address."""
    return (one for one in neighbours if one.mac and not one.proxy and one.state not in _UNUSABLE)


@dataclass(slots=True)
class _Host:
    """A remote host while its entries are collected."""

    flood: FdbEntry | None = None
    entries: list[FdbEntry] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)


def _overlay(topology: Topology, tables: _Tables, link: Link) -> Overlay:
    bridge = topology.master_of(link)
    network = topology.network_of(link) if bridge else None
    underlay_ns = link.ns if link.lower_nsid is None else tables.net.nsids.get(link.lower_nsid)
    ends = tuple(local_ends(topology, bridge, link))
    known = _addresses(topology, tables, link, bridge, ends)
    local = str(link.details.get("local", ""))
    own = OverlayHost(local, "local", macs=tuple(_local_macs(topology, tables, link, bridge, ends, known)))
    gateway = bridge.mac if bridge else ""
    sessions = _sessions(topology, link)
    # Peers announce the overlays that they have joined. Of those without a session that is unknown, and
    # those that have joined none pass on what others announce.
    elsewhere = {one for vni in topology.snapshot.frr.vnis for one in vni.remotes}
    hosts = {
        address: _Host()
        for address, one in sessions.items()
        if one.group == GROUP and (one.state != "Established" or address not in elsewhere)
    }
    hosts |= _remote_hosts(tables, link)
    announced = {one for vni in _vnis(topology, link) for one in vni.remotes} | sessions.keys()
    remotes = (
        _remote(address, one, known, gateway, sessions.get(address), address in announced)
        for address, one in hosts.items()
    )
    return Overlay(
        link,
        int(link.details.get("vni", 0)),
        owner_of(topology, link, network),
        network,
        bridge,
        local,
        int(link.details.get("port", 0)),
        underlay_ns,
        (own, *sorted(remotes, key=lambda host: _by_address(host.address))),
    )


def _by_address(address: str) -> tuple[int, int]:
    parsed = ipaddress.ip_address(address)
    return parsed.version, int(parsed)


def local_ends(topology: Topology, bridge: Link | None, tunnel: Link) -> Iterator[tuple[Link, Link]]:
    """Iterate over the ports of an overlay's bridge, each with its end in a container."""
    for port in topology.ports_of(bridge.key) if bridge else ():
        end = topology.peer(port)
        if end is not None and port.key != tunnel.key and topology.master_of(end) is None:
            yield port, end


def _remote_hosts(tables: _Tables, link: Link) -> Mapping[str, _Host]:
    """Group the forwarding entries of a tunnel by remote host, with routed prefixes."""
    found: dict[str, _Host] = {}
    by_mac: dict[str, str] = {}
    for entry in tables.fdb.get(link.ifindex, ()):
        if entry.dst and entry.bridge is None:
            host = found.setdefault(entry.dst, _Host())
            if entry.mac == ALL_ZERO:
                host.flood = entry
            else:
                host.entries.append(entry)
                by_mac[entry.mac] = entry.dst
    if link.master is None and by_mac:
        macs = {one.address: one.mac for one in tables.neighbours.get(link.ifindex, ())}
        for route in tables.net.routes:
            for hop in route.nexthops:
                if hop.ifindex == link.ifindex and hop.gateway:
                    address = by_mac.get(macs.get(hop.gateway, ""))
                    if address:
                        found[address].prefixes.append(route.dst)
    return found


def _sessions(topology: Topology, link: Link) -> Mapping[str, BgpPeer]:
    """Map addresses to BGP sessions, if FRRouting handles the VNI of a tunnel."""
    return {one.address: one for one in topology.snapshot.frr.peers} if is_evpn(topology, link) else {}


def is_evpn(topology: Topology, link: Link) -> bool:
    """Return whether FRRouting exchanges EVPN routes for a tunnel."""
    return bool(_vnis(topology, link))


def _vnis(topology: Topology, link: Link) -> list[Vni]:
    """Return what FRRouting knows of a tunnel's VNI, or nothing."""
    known = topology.snapshot.frr.vnis if link.ns == topology.host else ()
    return [one for one in known if one.link == link.name]


def _remote(
    address: str,
    found: _Host,
    known: Mapping[str, tuple[str, ...]],
    gateway: str,
    session: BgpPeer | None,
    announced: bool,
) -> OverlayHost:
    sources = [source_of(one) for one in found.entries]
    if found.flood:
        sources = [source_of(found.flood)]
    if announced:  # FRRouting doesn't mark its entries of the flood list
        sources = ["extern_learn"]
    return OverlayHost(
        address,
        min(sources, key=("extern_learn", "static", "learned").index),
        found.flood is not None,
        tuple(
            OverlayMac(one.mac, source_of(one), known.get(one.mac, ()), is_gateway=one.mac == gateway)
            for one in found.entries
        ),
        tuple(dict.fromkeys(found.prefixes)),
        session,
    )


def source_of(entry: FdbEntry) -> Source:
    """Return how a forwarding entry came about."""
    if "extern_learn" in entry.flags:
        return "extern_learn"
    return "learned" if entry.state == "learned" else "static"


def _addresses(
    topology: Topology, tables: _Tables, link: Link, bridge: Link | None, ends: Iterable[tuple[Link, Link]]
) -> Mapping[str, tuple[str, ...]]:
    """Map MACs to addresses, by neighbour entries of the host and its containers."""
    found: dict[str, dict[str, None]] = {}
    for one in (link, bridge):
        for neighbour in tables.neighbours.get(one.ifindex, ()) if one else ():
            found.setdefault(neighbour.mac, {})[neighbour.address] = None
    for _, end in ends:
        net = topology.snapshot.nets.get(end.ns)
        for neighbour in usable(net.neighbours) if net else ():
            if neighbour.ifindex == end.ifindex:
                found.setdefault(neighbour.mac, {})[neighbour.address] = None
    for known in topology.snapshot.frr.neighbors if is_evpn(topology, link) else ():
        if known.vni == link.details.get("vni"):
            found.setdefault(known.mac, {})[known.address] = None
    return {mac: _sorted(addresses) for mac, addresses in found.items()}


def _sorted(addresses: Iterable[str]) -> tuple[str, ...]:
    """Return addresses, IPv4 first, without those of IPv6 that are link-local."""
    kept = [one for one in addresses if not one.startswith("fe80:")]
    return tuple(kept) if len(kept) < 2 else tuple(sorted(kept, key=_by_address))


def _local_macs(
    topology: Topology,
    tables: _Tables,
    link: Link,
    bridge: Link | None,
    ends: Iterable[tuple[Link, Link]],
    known: Mapping[str, tuple[str, ...]],
) -> Iterator[OverlayMac]:
    """Iterate over this host's own: gateway, containers, and what its ports learned."""
    own = bridge or link
    yield OverlayMac(own.mac, "local", _own_addresses(own), link=own.key, is_gateway=bridge is not None)
    seen = {own.mac, link.mac}
    for port, end in ends:
        container = topology.container_of(end.ns)
        seen |= {port.mac, end.mac}
        yield OverlayMac(
            end.mac, "local", _own_addresses(end), container.uid if container else "", port.key
        )  # fmt: skip
    for port in topology.ports_of(bridge.key) if bridge else ():
        for entry in tables.fdb.get(port.ifindex, ()) if port.key != link.key else ():
            if entry.bridge is not None and entry.state != "permanent" and entry.mac not in seen:
                seen.add(entry.mac)
                yield OverlayMac(entry.mac, source_of(entry), known.get(entry.mac, ()), link=port.key)


def _own_addresses(link: Link) -> tuple[str, ...]:
    return _sorted(one.address for one in link.addresses if one.scope != "link")
