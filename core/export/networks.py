"""Namespaces, networks and NAT entries as JSON objects."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from core.codec import plain
from core.topology import Topology
from core.topology.related import concerns

Item = dict[str, Any]
Scope = Collection[int] | None


def namespaces(topology: Topology, scope: Scope) -> Iterator[Item]:
    """Every network namespace."""
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
    """Every network, engines' and kernel's."""
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
    """Every translation and forward filter."""
    for entry in topology.nat:
        if scope is None or concerns(topology, entry, scope):
            yield {**plain(entry), "namespace": topology.label(entry.ns)}
