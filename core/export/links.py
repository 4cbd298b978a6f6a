"""Links, bridges and veth pairs as JSON objects."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from core.codec import plain
from core.model import Link, LinkKey
from core.topology import Topology

Item = dict[str, Any]
Scope = Collection[int] | None


def links(topology: Topology, scope: Scope) -> Iterator[Item]:
    """Every link."""
    for link in topology.snapshot.links():
        if scope is None or link.ns in scope:
            yield _link(topology, link)


def _link(topology: Topology, link: Link) -> Item:
    return {**plain(link), **_joined(topology, link), "peer": _end(topology, topology.peer(link))}


def _joined(topology: Topology, link: Link) -> Item:
    master = topology.snapshot.link((link.ns, link.master)) if link.master is not None else None
    container, network = topology.container_of(link.ns), topology.network_of(link)
    return {
        "namespace": topology.label(link.ns),
        "master_name": master.name if master else None,
        "container": container.uid if container else None,
        "network": network.id if network else None,
    }


def _end(topology: Topology, link: Link | None) -> Item | None:
    """What tells a link among all links, and where it lies."""
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
    """Every bridge with its ports and its forwarding table."""
    for link in topology.snapshot.links():
        if link.kind in ("bridge", "ovs-bridge") and (scope is None or link.ns in scope):
            fdb = (each for each in topology.snapshot.nets[link.ns].fdb if each.bridge == link.ifindex)
            yield {
                **_link(topology, link),
                "ports": [_port(topology, port) for port in topology.ports_of(link.key)],
                "fdb": [plain(entry) for entry in fdb],
            }


def ovs(topology: Topology, scope: Scope) -> Iterator[Item]:
    """Every Open vSwitch bridge, as its database tells it; they belong to the host."""
    if scope is None or topology.host in scope:
        yield from map(plain, topology.snapshot.ovs)


def _port(topology: Topology, link: Link) -> Item:
    return {
        "ifindex": link.ifindex,
        "name": link.name,
        "kind": link.kind,
        "state": link.state,
        "port": plain(link.port) if link.port else None,
        "peer": _end(topology, topology.peer(link)),
    }


def veths(topology: Topology, scope: Scope) -> Iterator[Item]:
    """Every veth pair once; a peer that is out of sight leaves one end alone."""
    told: set[LinkKey] = set()
    for link in topology.snapshot.links():
        if link.kind != "veth" or link.key in told:
            continue
        peer = topology.peer(link)
        ends = [link, *([peer] if peer else [])]
        told.update(end.key for end in ends)
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
        **_joined(topology, link),
    }
