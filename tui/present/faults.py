"""Faults that the eye should catch at once, each in a few words with its tone."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from core.model import Container, Link, LinkKey, NatEntry, Network
from core.text import safe
from core.topology import Topology
from tui.present import units
from tui.present.glyphs import NOT_EQUAL
from tui.present.nat import REFUSING
from tui.present.rows import Cell

Span = tuple[int, int, int]  # IP version, first and last address


def of_network(topology: Topology, network: Network) -> tuple[Cell, ...]:
    """What is wrong with a network: its bridge gone or off, its subnet used twice."""
    found = []
    bridge = topology.bridge_link(network)
    if network.bridge and bridge is None and network.ns in topology.snapshot.nets:
        found.append(Cell("bridge is gone", "bad"))
    if bridge is not None and not bridge.admin_up:
        found.append(Cell("bridge is off", "bad"))
    found += [Cell(f"overlaps {safe(other)}", "bad") for other in overlapping(topology, network)]
    return tuple(found)


def overlapping(topology: Topology, network: Network) -> tuple[str, ...]:
    """The names of those in the same namespace whose subnets overlap: networks, and links outside any."""
    mine = tuple(_spans(network.subnets))
    if not mine:
        return ()
    ns = network.ns or topology.host
    others = [
        (other.name, tuple(_spans(other.subnets)))
        for other in topology.networks
        if other.id != network.id and (other.ns or topology.host) == ns
    ]
    others += [(link.name, tuple(_spans(map(str, link.addresses)))) for link in _loose_links(topology, ns)]
    return tuple(dict.fromkeys(name for name, theirs in others if _meet(mine, theirs)))


def _loose_links(topology: Topology, ns: int) -> Iterator[Link]:
    """Links with addresses that are no network's bridge."""
    bridges = {network.bridge for network in topology.networks if (network.ns or topology.host) == ns}
    net = topology.snapshot.nets.get(ns)
    for link in net.links.values() if net else ():
        if link.name not in bridges and link.kind != "loopback" and link.addresses:
            yield link


def _spans(subnets: Iterable[str]) -> Iterator[Span]:
    for subnet in subnets:
        try:
            parsed = ipaddress.ip_network(subnet, strict=False)
        except ValueError:
            continue
        if not parsed.is_link_local:
            yield parsed.version, int(parsed.network_address), int(parsed.broadcast_address)


def _meet(mine: tuple[Span, ...], theirs: tuple[Span, ...]) -> bool:
    return any(
        version == other and first <= other_last and other_first <= last
        for version, first, last in mine
        for other, other_first, other_last in theirs
    )


def of_container(topology: Topology, container: Container, link: Link | None) -> tuple[Cell, ...]:
    """What is wrong with a container, and with the link that joins it to the network in question."""
    found = []
    card = topology.cards.get(container.uid)
    if card is not None and card.joined_dead:
        found.append(Cell("joined namespace is dead", "bad"))
    if link is not None:
        found += of_link(topology, link)
        dropped = sum(entry.packets or 0 for entry in _refusing(topology, container))
        found += (
            [Cell(f"{units.count(dropped)} packet{'s' * (dropped != 1)} dropped", "warn")] if dropped else []
        )
    return tuple(found)


def _refusing(topology: Topology, container: Container) -> Iterator[NatEntry]:
    """The filters that refuse what comes from a container's own address."""
    addresses = topology.addresses_of(container)
    for entry in topology.nat_of(container):
        if entry.verdict in REFUSING and entry.inside.partition("/")[0] in addresses:
            yield entry


def of_link(topology: Topology, link: Link) -> tuple[Cell, ...]:
    """What is wrong with a container's link: an end that is off, a port that does not forward, MTUs that
    differ along the way."""
    found = []
    peer, bridge = topology.peer(link), topology.bridge_of(link)
    if not link.admin_up or (peer is not None and not peer.admin_up):
        found.append(Cell("link is off" if not link.admin_up else "port is off", "bad"))
    elif not link.carrier:
        found.append(Cell("no carrier", "bad"))
    port = peer.port if peer is not None and peer.port else None
    if port is not None and port.state not in ("forwarding", "disabled"):
        found.append(Cell(f"port is {safe(port.state)}", "warn"))
    along = [one.mtu for one in (peer, bridge) if one is not None and one.mtu != link.mtu]
    if along:
        found.append(Cell(f"mtu {link.mtu}{NOT_EQUAL}{along[0]}", "warn"))
    return tuple(found)


def port_of(topology: Topology, container: Container, bridge: LinkKey) -> Link | None:
    """The container's link that is plugged into that bridge."""
    for link in topology.links_of(container):
        found = topology.bridge_of(link)
        if found is not None and found.key == bridge:
            return link
    return None
