"""Find duplicate MAC addresses, wrong prefixes, and routes that discard packets."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from core.model import Link, container_ref, link_ref, namespace_ref
from core.model.finding import Finding, Severity
from core.model.fix import Fix, FixLink, FixRoute
from core.reach.link_fixes import bridge_prefix, change_prefix
from core.reach.silence import mac_conflict
from core.topology import Topology

_ENDS = ("blackhole", "unreachable", "prohibit")
# Protocols of routes that people and scripts add; routing daemons discard prefixes on purpose.
_BY_HAND = ("boot", "static", "")
_PRIVATE = tuple(
    map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"))
)


def duplicate_macs(topology: Topology) -> Iterator[Finding]:
    """Find links on one bridge that have the same MAC address."""
    for bridge in (link for link in topology.snapshot.links() if link.kind == "bridge"):
        by_mac: dict[str, list[Link]] = {}
        for port in topology.ports_of(bridge.key):
            peer = topology.peer(port)
            if peer is not None and peer.mac and peer.master is None:
                by_mac.setdefault(peer.mac, []).append(peer)
        for links in by_mac.values():
            if len(links) > 1:
                hop = mac_conflict(topology, links)
                assert hop.ref is not None
                related = tuple(ref for one in links if (ref := link_ref(one.key)) != hop.ref)
                sentence = f"{hop.text}: {bridge.name} sends frames for one of them to the other."
                advice = hop.fix.sentence if hop.fix else ""
                yield Finding(
                    "address",
                    hop.ref,
                    "duplicate MAC",
                    sentence,
                    "bad",
                    related,
                    advice,
                    hop.evidence,
                    hop.fix,
                )


def wrong_prefixes(topology: Topology) -> Iterator[Finding]:
    """Find addresses of containers whose prefix length isn't that of their bridge."""
    for ns in topology.snapshot.nets:
        container = topology.container_of(ns)
        for link in topology.links_of(container) if container is not None else ():
            for one in link.addresses:
                wanted = bridge_prefix(topology, link, one) if one.scope == "global" else 0
                # A host route as prefix is common: the gateway is then on-link by a route of its own.
                if container is not None and wanted and one.prefixlen not in (wanted, 32, 128):
                    sentence = (
                        f"{link.name} of {container.name} has {one}, but its bridge has a /{wanted}: "
                        "some neighbours are not reached directly."
                    )
                    fix = change_prefix(topology, link, one, wanted)
                    own = container_ref(container.runtime, container.id)
                    short = f"prefix /{one.prefixlen}, bridge /{wanted}"
                    yield Finding(
                        "address", link_ref(link.key), short, sentence, "warn", (own,), fix.sentence, fix=fix
                    )


def discarding_routes(topology: Topology) -> Iterator[Finding]:
    """Find routes that discard packets and that no routing daemon made."""
    for ns, net in topology.snapshot.nets.items():
        if ns != topology.host and topology.container_of(ns) is None:
            continue
        for route in net.routes:
            if route.kind in _ENDS and route.protocol in _BY_HAND and route.table == "main":
                who = "The host" if ns == topology.host else topology.label(ns)
                sentence = f"{who} discards packets to {route.dst}: it has a route of kind {route.kind}."
                fix = Fix(f"delete the {route.kind} route to {route.dst}", (FixRoute(ns, route, False),))
                short = f"{route.kind} {route.dst}"
                # Private prefixes are often discarded on purpose, so that they don't leave by the uplink.
                severity: Severity = "info" if _is_private(route.dst) else "warn"
                evidence = (f"{route.kind} {route.dst}",)
                yield Finding(
                    "route", namespace_ref(ns), short, sentence, severity, (), fix.sentence, evidence, fix
                )


def _is_private(prefix: str) -> bool:
    if prefix == "default":
        return False
    own = ipaddress.ip_network(prefix, strict=False)
    return any(own.version == one.version and own.subnet_of(one) for one in _PRIVATE)  # type: ignore[arg-type]


def loopbacks_down(topology: Topology) -> Iterator[Finding]:
    """Find containers with listening processes whose loopback link is down."""
    for ns, net in topology.snapshot.nets.items():
        container = topology.container_of(ns)
        if container is None or not topology.snapshot.listeners.get(ns):
            continue
        for link in net.links.values():
            if link.kind == "loopback" and not link.admin_up:
                sentence = (
                    f"The loopback link {link.name} of {container.name} is down: "
                    "its processes can't reach each other by 127.0.0.1."
                )
                fix = Fix(f"set {link.name} of {container.name} up", (FixLink(link.key, "up", "up"),))
                own = (container_ref(container.runtime, container.id),)
                yield Finding(
                    "link",
                    link_ref(link.key),
                    "loopback is down",
                    sentence,
                    "warn",
                    own,
                    fix.sentence,
                    fix=fix,
                )
