"""What a person means by a name alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from core.model import Ref
from core.model.refs import container_ref, link_ref, namespace_ref, network_ref

if TYPE_CHECKING:
    from core.topology.index import Topology


def thing_named(topology: Topology, name: str) -> Ref | None:
    """The container, network, link (the host's before others') or namespace of that name, whatever the case
    of its letters, in this order; None where there is none."""
    return next(things_named(topology, name), None)


def things_named(topology: Topology, name: str) -> Iterator[Ref]:
    """All of that name, in this order."""
    wanted = name.casefold()
    return (ref for known, ref in _names(topology) if known.casefold() == wanted)


def _names(topology: Topology) -> Iterator[tuple[str, Ref]]:
    yield from ((one.name, container_ref(one.runtime, one.id)) for one in topology.containers.values())
    yield from ((one.name, network_ref(one.id)) for one in topology.networks)
    nets = topology.snapshot.nets
    for ns in sorted(nets, key=lambda ns: ns != topology.host):
        yield from ((link.name, link_ref(link.key)) for link in nets[ns].links.values())
    yield from ((topology.label(ns), namespace_ref(ns)) for ns in topology.snapshot.namespaces)
