"""Export all topics of `show --json` but flows as JSON objects."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from core.codec import plain
from core.diagnose import findings
from core.diagnose.subjects import sources
from core.export import flows
from core.model import Conntrack, Container, Link, LinkKey, NetState
from core.model.finding import Finding
from core.overlay import Overlay, OverlayHost, overlays
from core.topology import Topology
from core.topology.related import is_in_scope

Item = dict[str, Any]
Scope = Collection[int] | None


def links(topology: Topology, scope: Scope) -> Iterator[Item]:
    """Export every link."""
    for link in topology.snapshot.links():
        if scope is None or link.ns in scope:
            yield _link(topology, link)


def _link(topology: Topology, link: Link) -> Item:
    return {**plain(link), **_owners(topology, link), "peer": _peer(topology, topology.peer(link))}


def _owners(topology: Topology, link: Link) -> Item:
    master = topology.master_of(link)
    container, network = topology.container_of(link.ns), topology.network_of(link)
    return {
        "namespace": topology.label(link.ns),
        "master_name": master.name if master else None,
        "container": container.uid if container else None,
        "network": network.id if network else None,
    }


def _peer(topology: Topology, link: Link | None) -> Item | None:
    """Export a link's key, name, namespace and container."""
    if link is None:
        return None
    container = topology.container_of(link.ns)
    return {
        "ns": link.ns,
        "ifindex": link.ifindex,
        "name": link.name,
        "namespace": topology.label(link.ns),
        "container": container.uid if container else None,
    }


def bridges(topology: Topology, scope: Scope) -> Iterator[Item]:
    """Export every bridge with its ports and its forwarding table."""
    for link in topology.snapshot.links():
        if topology.is_bridge(link) and (scope is None or link.ns in scope):
            fdb = (each for each in topology.snapshot.nets[link.ns].fdb if each.bridge == link.ifindex)
            yield {
                **_link(topology, link),
                "ports": [_port(topology, port) for port in topology.ports_of(link.key)],
                "fdb": [plain(entry) for entry in fdb],
            }


def ovs(topology: Topology, scope: Scope) -> Iterator[Item]:
    """Export every Open vSwitch bridge as in OVSDB; they belong to the host."""
    if scope is None or topology.host in scope:
        yield from map(plain, topology.snapshot.ovs)


def _port(topology: Topology, link: Link) -> Item:
    return {
        "ifindex": link.ifindex,
        "name": link.name,
        "kind": link.kind,
        "state": link.state,
        "port": plain(link.port) if link.port else None,
        "peer": _peer(topology, topology.peer(link)),
    }


def veths(topology: Topology, scope: Scope) -> Iterator[Item]:
    """Export every veth pair once, with one end if its peer isn't known."""
    exported: set[LinkKey] = set()
    for link in topology.snapshot.links():
        if link.kind != "veth" or link.key in exported:
            continue
        peer = topology.peer(link)
        ends = [link, *([peer] if peer else [])]
        exported.update(end.key for end in ends)
        if scope is None or any(end.ns in scope for end in ends):
            ends.sort(key=lambda end: (end.ns != topology.host, end.master is None))
            yield {"ends": [_veth_end(topology, end) for end in ends]}


def _veth_end(topology: Topology, link: Link) -> Item:
    return {
        "ns": link.ns,
        "ifindex": link.ifindex,
        "name": link.name,
        "state": link.state,
        "admin_up": link.admin_up,
        "mac": link.mac,
        "mtu": link.mtu,
        "addresses": [str(address) for address in link.addresses],
        **_owners(topology, link),
    }


def containers(topology: Topology, scope: Collection[int] | None) -> Iterator[Item]:
    """Export every container of every runtime."""
    for container in topology.containers.values():
        if scope is None or container.netns in scope:
            yield _container(topology, container)


def _container(topology: Topology, container: Container) -> Item:
    card = topology.cards.get(container.uid)
    return {
        **plain(container),
        "uid": container.uid,
        "addresses": list(topology.addresses_of(container)),
        "networks": [network.id for network in topology.networks_of(container)],
        "links": [
            {"ns": link.ns, "ifindex": link.ifindex, "name": link.name}
            for link in topology.links_of(container)
        ],
        "card": plain(card) if card else None,
    }


def namespaces(topology: Topology, scope: Scope) -> Iterator[Item]:
    """Export every network namespace."""
    nets = topology.snapshot.nets
    for inode, namespace in topology.snapshot.namespaces.items():
        if scope is None or inode in scope:
            yield {
                **plain(namespace),
                "label": topology.label(inode),
                "containers": [container.uid for container in topology.containers_in(inode)],
                "links": len(nets[inode].links) if inode in nets and nets[inode].links else None,
            }


def networks(topology: Topology, scope: Scope) -> Iterator[Item]:
    """Export every network, engines' and kernel's."""
    for network in topology.networks:
        if scope is None or network.ns in scope:
            yield {
                **plain(network),
                "gateways": topology.gateways(network),
                "namespace": topology.label(network.ns) if network.ns is not None else None,
                "members": [container.uid for container in topology.members(network)],
                "nat": [entry.entry_id for entry in topology.nat if network.id in entry.networks],
            }


def nat(topology: Topology, scope: Scope) -> Iterator[Item]:
    """Export every translation and forward filter."""
    for entry in topology.nat:
        if scope is None or is_in_scope(topology, entry, scope):
            yield {**plain(entry), "namespace": topology.label(entry.ns)}


def _nets(topology: Topology, scope: Scope) -> Iterator[tuple[NetState, Item]]:
    """Iterate over the namespaces in scope, with the fields that name them."""
    for ns, net in topology.snapshot.nets.items():
        if scope is None or ns in scope:
            yield net, {"ns": ns, "namespace": topology.label(ns)}


def _name(net: NetState, ifindex: int | None) -> str | None:
    link = net.links.get(ifindex or 0)
    return link.name if link else None


def routes(topology: Topology, scope: Scope) -> Iterator[Item]:
    """Export every route of every table."""
    for net, where in _nets(topology, scope):
        for route in net.routes:
            hops = [{**plain(hop), "link": _name(net, hop.ifindex)} for hop in route.nexthops]
            yield {**where, **plain(route), "nexthops": hops}


def rules(topology: Topology, scope: Scope) -> Iterator[Item]:
    """Export every policy rule."""
    for net, where in _nets(topology, scope):
        for rule in net.rules:
            yield {**where, **plain(rule)}


def neighbours(topology: Topology, scope: Scope) -> Iterator[Item]:
    """Export every neighbour entry."""
    for net, where in _nets(topology, scope):
        for neighbour in net.neighbours:
            yield {**where, **plain(neighbour), "link": _name(net, neighbour.ifindex)}


def overlay(topology: Topology, scope: Scope) -> Iterator[Item]:
    """Export every overlay with its hosts, and each MAC of each host."""
    for one in overlays(topology):
        if scope is None or one.link.ns in scope:
            yield _overlay(topology, one)


def _overlay(topology: Topology, one: Overlay) -> Item:
    # Imported when first needed: the dashboard's first paint doesn't look up routes.
    from core.reach.underlay import underlay_of
    from core.reach.why import index_of

    underlay = underlay_of(index_of(topology), one)
    return {
        "ns": one.link.ns,
        "namespace": topology.label(one.link.ns),
        "ifindex": one.link.ifindex,
        "link": one.link.name,
        "vni": one.vni or None,
        "owner": one.owner or None,
        "network": one.network.id if one.network else None,
        "name": one.name,
        "bridge": one.bridge.name if one.bridge else None,
        "local": one.local or None,
        "port": one.port,
        "mtu": one.link.mtu,
        "underlay": {"link": underlay.link.name, "mtu": underlay.mtu} if underlay.link else None,
        "unreachable": list(underlay.unreachable),
        "hosts": [_overlay_host(one, host) for host in one.hosts],
    }


def _overlay_host(one: Overlay, host: OverlayHost) -> Item:
    return {
        "address": host.address or None,
        "local": host.is_local,
        "source": host.source,
        "flood": host.flooded if one.has_flood_list and not host.is_local else None,
        "prefixes": list(host.prefixes),
        "session": plain(host.session) if host.session else None,
        "macs": [
            {
                "mac": mac.mac,
                "addresses": list(mac.addresses),
                "source": mac.source,
                "container": mac.container or None,
                "ifindex": mac.link.ifindex if mac.link else None,
                "gateway": mac.is_gateway,
            }
            for mac in host.macs
        ],
    }


_MAX_SOURCES = 10


def tables(topology: Topology, scope: Collection[int] | None) -> Iterator[Item]:
    """Export the conntrack table of every namespace, without its entries."""
    for table in topology.snapshot.conntracks.values():
        if scope is None or table.ns in scope:
            yield _table(topology, table)


def _table(topology: Topology, table: Conntrack) -> Item:
    return {
        "ns": table.ns,
        "namespace": topology.label(table.ns),
        "entries": len(table.entries),
        "limit": table.limit or None,
        "accounting": table.accounting,
        "stats": plain(table.stats) if table.stats else None,
        "sources": [
            {"name": one.name or None, "address": one.address, "entries": one.entries}
            for one in sources(topology, table.ns, _MAX_SOURCES)
        ],
    }


SCHEMA = 1

Items = Callable[[Topology, Scope], Iterator[str]]


def _dumped(items: Callable[[Topology, Scope], Iterator[dict[str, Any]]]) -> Items:
    def lines(topology: Topology, scope: Scope) -> Iterator[str]:
        return map(_ENCODE, items(topology, scope))

    return lines


_ENCODE = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode

# The lists of each topic; each item becomes one line of the document.
TOPICS: Mapping[str, Mapping[str, Items]] = {
    "namespaces": {"namespaces": _dumped(namespaces)},
    "links": {"links": _dumped(links)},
    "bridges": {"bridges": _dumped(bridges), "ovs": _dumped(ovs)},
    "ovs": {"ovs": _dumped(ovs)},
    "veths": {"veths": _dumped(veths)},
    "containers": {"containers": _dumped(containers)},
    "networks": {"networks": _dumped(networks)},
    "nat": {"nat": _dumped(nat)},
    "conntrack": {"conntrack": flows.flows, "conntrack_tables": _dumped(tables)},
    "routes": {
        "routes": _dumped(routes),
        "rules": _dumped(rules),
        "neighbours": _dumped(neighbours),
    },
    "overlay": {"overlay": _dumped(overlay)},
}


def document_lines(topology: Topology, topics: Collection[str], scope: Scope = None) -> Iterator[str]:
    """Export topics as one JSON object in pieces, each item on a line of its own.

    Its keys are schema, taken_at, host, the topics' lists, the findings if all topics are exported, and the
    problems. `scope` limits them to namespaces by inode, None for all. The document is never held in memory
    as a whole.
    """
    snapshot = topology.snapshot
    host = _ENCODE(plain(snapshot.host))
    yield f'{{"schema":{SCHEMA},"taken_at":{_ENCODE(snapshot.taken_at)},"host":{host}'
    lists = {name: items for topic in topics for name, items in TOPICS[topic].items()}
    for name, items in lists.items():
        yield f',\n"{name}":['
        yield from _lines(items(topology, scope))
        yield "\n]"
    if set(topics) >= set(TOPICS):
        yield ',\n"findings":['
        yield from _lines(_ENCODE(finding_document(finding)) for finding in findings(topology))
        yield "\n]"
    yield ',\n"problems":['
    wanted = (one for one in snapshot.problems if scope is None or one.ns is None or one.ns in scope)
    yield from _lines(_ENCODE(plain(problem)) for problem in wanted)
    yield "\n]}\n"


def finding_document(finding: Finding) -> Item:
    """Export a finding; its repair as a sentence and a command."""
    fix = finding.fix
    return {
        "kind": finding.kind,
        "severity": finding.severity,
        "ref": plain(finding.ref),
        "short": finding.short,
        "sentence": finding.sentence,
        "related": [plain(one) for one in finding.related],
        "advice": finding.advice,
        "evidence": list(finding.evidence),
        "fix": {"sentence": fix.sentence, "command": fix.command} if fix else None,
    }


def _lines(items: Iterator[str]) -> Iterator[str]:
    separator = "\n"
    for item in items:
        yield separator + item
        separator = ",\n"
