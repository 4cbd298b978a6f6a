"""Find subnets of networks, links and routes that overlap."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from core.model import Link, Network, Ref, Route, link_ref, namespace_ref, network_ref
from core.model.finding import Finding, Severity
from core.model.fix import Fix, FixAddress
from core.nat.packets import Prefix, overlap, prefixes, within
from core.topology import Topology

# Links of the host that may share a parent with networks of the same kinds.
_CHILD_KINDS = ("macvlan", "macvtap", "ipvlan", "ipvtap")
Span = tuple[int, int, int]  # IP version, first and last address


@dataclass(frozen=True, slots=True)
class _Claim:
    """Addresses that a network, or a link outside any network, uses in a namespace.

    `links` are the names of its link and of that link's parent; `parent` is the parent of a macvlan or ipvlan
    network. `unused` are the steps that delete the addresses of a bridge without ports, unless an engine
    made it."""

    ns: int
    ref: Ref
    related: tuple[Ref, ...]
    name: str
    subnets: tuple[str, ...]
    ports: int = 0
    links: tuple[str, ...] = ()
    parent: str = ""
    unused: tuple[FixAddress, ...] = ()

    def shares_with(self, other: _Claim) -> bool:
        """Return whether its parent is the other's link: then the subnet is shared."""
        return bool(self.parent) and self.parent in other.links


def overlaps(topology: Topology) -> Iterator[Finding]:
    """Find pairs of subnets in one namespace that overlap, at least one of a network."""
    spans: dict[tuple[int, int], list[tuple[int, int, _Claim]]] = {}
    for claim in _claims(topology):
        for version, first, last in _spans(claim.subnets):
            spans.setdefault((claim.ns, version), []).append((first, last, claim))
    pairs: dict[tuple[Ref, Ref], tuple[_Claim, _Claim]] = {}
    for group in spans.values():
        for one, other in _overlapping(sorted(group, key=lambda span: span[:2])):
            has_network = "network" in (one.ref.kind, other.ref.kind)
            shared = one.shares_with(other) or other.shares_with(one)
            if has_network and one.ref != other.ref and not shared and (other.ref, one.ref) not in pairs:
                pairs.setdefault((one.ref, other.ref), (one, other))
    return (_overlap(one, other) for one, other in pairs.values())


def _overlapping(ordered: list[tuple[int, int, _Claim]]) -> Iterator[tuple[_Claim, _Claim]]:
    """Iterate over the pairs of sorted spans that have a common address."""
    for index, (_, last, one) in enumerate(ordered):
        for first, _, other in ordered[index + 1 :]:
            if first > last:
                break
            yield one, other


def _claims(topology: Topology) -> Iterator[_Claim]:
    for network in topology.networks:
        bridge = topology.bridge_link(network)
        related = (link_ref(bridge.key),) if bridge else ()
        ports = len(topology.ports_of(bridge.key)) if bridge else 0
        ns, ref = network.ns or topology.host, network_ref(network.id)
        own = (network.bridge,) if bridge else ()
        unused = _addresses(bridge) if bridge and not ports and network.engine == "kernel" else ()
        yield _Claim(ns, ref, related, network.name, network.subnets, ports, own, network.parent, unused)
    bridges = {(network.ns or topology.host, network.bridge) for network in topology.networks}
    for ns in {network.ns or topology.host for network in topology.networks}:
        net = topology.snapshot.nets.get(ns)
        for link in net.links.values() if net else ():
            if (ns, link.name) not in bridges and link.kind != "loopback":
                has_parent = link.kind in _CHILD_KINDS and link.lower_nsid is None
                parent = topology.snapshot.link((ns, link.lower or 0)) if has_parent else None
                links = (link.name, parent.name) if parent else (link.name,)
                subnets = tuple(map(str, link.addresses))
                yield _Claim(ns, link_ref(link.key), (), link.name, subnets, 0, links)


def _addresses(bridge: Link) -> tuple[FixAddress, ...]:
    """Return the steps that delete a bridge's addresses."""
    return tuple(FixAddress(bridge.key, one, False) for one in bridge.addresses if one.scope == "global")


def _spans(subnets: Iterable[str]) -> Iterator[Span]:
    for subnet in subnets:
        try:
            parsed = ipaddress.ip_network(subnet, strict=False)
        except ValueError:
            continue
        if not parsed.is_link_local:
            yield parsed.version, int(parsed.network_address), int(parsed.broadcast_address)


def _overlap(one: _Claim, other: _Claim) -> Finding:
    if one.ref.kind != "network":
        one, other = other, one
    sentence = (
        f"{one.name} ({' '.join(one.subnets)}) and {other.name} ({' '.join(other.subnets)}) overlap: "
        "an address in both is reachable in only one of them."
    )
    short = f"overlaps {other.name}"
    smaller = one if other.ref.kind != "network" else min(one, other, key=lambda each: each.ports)
    advice = (
        f"give {smaller.name}, which has fewer ports, another subnet: delete it (d) and create it again (n), "
        "or change it with the tool that created it"
    )
    fix = None
    if smaller.unused:
        addresses = " and ".join(str(step.address) for step in smaller.unused)
        fix = Fix(f"delete {addresses} from {smaller.name}, which has no ports", smaller.unused)
        advice = f"{fix.sentence}, or give it another subnet"
    related = (other.ref, *one.related, *other.related)
    return Finding("overlap", one.ref, short, sentence, "bad", related, advice, fix=fix)


# Shorter prefixes by IP version send everything through a tunnel (0.0.0.0/1): no claim to a subnet.
_LARGEST_ROUTED = {4: 8, 6: 16}


def route_overlaps(topology: Topology) -> Iterator[Finding]:
    """Find routes of the host to addresses of a container network, by another link."""
    net = topology.snapshot.nets.get(topology.host)
    routes = [(one, prefix) for one in (net.routes if net else ()) for prefix in _claimed(one)]
    for network in topology.networks:
        bridge = topology.bridge_link(network)
        if bridge is None or bridge.ns != topology.host or network.kind not in ("nat", "routed", "internal"):
            continue
        for subnet in (prefix for one in network.subnets for prefix in prefixes(one) or ()):
            for route, prefix in routes:
                link = _link_of(topology, route, bridge)
                if link is not None and overlap(subnet, prefix):
                    yield _route_overlap(topology, network, subnet, route, prefix, link)


def _claimed(route: Route) -> tuple[Prefix, ...]:
    """Return the prefix of a route that claims a subnet, () for other routes."""
    if route.kind != "unicast" or route.table != "main" or route.protocol in ("kernel", "ra", "redirect"):
        return ()
    found = prefixes(route.dst) if route.dst != "default" else ()
    return tuple(one for one in found or () if one.prefixlen >= _LARGEST_ROUTED[one.version])


def _link_of(topology: Topology, route: Route, bridge: Link) -> Link | None:
    """Return the link of a route, None if it leads to the bridge."""
    for hop in route.nexthops:
        link = topology.snapshot.link((bridge.ns, hop.ifindex or 0))
        if link is not None and link.key != bridge.key and topology.bridge_of(link) != bridge:
            return link
    return None


def _route_overlap(
    topology: Topology, network: Network, subnet: Prefix, route: Route, prefix: Prefix, link: Link
) -> Finding:
    gateway = next((hop.gateway for hop in route.nexthops if hop.gateway), "")
    via = f" via {gateway}" if gateway else ""
    takes = within(prefix, subnet)
    effect = (
        f"packets to containers with these addresses leave by {link.name}"
        if takes
        else f"hosts behind {link.name} whose address is in both can't be reached from here"
    )
    sentence = f"{network.name} ({subnet}) and the host's route to {prefix} by {link.name} overlap: {effect}."
    advice = (
        f"make the route narrower, or give {network.name} another subnet: "
        "delete it (d) and create it again (n)"
    )
    severity: Severity = "warn" if takes else "info"
    related = (link_ref(link.key), namespace_ref(link.ns))
    evidence = (f"{route.dst}{via} dev {link.name}",)
    short = f"overlaps route {prefix}"
    return Finding("overlap", network_ref(network.id), short, sentence, severity, related, advice, evidence)
