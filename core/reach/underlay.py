"""Look up how packets of an overlay leave this host: links and MTU of the underlay."""

from __future__ import annotations

from dataclasses import dataclass

from core.model import Link
from core.overlay import Overlay
from core.reach.packet import Packet
from core.reach.why import index_of
from core.topology import Topology


@dataclass(frozen=True, slots=True)
class Underlay:
    """How packets to the other hosts leave: the link with the least MTU, if known.

    `unreachable` are the hosts without a route.
    """

    link: Link | None = None
    unreachable: tuple[str, ...] = ()

    @property
    def mtu(self) -> int:
        """The MTU of the link, 0 if unknown."""
        return self.link.mtu if self.link else 0


def underlay_of(topology: Topology, overlay: Overlay) -> Underlay:
    """Look up the routes to the other hosts of an overlay."""
    ns = overlay.underlay_ns
    net = topology.snapshot.nets.get(ns or 0)
    tables = index_of(topology).tables(net.ns) if net else None
    if net is None or tables is None:
        return Underlay()
    fixed, links, unreachable = net.links.get(int(overlay.link.details.get("link", 0))), [], []
    oif = fixed.name if fixed else ""
    for host in overlay.remotes:
        lookup = tables.lookup(Packet(overlay.local, host.address, "udp"), oif=oif)
        link = net.links.get(lookup.hop.ifindex or 0) if lookup.hop else None
        if link is not None and not lookup.end:
            links.append(link)
        elif not host.is_group:
            unreachable.append(host.address)
    if not links:
        links = [fixed] if fixed else [one for one in net.links.values() if _has(one, overlay.local)]
    least = min(links, key=lambda link: link.mtu, default=None)
    return Underlay(least, tuple(unreachable))


def _has(link: Link, address: str) -> bool:
    return any(one.address == address for one in link.addresses)
