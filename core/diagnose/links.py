"""Joins that died; links and bridges that let nothing through; MTUs that do not fit."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from core.model import Container, Link, Ref, container_ref, link_ref, network_ref
from core.model.problem import Finding
from core.text import quoted as quote
from core.topology import Topology

_QUIET_STATES = ("forwarding", "disabled")


def dead_joins(topology: Topology) -> Iterator[Finding]:
    for container in topology.containers.values():
        card = topology.cards.get(container.uid)
        if card is not None and card.joined_dead:
            target = joined(topology, container)
            about = (container_ref(target.runtime, target.id),) if target else ()
            words = f"{container.name}: {card.why}"
            advice = f"restart {container.name} after the container that it joins, or remove it"
            yield Finding(
                "dead join",
                container_ref(container.runtime, container.id),
                "joined namespace is dead",
                words,
                "bad",
                about,
                advice,
            )


def joined(topology: Topology, container: Container) -> Container | None:
    """Whom a container asked to join, by name or id; None where that one is gone."""
    kind, _, wanted = container.network_mode.partition(":")
    others = (one for one in topology.containers.values() if one.uid != container.uid)
    found = (one for one in others if kind == "container" and wanted in (one.id, one.name))
    return next(found, None)


def of_links(topology: Topology) -> Iterator[Finding]:
    """What is wrong with the links of containers, each link once."""
    for ns, net in topology.snapshot.nets.items():
        container = topology.container_of(ns)
        if container is not None:
            for link in topology.links_of(container) if net.links else ():
                yield from _of_link(topology, container, link)


def _of_link(topology: Topology, container: Container, link: Link) -> Iterator[Finding]:
    """An end that is off, a port that does not forward, MTUs that differ along the way."""
    peer, bridge = topology.peer(link), topology.bridge_of(link)
    if bridge is None and peer is None:
        return
    ends = (peer, bridge)
    related = (
        container_ref(container.runtime, container.id),
        *(link_ref(end.key) for end in ends if end is not None),
    )
    here, ref = f"{link.name} of {container.name}", link_ref(link.key)
    dead = _off(link, peer, here)
    if dead:
        words = f"{dead[1]}: nothing gets in or out by it."
        yield Finding("link", ref, dead[0], words, "bad", related, _switch_on(topology, link, peer))
    if peer is not None and peer.port is not None and peer.port.state not in _QUIET_STATES:
        words = f"{peer.name}, the bridge port of {here}, does not forward: it is {peer.port.state}."
        advice = f"wait, where it listens or learns; else see the bridge: bridge -d link show dev {peer.name}"
        yield Finding("port", ref, f"port is {peer.port.state}", words, "warn", related, advice)
    for role, end in (("bridge", bridge), ("port", peer)):
        if end is not None and end.mtu != link.mtu:
            short = f"mtu {link.mtu}, {role} {end.mtu}"
            advice = _set(topology, link, f"--mtu {end.mtu}")
            yield Finding("mtu", ref, short, _mtu_words(link, end, here, role), "warn", related, advice)
            return


def _switch_on(topology: Topology, link: Link, peer: Link | None) -> str:
    if peer is not None and link.admin_up and not peer.admin_up:
        return _set(topology, peer, "--up")
    return _set(topology, link, "--up") if not link.admin_up else "see its other end"


def _set(topology: Topology, link: Link, change: str) -> str:
    """How to change a link, by the command; in the dashboard its form opens by a key."""
    place = "" if link.ns == topology.host else f" --ns {quote(topology.label(link.ns))}"
    return f"vnet-tui link set {quote(link.name)} {change}{place} (or e on it)"


def _off(link: Link, peer: Link | None, here: str) -> tuple[str, str] | None:
    """Why nothing passes a link, in a few words and in more; None where it is up at both ends."""
    if not link.admin_up:
        return "link is off", f"{here} is switched off"
    if peer is not None and not peer.admin_up:
        return "port is off", f"{peer.name}, the other end of {here}, is switched off"
    # A bridge without ports has no carrier either, and nothing is wrong with it.
    return None if link.carrier or link.kind == "bridge" else ("no carrier", f"{here} has no carrier")


def _mtu_words(link: Link, other: Link, here: str, role: str) -> str:
    other_end = "its bridge" if role == "bridge" else "its other end"
    return (
        f"{here} has MTU {link.mtu}, {other_end} {other.name} {other.mtu}: "
        f"packets of more than {min(link.mtu, other.mtu)} bytes are lost on the way."
    )


def of_bridges(topology: Topology) -> Iterator[Finding]:
    """Networks whose bridge is gone or off."""
    for network in topology.networks:
        bridge = topology.bridge_link(network)
        ref, there = network_ref(network.id), network.ns in topology.snapshot.nets
        if network.bridge and bridge is None and there:
            words = f"The bridge {network.bridge} of network {network.name} is gone: nothing carries it."
            yield Finding(
                "bridge", ref, "bridge is gone", words, "bad", (), "remove the network, and make it anew"
            )
        elif bridge is not None and not bridge.admin_up:
            count = len(topology.ports_of(bridge.key))
            left = f"its {count} port{'s' * (count != 1)} cannot" if count else "a port on it could not"
            words = f"The bridge {bridge.name} is switched off: {left} reach anything."
            about = (link_ref(bridge.key),)
            yield Finding("bridge", ref, "bridge is off", words, "bad", about, _set(topology, bridge, "--up"))


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
