"""The web of relations that Enter follows: from each thing to those that it hangs together with."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from core.flows import entry_of, flow_of, translators
from core.model import (
    Conntrack,
    Container,
    Link,
    NatEntry,
    Network,
    Ref,
    container_ref,
    flow_ref,
    link_ref,
    namespace_ref,
    nat_ref,
    network_ref,
)

if TYPE_CHECKING:
    from core.topology import Topology

Relation = tuple[str, Ref]

FLOWS_SHOWN = 20
_ENTRY_ORDER = {"published port": 0, "dnat": 1, "masquerade": 2, "snat": 3, "redirect": 4}


def related(topology: Topology, ref: Ref) -> tuple[Relation, ...]:
    """What `ref` leads to, the foremost first, each once and never itself; nothing where it is gone."""
    find = _FINDERS.get(ref.kind)
    relations = find(topology, ref) if find else ()
    unique = {target: label for label, target in reversed([*relations]) if target != ref}
    return tuple((label, target) for target, label in reversed(unique.items()))


def _of_link(topology: Topology, ref: Ref) -> Iterator[Relation]:
    link = topology.snapshot.link((int(ref.key[0]), int(ref.key[1])))
    if link is None:
        return
    peer = topology.peer(link)
    if link.kind == "bridge":
        yield from _network(topology.network_of(link))
        yield from (_port(port) for port in topology.ports_of(link.key))
    if peer is not None:
        yield f"peer {peer.name} in {topology.label(peer.ns)}", link_ref(peer.key)
    yield from _owner(topology, link)
    yield from _bridge(topology, link)
    if peer is not None:
        yield from _owner(topology, peer)
    yield from _network(topology.network_of(link))
    yield _namespace(topology, link.ns)


def _of_container(topology: Topology, ref: Ref) -> Iterator[Relation]:
    container = topology.containers.get(":".join(map(str, ref.key)))
    if container is None:
        return
    links = topology.links_of(container)
    for port in filter(None, map(topology.peer, links)):
        yield _port(port)
    for link in links:
        yield from _bridge(topology, link)
    for network in topology.networks_of(container):
        yield from _network(network)
    yield from _entries(entries_of_container(topology, container))
    yield from _flows(topology, (container,))
    card = topology.cards.get(container.uid)
    for uid in card.joined_with if card else ():
        yield from _containers(topology, (uid,))
    for link in links:
        yield f"link {link.name}", link_ref(link.key)
    if container.netns is not None:
        yield _namespace(topology, container.netns)


def _of_network(topology: Topology, ref: Ref) -> Iterator[Relation]:
    network = topology.network(str(ref.key[0]))
    if network is None:
        return
    yield from _entries(entry for entry in topology.nat if network.id in entry.networks)
    bridge = topology.bridge_link(network)
    if bridge is not None:
        yield f"bridge {bridge.name}", link_ref(bridge.key)
    yield from map(_container, topology.members(network))


def _of_nat(topology: Topology, ref: Ref) -> Iterator[Relation]:
    entry = next((entry for entry in topology.nat if (entry.ns, entry.entry_id) == ref.key), None)
    if entry is None:
        return
    networks = [network for network in topology.networks if network.id in entry.networks]
    named = [topology.containers[uid] for uid in entry.containers if uid in topology.containers]
    yield from _flows(topology, named or [one for network in networks for one in topology.members(network)])
    yield from _containers(topology, entry.containers)
    for network in networks:
        yield from _network(network)
    yield _namespace(topology, entry.ns)


def _of_flow(topology: Topology, ref: Ref) -> Iterator[Relation]:
    ns, flow = int(ref.key[0]), ref.key[1]
    table = topology.snapshot.conntracks.get(ns)
    found = table.entries[table.entries["id"] == flow] if table else ()
    for entry in found[:1]:
        for side in ("orig_src", "reply_src", "orig_dst", "reply_dst"):
            owner = topology.container_at(ns, address_text(entry[side]))
            yield from [_container(owner)] if owner else []
        firewall = topology.snapshot.firewalls.get(ns)
        entries = (one for one in topology.nat if one.ns == ns)
        meaning = flow_of(entry_of(entry))
        yield from _entries(translators(meaning, entries, firewall.rules if firewall else ()))
    yield _namespace(topology, ns)


def _of_namespace(topology: Topology, ref: Ref) -> Iterator[Relation]:
    ns = int(ref.key[0])
    if ns != topology.host:
        yield from map(_container, topology.containers_in(ns))
    net = topology.snapshot.nets.get(ns)
    for link in net.links.values() if net else ():
        if link.kind != "loopback":
            yield f"link {link.name}", link_ref(link.key)


def _of_place(topology: Topology, ref: Ref) -> Iterator[Relation]:
    """Routes, rules, neighbours and forwarding entries: their key begins with namespace and ifindex."""
    ns, ifindex = int(ref.key[0]), int(ref.key[1])
    link = topology.snapshot.link((ns, ifindex))
    owner = topology.container_at(ns, str(ref.key[2])) if ref.kind == "neighbour" else None
    if owner is not None:
        yield _container(owner)
    if link is not None:
        yield f"link {link.name}", link_ref(link.key)
    yield _namespace(topology, ns)


_FINDERS: dict[str, Callable[[Topology, Ref], Iterable[Relation]]] = {
    "link": _of_link,
    "container": _of_container,
    "network": _of_network,
    "nat": _of_nat,
    "flow": _of_flow,
    "namespace": _of_namespace,
    "route": _of_place,
    "rule": _of_place,
    "neighbour": _of_place,
    "fdb": _of_place,
}


def entries_of_container(topology: Topology, container: Container) -> tuple[NatEntry, ...]:
    """The NAT entries that concern a container: its own first, then those of its networks."""
    networks = {network.id for network in topology.networks_of(container)}
    own = [entry for entry in topology.nat if container.uid in entry.containers]
    shared = [
        entry for entry in topology.nat if not entry.containers and networks.intersection(entry.networks)
    ]
    return (*own, *shared)


def flows_of(topology: Topology, container: Container) -> tuple[Ref, ...]:
    """The conntrack entries that begin or end at a container, the busiest first, at most FLOWS_SHOWN."""
    found: list[tuple[int, Ref]] = []
    for ns, table in topology.snapshot.conntracks.items():
        seen = [one for one in topology.addresses_of(container) if _is_owner(topology, ns, one, container)]
        for entry in table.entries[_touching(table, seen)]:
            found.append((int(entry["bytes"].sum()), flow_ref(ns, int(entry["id"]))))
    found.sort(key=lambda pair: pair[0], reverse=True)
    return tuple(ref for _, ref in found[:FLOWS_SHOWN])


def _is_owner(topology: Topology, ns: int, address: str, container: Container) -> bool:
    """Whether an address means that container, or one in the same namespace, as seen from `ns`."""
    owner = topology.container_at(ns, address)
    return owner is not None and (owner.uid == container.uid or owner.netns == container.netns)


def _touching(table: Conntrack, addresses: Iterable[str]) -> np.ndarray:
    hits = np.zeros(len(table.entries), bool)
    for address in map(address_bytes, addresses):
        for side in ("orig_src", "reply_src"):
            hits |= (table.entries[side] == address).all(axis=1)
    return hits


def address_bytes(address: str) -> np.ndarray:
    """An address as conntrack columns hold it: 16 bytes, IPv4 mapped."""
    packed = ipaddress.ip_address(address).packed
    return np.frombuffer(packed if len(packed) == 16 else bytes(10) + b"\xff\xff" + packed, "u1")


def address_text(column: np.ndarray) -> str:
    """An address of a conntrack column in text form."""
    address = ipaddress.IPv6Address(column.tobytes())
    return str(address.ipv4_mapped or address)


def _flows(topology: Topology, containers: Iterable[Container]) -> Iterator[Relation]:
    for container in containers:
        for ref in flows_of(topology, container):
            yield f"flow of {container.name}", ref


def _entries(entries: Iterable[NatEntry]) -> Iterator[Relation]:
    for entry in sorted(entries, key=lambda entry: _ENTRY_ORDER.get(entry.kind, 9)):
        yield f"{entry.kind}: {entry.name}", nat_ref(entry.ns, entry.entry_id)


def _containers(topology: Topology, uids: Iterable[str]) -> Iterator[Relation]:
    for uid in uids:
        if uid in topology.containers:
            yield _container(topology.containers[uid])


def _container(container: Container) -> Relation:
    return f"container {container.name}", container_ref(container.runtime, container.id)


def _owner(topology: Topology, link: Link) -> Iterator[Relation]:
    owner = topology.container_of(link.ns)
    if owner is not None:
        yield _container(owner)


def _bridge(topology: Topology, link: Link) -> Iterator[Relation]:
    bridge = topology.bridge_of(link)
    if bridge is not None and bridge.key != link.key:
        yield f"bridge {bridge.name}", link_ref(bridge.key)


def _network(network: Network | None) -> Iterator[Relation]:
    if network is not None:
        yield f"network {network.name}", network_ref(network.id)


def _port(port: Link) -> Relation:
    return f"bridge port {port.name}", link_ref(port.key)


def _namespace(topology: Topology, ns: int) -> Relation:
    return f"namespace {topology.label(ns)}", namespace_ref(ns)
