"""Routes, policy rules and neighbours as JSON objects."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from core.codec import plain
from core.model import NetState
from core.topology import Topology

Item = dict[str, Any]
Scope = Collection[int] | None


def _nets(topology: Topology, scope: Scope) -> Iterator[tuple[NetState, Item]]:
    """The networks in scope, each with the fields that say where its things lie."""
    for ns, net in topology.snapshot.nets.items():
        if scope is None or ns in scope:
            yield net, {"ns": ns, "namespace": topology.label(ns)}


def _name(net: NetState, ifindex: int | None) -> str | None:
    link = net.links.get(ifindex or 0)
    return link.name if link else None


def routes(topology: Topology, scope: Scope) -> Iterator[Item]:
    """Every route of every table."""
    for net, where in _nets(topology, scope):
        for route in net.routes:
            hops = [{**plain(hop), "link": _name(net, hop.ifindex)} for hop in route.nexthops]
            yield {**where, **plain(route), "nexthops": hops}


def rules(topology: Topology, scope: Scope) -> Iterator[Item]:
    """Every policy rule."""
    for net, where in _nets(topology, scope):
        for rule in net.rules:
            yield {**where, **plain(rule)}


def neighbours(topology: Topology, scope: Scope) -> Iterator[Item]:
    """Every neighbour entry."""
    for net, where in _nets(topology, scope):
        for neighbour in net.neighbours:
            yield {**where, **plain(neighbour), "link": _name(net, neighbour.ifindex)}
