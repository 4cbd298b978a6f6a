"""Follow packets of an overlay into its tunnel and through the underlay."""

from __future__ import annotations

from dataclasses import dataclass

from core.model import Link, Neighbour, link_ref
from core.model.link import FdbEntry
from core.overlay import Overlay, overlay_of, source_of
from core.reach.answer import Hop
from core.reach.hooks import CLIENT_PORT, HookedPacket, Index, Stopped
from core.reach.packet import Hook, Packet
from core.reach.routing import RoutingTables
from core.text import join_short


@dataclass(frozen=True, slots=True)
class Underlay:
    """How packets to the other hosts leave: the link with the least MTU, if known.

    `unreachable` are the hosts without a route, `silent` those that don't answer ARP or ND.
    """

    link: Link | None = None
    unreachable: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()

    @property
    def mtu(self) -> int:
        """The MTU of the link, 0 if unknown."""
        return self.link.mtu if self.link else 0


def underlay_of(index: Index, overlay: Overlay) -> Underlay:
    """Look up the routes to the other hosts of an overlay."""
    tables = _tables(index, overlay)
    if tables is None:
        return Underlay()
    links, unreachable = [], []
    for host in overlay.remotes:
        link = _link_to_host(tables, overlay, host.address)
        if link is not None:
            links.append(link)
        elif not host.is_group:
            unreachable.append(host.address)
    # While packets are sent to a host that is down, its entry alternates between these states.
    failed = {one.address for one in tables.net.neighbours if one.state in ("failed", "incomplete")}
    silent = (host.address for host in overlay.remotes if host.address in failed)
    if not links:
        fixed = _fixed_link(tables, overlay)
        own = (one for one in tables.net.links.values() if has_address(one, overlay.local))
        links = [fixed] if fixed else [*own]
    return Underlay(min(links, key=lambda link: link.mtu, default=None), tuple(unreachable), tuple(silent))


def _tables(index: Index, overlay: Overlay) -> RoutingTables | None:
    return index.tables(overlay.underlay_ns) if overlay.underlay_ns is not None else None


def link_to(tables: RoutingTables, packet: Packet, oif: str = "") -> Link | None:
    """Return the link by which a tunnel's packet leaves, None without a route."""
    lookup = tables.lookup(packet, oif=oif)
    found = tables.net.links.get(lookup.hop.ifindex or 0) if lookup.hop else None
    return None if lookup.end else found


def _link_to_host(tables: RoutingTables, overlay: Overlay, address: str) -> Link | None:
    """Return the link by which packets to another host leave, None without a route.

    Only those to the host or group that the tunnel was created with are bound to its link
    (vxlan_xmit_one): forwarding entries are routed as all packets.
    """
    fixed = _fixed_link(tables, overlay) if address == overlay.link.details.get("remote") else None
    packet = Packet(overlay.local, address, "udp", dport=overlay.port)
    return link_to(tables, packet, fixed.name if fixed else "")


def _fixed_link(tables: RoutingTables, overlay: Overlay) -> Link | None:
    """Return the link that a tunnel was created on (`dev`), None for none."""
    return tables.net.links.get(int(overlay.link.details.get("link", 0)))


def has_address(link: Link, address: str) -> bool:
    """Return whether a link has an address."""
    return any(one.address == address for one in link.addresses)


_LISTED = 4
# Hosts whose packets are evaluated: more seldom differ, and each takes all rules.
_MOST_HOSTS = 32


def blocked_tunnel(index: Index, overlay: Overlay, only: str = "") -> tuple[Hop, tuple[str, ...]] | None:
    """Return what drops a tunnel's packets, and the hosts concerned.

    None if nothing drops them, or that isn't known. The source port of each packet depends on the packet
    inside, so conntrack sees most of them as new. `only` is the address of the only host to look at.
    """
    ns, tables = overlay.underlay_ns, _tables(index, overlay)
    if ns is None or tables is None or not overlay.local or index.evaluator(ns) is None:
        return None
    hops: dict[str, Hop] = {}
    hosts = [one.address for one in overlay.remotes if not one.is_group and only in ("", one.address)]
    for address in hosts[:_MOST_HOSTS]:
        link = _link_to_host(tables, overlay, address)
        hop = _obstacle(index, overlay, ns, address, link) if link is not None else None
        if hop is not None:
            hops[address] = hop
    first = next(iter(hops.values()), None)
    return (first, tuple(hops)) if first is not None else None


def _obstacle(index: Index, overlay: Overlay, ns: int, address: str, link: Link) -> Hop | None:
    """Return the hop that drops packets to another host, or from it."""
    new = frozenset(("new",))
    out = Packet(overlay.local, address, "udp", CLIENT_PORT, overlay.port, states=new)
    into = Packet(address, overlay.local, "udp", CLIENT_PORT, overlay.port, states=new)
    leaving = (Hook("output", (), (link.name,), False), Hook("postrouting", (), (link.name,), False))
    entering = (Hook("prerouting", (link.name,), (), True), Hook("input", (link.name,), (), True))
    for packet, hooks in ((out, leaving), (into, entering)):
        hop = _TunnelPacket(index, packet, ns, what="the tunnel's packets").stopped_by(hooks)
        if hop is not None:
            return hop
    return None


class _TunnelPacket(HookedPacket):
    """The outer packet of a tunnel."""

    __slots__ = ()

    def stopped_by(self, hooks: tuple[Hook, ...]) -> Hop | None:
        """Return the hop that drops it in one of the hooks, None if none does."""
        try:
            for hook in hooks:
                self.packet = self._filter(hook, with_nat=False)
        except Stopped:
            return self.hops[-1] if self.hops[-1].verdict == "stop" else None
        return None


def into_tunnel(index: Index, link: Link, address: str, entry: Neighbour | None) -> Hop:
    """Return the hop of a packet that leaves by a VXLAN link: to which host it goes.

    `entry` is the sender's neighbour entry for the address of the next hop.
    """
    overlay = overlay_of(index.topology, link.key)
    assert overlay is not None
    mac, found = _forwarding(index, overlay, address, entry)
    hosts = [one.dst for one in found] or [one.address for one in overlay.remotes if one.flooded]
    place, ref, listed = index.topology.label(link.ns), link_ref(link.key), join_short(hosts, _LISTED)
    if not hosts:
        text = f"the tunnel {link.name} has no host for {mac or address}"
        return Hop("uplink", place, text, "stop", (f"bridge fdb show dev {link.name}",), ref, None, text)
    if (stop := _stopped(index, overlay, hosts)) is not None:
        return stop
    evidence = tuple(f"{one.mac} dev {link.name} dst {one.dst} {source_of(one)}" for one in found)
    if found:
        text = f"goes through the tunnel {link.name} to the host {listed}; what happens there can't be seen"
    elif mac:
        text = f"goes through the tunnel {link.name} to all hosts, as {mac} isn't known there: {listed}"
    else:
        text = f"asks for {address} through the tunnel {link.name}: {listed}"
    return Hop("uplink", place, text, "pass", (*evidence, f"{link.name}: MTU {link.mtu}"), ref)


def _forwarding(
    index: Index, overlay: Overlay, address: str, entry: Neighbour | None
) -> tuple[str, list[FdbEntry]]:
    """Return the MAC of an address, "" if unknown, and the entries that lead to it."""
    mac = entry.mac if entry is not None and entry.state not in ("failed", "incomplete") else ""
    if not mac:
        # What a routing daemon or a tunnel's proxy knows is answered on this host.
        known = (one for host in overlay.remotes for one in host.macs if address in one.addresses)
        answered = (one for one in known if one.source == "extern_learn" or not overlay.has_flood_list)
        mac = next((one.mac for one in answered), "")
    net = index.topology.snapshot.nets[overlay.link.ns]
    found = [
        one for one in net.fdb if mac and one.mac == mac and one.port == overlay.link.ifindex and one.dst
    ]
    return mac, found


def _stopped(index: Index, overlay: Overlay, hosts: list[str]) -> Hop | None:
    """Return what stops the tunnel's packets to all of these hosts on this side."""
    underlay = underlay_of(index, overlay)
    ref, place = link_ref(overlay.link.key), index.topology.label(overlay.underlay_ns or overlay.link.ns)
    for unreachable, why in (
        (underlay.unreachable, "there is no route to"),
        (underlay.silent, "no answer from"),
    ):
        if set(hosts) <= set(unreachable):
            text = f"{why} {join_short(hosts, _LISTED)}, where the tunnel {overlay.link.name} ends"
            return Hop("route", place, text, "stop", (f"ip route get {hosts[0]}",), ref, None, text)
    if len(hosts) == 1 and (blocked := blocked_tunnel(index, overlay, hosts[0])) is not None:
        return blocked[0]
    return None
