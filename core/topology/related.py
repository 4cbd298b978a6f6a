"""Find related objects (the targets of Enter), connections, and objects by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace

import numpy as np

from core.flows import FlowColumns, address_text, entry_of, translators
from core.flows.columns import Column
from core.flows.interpretation import in_prefixes, translated_by
from core.model import (
    Conntrack,
    Container,
    FirewallRule,
    Link,
    NatEntry,
    Network,
    Ref,
    connections_ref,
    container_ref,
    link_ref,
    namespace_ref,
    nat_ref,
    network_ref,
)
from core.nat.entries import expanded
from core.topology.index import Topology

Relation = tuple[str, Ref]

_ENTRY_ORDER = {"published port": 0, "dnat": 1, "masquerade": 2, "snat": 3, "redirect": 4}


def related(topology: Topology, ref: Ref) -> tuple[Relation, ...]:
    """Return the objects related to a ref, the most relevant first.

    The result is empty if the ref is gone.
    """
    find = _FINDERS.get(ref.kind)
    unique: dict[Ref, str] = {}
    for label, target in find(topology, ref) if find else ():
        unique.setdefault(target, label)
    return tuple((label, target) for target, label in unique.items() if target != ref)


def follow(topology: Topology, history: tuple[Ref, ...]) -> Ref | None:
    """Return the target of Enter: the most relevant related object not in the history.

    If a container is in the history, an object related to it is preferred.
    """
    if not history:
        return None
    new = [ref for _, ref in related(topology, history[-1]) if ref not in history]
    container = next((ref for ref in reversed(history[:-1]) if ref.kind == "container"), None)
    preferred = {ref for _, ref in related(topology, container)} if container else set(new)
    return next(
        (ref for ref in new if ref in preferred or ref.kind == "connections"), new[0] if new else None
    )


def _of_link(topology: Topology, ref: Ref) -> Iterator[Relation]:
    link = topology.snapshot.link((int(ref.key[0]), int(ref.key[1])))
    if link is None:
        return
    peer = topology.peer(link)
    if topology.is_bridge(link):
        yield from _network(topology.network_of(link))
        yield from (_port(port) for port in topology.ports_of(link.key))
    if peer is not None:
        yield f"peer {peer.name} in {topology.label(peer.ns)}", link_ref(peer.key)
    yield from _owner(topology, link)
    yield from _bridge(topology, link)
    if peer is not None:
        yield from _owner(topology, peer)
    yield from _network(topology.network_of(link))
    yield from _overlay(link)
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
    name = owner_name(topology, container)
    if name:
        yield from _connections(mask_by_name(topology.flows, name.__eq__), "ct", name)
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
        for port in topology.ports_of(bridge.key):
            yield from _overlay(port)
    yield from map(_container, topology.members(network))
    yield from _connections(mask_by_network(topology, network), "net", network.name)


def _of_nat(topology: Topology, ref: Ref) -> Iterator[Relation]:
    entry = next((entry for entry in topology.nat if (entry.ns, entry.entry_id) == ref.key), None)
    if entry is None:
        return
    alike = sum(one.name == entry.name for one in topology.nat)
    name = entry.name if alike == 1 else entry.entry_id
    yield from _connections(mask_by_nat_entry(topology, entry), "nat", name)
    yield from _containers(topology, entry.containers)
    for network_id in entry.networks:
        yield from _network(topology.network(network_id))
    yield _namespace(topology, entry.ns)


def _of_conntrack(topology: Topology, ref: Ref) -> Iterator[Relation]:
    ns, table = int(ref.key[0]), entry_table(topology, ref)
    if table is None:
        return
    entry = entry_of(table.entries[0])
    for side in (entry.orig_src, entry.reply_src, entry.orig_dst, entry.reply_dst):
        owner = topology.container_at(ns, address_text(side))
        yield from [_container(owner)] if owner else []
    firewall = topology.snapshot.firewalls.get(ns)
    entries = (one for one in topology.nat if one.ns == ns)
    yield from _entries(translators(FlowColumns((table,)), entries, firewall.rules if firewall else ()))
    yield _namespace(topology, ns)


def _of_namespace(topology: Topology, ref: Ref) -> Iterator[Relation]:
    ns = int(ref.key[0])
    if ns != topology.host:
        yield from map(_container, topology.containers_in(ns))
    net = topology.snapshot.nets.get(ns)
    for link in net.links.values() if net else ():
        if link.kind != "loopback":
            yield f"link {link.name}", link_ref(link.key)


def _of_vtep(topology: Topology, ref: Ref) -> Iterator[Relation]:
    """Relate a host of an overlay: key of namespace, tunnel link and address."""
    link = topology.snapshot.link((int(ref.key[0]), int(ref.key[1])))
    if link is not None:
        yield from _network(topology.network_of(link))
        yield from _bridge(topology, link)
        yield f"link {link.name}", link_ref(link.key)
        if ref.key[2]:
            yield from _overlay(link)
        yield _namespace(topology, link.ns)


def _overlay(link: Link) -> Iterator[Relation]:
    """Relate a VXLAN link to the row of its overlay."""
    if link.kind == "vxlan":
        yield f"overlay of {link.name}", Ref("vtep", (*link.key, ""))


def _of_link_entry(topology: Topology, ref: Ref) -> Iterator[Relation]:
    """Relate routes, rules, neighbours and FDB entries: keys of namespace and ifindex."""
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
    "conntrack": _of_conntrack,
    "namespace": _of_namespace,
    "route": _of_link_entry,
    "rule": _of_link_entry,
    "neighbour": _of_link_entry,
    "fdb": _of_link_entry,
    "vtep": _of_vtep,
}


def entries_of_container(topology: Topology, container: Container) -> tuple[NatEntry, ...]:
    """Return the NAT entries about a container: its own, then those of its networks."""
    own = topology.nat_of(container)
    others = (entry for entry in topology.nat if not entry.containers)
    return (*own, *(entry for entry in others if _is_about(topology, entry, container)))


def is_in_scope(topology: Topology, entry: NatEntry, scope: Collection[int]) -> bool:
    """Return whether a NAT entry is in these namespaces or about a container in them."""
    inside = (container for ns in scope for container in topology.containers_in(ns))
    return entry.ns in scope or any(_is_about(topology, entry, container) for container in inside)


def _is_about(topology: Topology, entry: NatEntry, container: Container) -> bool:
    if entry.containers:
        return container.uid in entry.containers
    return any(network.id in entry.networks for network in topology.networks_of(container))


def _connections(found: Column, what: str, name: str) -> Iterator[Relation]:
    count = int(found.sum())
    if count:
        yield f"{count} connection{'s' * (count != 1)}", connections_ref(what, name)


def _entries(entries: Iterable[NatEntry]) -> Iterator[Relation]:
    for entry in sorted(entries, key=lambda entry: _ENTRY_ORDER.get(entry.kind, 9)):
        # The name of a masquerade begins with its kind.
        label = entry.name if entry.name.startswith(f"{entry.kind} ") else f"{entry.kind}: {entry.name}"
        yield label, nat_ref(entry.ns, entry.entry_id)


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


def mask_by_name(columns: FlowColumns, is_wanted: Callable[[str], bool]) -> Column:
    """Return a mask of flows with an end whose owner's name is wanted."""
    ends = (columns.owned(columns.column(end), is_wanted) for end in ("orig_src", "reply_src"))
    return np.logical_or(*ends)


def mask_by_namespace(topology: Topology, scope: Collection[int]) -> Column:
    """Return a mask of flows in tables of these namespaces, or with an end in them."""
    columns = topology.flows
    names = {topology.label(ns) for ns in scope if ns != topology.host}
    names |= {one.name for ns in scope if ns != topology.host for one in topology.containers_in(ns)}
    in_scope = columns.by_table(np.array([table.ns in scope for table in columns.tables], bool))
    return np.asarray(in_scope | mask_by_name(columns, names.__contains__))


def owner_name(topology: Topology, container: Container) -> str:
    """Return the name of a container's addresses: its namespace's label, or "" (host)."""
    if container.netns == topology.host:
        return ""
    return topology.label(container.netns) if container.netns else container.name


def mask_by_network(topology: Topology, network: Network, columns: FlowColumns | None = None) -> Column:
    """Return a mask of flows with an end at a container's address on that network.

    The flows are `columns`, without them those of the snapshot."""
    columns = topology.flows if columns is None else columns
    names = {owner_name(topology, member) for member in topology.members(network)}
    subnets = ",".join(network.subnets)
    found = np.zeros(len(columns), bool)
    for end in ("orig_src", "reply_src") if subnets else ():
        addresses = columns.column(end)
        found |= in_prefixes(addresses, subnets) & columns.owned(addresses, names.__contains__)
    return found


def mask_by_nat_entry(topology: Topology, entry: NatEntry, columns: FlowColumns | None = None) -> Column:
    """Return a mask of flows in the NAT entry's namespace that its rules translated.

    The flows are `columns`, without them those of the snapshot."""
    columns = topology.flows if columns is None else columns
    in_namespace = columns.by_table(np.array([table.ns == entry.ns for table in columns.tables], bool))
    found = np.zeros(len(columns), bool)
    for rule in _rules_of(topology, entry):
        found |= translated_by(columns, rule)
    return np.asarray(found & in_namespace)


def _rules_of(topology: Topology, entry: NatEntry) -> list[FirewallRule]:
    """Return a NAT entry's rules, of a NAT map only the entry's element."""
    firewall = topology.snapshot.firewalls.get(entry.ns)
    rules = [rule for rule in firewall.rules if rule.rule_id in entry.rules] if firewall else []
    base, _, number = entry.entry_id.rpartition("#")
    if number.isdecimal():
        rules = [list(expanded(rule))[int(number)] if rule.rule_id == base else rule for rule in rules]
    return rules


def entry_table(topology: Topology, ref: Ref) -> Conntrack | None:
    """Return the conntrack entry of a ref as a table of one row, None if it is gone."""
    table = topology.snapshot.conntracks.get(int(ref.key[0]))
    if table is None:
        return None
    found = table.entries[table.entries["id"] == ref.key[1]]
    return replace(table, entries=found[:1]) if len(found) else None


def shell_target(topology: Topology, ref: Ref | None) -> str:
    """Return what `vnet-tui shell` calls the object, "" if it is in no namespace.

    That is a container's "runtime:id", otherwise the inode of a namespace."""
    if ref is None:
        return ""
    if ref.kind == "container":
        return ":".join(map(str, ref.key))
    is_inside = ref.kind in ("namespace", "link") and ref.key[0] in topology.snapshot.namespaces
    return str(ref.key[0]) if is_inside else ""


def find_by_name(topology: Topology, name: str) -> Ref | None:
    """Return the first object with that name, ignoring case; None if there is none.

    The order is containers, networks, links (the host's first) and namespaces."""
    return next(find_all_by_name(topology, name), None)


def find_all_by_name(topology: Topology, name: str) -> Iterator[Ref]:
    """Iterate over all objects with that name, ignoring case, in the same order."""
    wanted = name.casefold()
    return (ref for known, ref in _names(topology) if known.casefold() == wanted)


def _names(topology: Topology) -> Iterator[tuple[str, Ref]]:
    yield from ((one.name, container_ref(one.runtime, one.id)) for one in topology.containers.values())
    yield from ((one.name, network_ref(one.id)) for one in topology.networks)
    nets = topology.snapshot.nets
    for ns in sorted(nets, key=lambda ns: ns != topology.host):
        yield from ((link.name, link_ref(link.key)) for link in nets[ns].links.values())
    yield from ((topology.label(ns), namespace_ref(ns)) for ns in topology.snapshot.namespaces)
