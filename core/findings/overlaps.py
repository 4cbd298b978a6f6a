"""Networks that claim the same addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.findings.finding import Finding
from core.model import Ref, link_ref, network_ref

if TYPE_CHECKING:
    from core.topology import Topology

# Links of the host that share a card with networks of the same kinds.
_ON_PARENTS = ("macvlan", "macvtap", "ipvlan", "ipvtap")
Span = tuple[int, int, int]  # IP version, first and last address


@dataclass(frozen=True, slots=True)
class _Claim:
    """Addresses that a network, or a link outside any, claims in a namespace. `links` are the names of its
    own link and of the one below that; `parent` the link that a macvlan or ipvlan network sits on."""

    ns: int
    ref: Ref
    also: tuple[Ref, ...]
    name: str
    subnets: tuple[str, ...]
    ports: int = 0
    links: tuple[str, ...] = ()
    parent: str = ""

    def shares_with(self, other: _Claim) -> bool:
        """Whether it sits on the other's link, so that both are meant to have the same subnet."""
        return bool(self.parent) and self.parent in other.links


def overlaps(topology: Topology) -> Iterator[Finding]:
    """Each pair of claims in one namespace that share an address, one of them at least a network's."""
    spans: dict[tuple[int, int], list[tuple[int, int, _Claim]]] = {}
    for claim in _claims(topology):
        for version, first, last in _spans(claim.subnets):
            spans.setdefault((claim.ns, version), []).append((first, last, claim))
    pairs: dict[tuple[Ref, Ref], tuple[_Claim, _Claim]] = {}
    for group in spans.values():
        for one, other in _meeting(sorted(group, key=lambda span: span[:2])):
            networks_only = "network" in (one.ref.kind, other.ref.kind)
            shared = one.shares_with(other) or other.shares_with(one)
            if networks_only and one.ref != other.ref and not shared and (other.ref, one.ref) not in pairs:
                pairs.setdefault((one.ref, other.ref), (one, other))
    return (_overlap(one, other) for one, other in pairs.values())


def _meeting(ordered: list[tuple[int, int, _Claim]]) -> Iterator[tuple[_Claim, _Claim]]:
    """Those of spans in order that share an address, pair by pair."""
    for place, (_, last, one) in enumerate(ordered):
        for first, _, other in ordered[place + 1 :]:
            if first > last:
                break
            yield one, other


def _claims(topology: Topology) -> Iterator[_Claim]:
    for network in topology.networks:
        bridge = topology.bridge_link(network)
        also = (link_ref(bridge.key),) if bridge else ()
        ports = len(topology.ports_of(bridge.key)) if bridge else 0
        ns, ref = network.ns or topology.host, network_ref(network.id)
        own = (network.bridge,) if bridge else ()
        yield _Claim(ns, ref, also, network.name, network.subnets, ports, own, network.parent)
    bridges = {(network.ns or topology.host, network.bridge) for network in topology.networks}
    for ns in {network.ns or topology.host for network in topology.networks}:
        net = topology.snapshot.nets.get(ns)
        for link in net.links.values() if net else ():
            if (ns, link.name) not in bridges and link.kind != "loopback":
                beside = link.kind in _ON_PARENTS and link.lower_nsid is None
                below = topology.snapshot.link((ns, link.lower or 0)) if beside else None
                links = (link.name, below.name) if below else (link.name,)
                subnets = tuple(map(str, link.addresses))
                yield _Claim(ns, link_ref(link.key), (), link.name, subnets, 0, links)


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
    words = (
        f"{one.name} ({' '.join(one.subnets)}) and {other.name} ({' '.join(other.subnets)}) overlap: "
        "an address in both is reached in one of them only."
    )
    short = f"overlaps {other.name}"
    smaller = one if other.ref.kind != "network" else min(one, other, key=lambda each: each.ports)
    advice = (
        f"give {smaller.name}, the one with fewer ports, another subnet: delete it (d), make it again (n), "
        "or change it with the tool that made it"
    )
    return Finding("overlap", one.ref, short, words, "bad", (other.ref, *one.also, *other.also), advice)
