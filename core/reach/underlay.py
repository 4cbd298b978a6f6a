"""Look up how packets of an overlay leave this host: links and MTU of the underlay."""

from __future__ import annotations

from dataclasses import dataclass

from core.model import Link
from core.overlay import Overlay
from core.reach.answer import Hop
from core.reach.hooks import CLIENT_PORT, HookedPacket, Stopped
from core.reach.packet import Hook, Packet
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


# Hosts whose packets are evaluated: more seldom differ, and each takes all rules.
_MOST_HOSTS = 32


def blocked_tunnel(topology: Topology, overlay: Overlay) -> tuple[Hop, tuple[str, ...]] | None:
    """Return the rule or policy that drops a tunnel's packets, and the hosts concerned.

    None if nothing drops them, or that isn't known. The source port of each packet depends on the packet
    inside, so conntrack sees most of them as new.
    """
    index, ns = index_of(topology), overlay.underlay_ns
    tables = index.tables(ns) if ns is not None else None
    if ns is None or tables is None or not overlay.local or index.evaluator(ns) is None:
        return None
    hops: dict[str, Hop] = {}
    for host in [one for one in overlay.remotes if not one.is_group][:_MOST_HOSTS]:
        lookup = tables.lookup(Packet(overlay.local, host.address, "udp"))
        link = tables.net.links.get(lookup.hop.ifindex or 0) if lookup.hop else None
        if link is None or lookup.end:
            continue
        ends = {"l4_proto": "udp", "sport": CLIENT_PORT, "dport": overlay.port, "states": frozenset(("new",))}
        into = Packet(host.address, overlay.local, **ends)  # type: ignore[arg-type]
        out = Packet(overlay.local, host.address, **ends)  # type: ignore[arg-type]
        there, back = (Hook("prerouting", (link.name,), (), True), Hook("input", (link.name,), (), True)), (
            Hook("output", (), (link.name,), False), Hook("postrouting", (), (link.name,), False)
        )  # fmt: skip
        for packet, hooks in ((into, there), (out, back)):
            hop = _Tunnelled(index, packet, ns, what="the tunnel's packets").stopped_by(hooks)
            if hop is not None:
                hops.setdefault(host.address, hop)
    first = next(iter(hops.values()), None)
    return (first, tuple(hops)) if first is not None else None


class _Tunnelled(HookedPacket):
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
