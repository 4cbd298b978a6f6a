"""Find the container and the link that dropped packets concern."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from core.drop_reasons import explain
from core.model import Container, Drop, Link
from core.topology.index import Topology


def container_of_drop(topology: Topology, drop: Drop) -> Container | None:
    """Return the container whose packets were dropped.

    That is the one in whose namespace it happened, else the owner of the address, else the one behind the
    link; None if it isn't known.
    """
    own = topology.container_of(drop.ns)
    if own is not None:
        return own
    if drop.address:
        return topology.container_at(drop.ns, drop.address)
    link = link_of_drop(topology, drop)
    peer = topology.peer(link) if link is not None else None
    return topology.container_of(peer.ns) if peer is not None else None


def link_of_drop(topology: Topology, drop: Drop) -> Link | None:
    """Return the link at which packets were dropped, None if it is unknown or gone."""
    return topology.snapshot.link((drop.ns, drop.ifindex)) if drop.ifindex else None


def place_of_drop(topology: Topology, drop: Drop) -> tuple[str, str]:
    """Return the names of namespace and link, verbatim; "" for what isn't known."""
    link = link_of_drop(topology, drop)
    name = link.name if link is not None else f"#{drop.ifindex}" if drop.ifindex else ""
    return (topology.label(drop.ns) if drop.ns else ""), name


def advice_for(topology: Topology, drop: Drop) -> str:
    """Return what to try, with the link's name in it; "" for nothing."""
    advice, link = explain(drop.reason, drop.function).advice, link_of_drop(topology, drop)
    return advice.replace("LINK", link.name) if link is not None else advice


class KnownNamespaces:
    """Remember the namespaces that were seen, and leave out drops of all others.

    The kernel reports drops of the whole machine; a process in a PID namespace sees only some namespaces.
    """

    def __init__(self) -> None:
        self._seen: set[int] = {0}

    def add(self, topology: Topology) -> None:
        """Add the namespaces of a topology."""
        self._seen |= topology.snapshot.namespaces.keys()

    def of(self, drops: Iterable[Drop]) -> Iterator[Drop]:
        """Yield the drops of known namespaces."""
        return (one for one in drops if one.ns in self._seen)
