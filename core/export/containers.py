"""Containers as JSON objects, with their model cards."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from core.codec import plain
from core.model import Container
from core.topology import Topology

Item = dict[str, Any]


def containers(topology: Topology, scope: Collection[int] | None) -> Iterator[Item]:
    """Every container of every runtime."""
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
