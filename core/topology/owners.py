"""Who owns a namespace or an address, and what a person calls it."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.flows import address_bytes
from core.model import Container, Link, NetState, Ref
from core.model.refs import container_ref, link_ref, namespace_ref, network_ref
from core.networks import sandbox_of

if TYPE_CHECKING:
    from core.topology.index import Topology


_ENGINES_FIRST = {"docker": 0, "podman": 0, "netns": 1, "process": 2}


def primary(containers: Sequence[Container]) -> Container | None:
    """Of several containers in one namespace the one it is known by: an engine's before a plain one, one that
    runs before one that does not, one that made it before one that joined it."""
    return min(containers, key=_rank, default=None)


def _rank(container: Container) -> tuple[int, bool, bool, str]:
    return (
        _ENGINES_FIRST.get(container.runtime, 0),
        container.state != "running",
        container.network_mode.startswith("container:"),
        container.name,
    )


@dataclass(frozen=True, slots=True)
class AddressBook:
    """Owners of addresses. `seen` maps (namespace, address) to the container that is reached there over a
    link of that namespace; `own` the same for a namespace's own addresses; `parents` those that a namespace's
    links lead to; `of` a container's addresses by its uid."""

    seen: Mapping[tuple[int, str], Container]
    own: Mapping[tuple[int, str], Container]
    parents: Mapping[int, tuple[int, ...]]
    of: Mapping[str, tuple[str, ...]]

    def owner(self, ns: int, address: str) -> Container | None:
        """Who answers at `address`, as seen from namespace `ns`."""
        found = self.own.get((ns, address)) or self.seen.get((ns, address))
        if found is not None:
            return found
        beside = (self.seen.get((parent, address)) for parent in self.parents.get(ns, ()))
        return next((container for container in beside if container is not None), None)


def address_book(topology: Topology) -> AddressBook:
    """Gather the owners of all addresses of a snapshot: links' addresses first, then what engines say."""
    seen: dict[tuple[int, str], Container] = {}
    own: dict[tuple[int, str], Container] = {}
    parents: dict[int, tuple[int, ...]] = {}
    of: dict[str, dict[str, None]] = {}
    for ns, net in topology.snapshot.nets.items():
        container = topology.container_of(ns)
        parents[ns] = tuple(dict.fromkeys(_leads_to(topology, net)))
        if container is None:
            continue
        for link, address in _addresses(net):
            own.setdefault((ns, address), container)
            for member in topology.containers_in(ns):
                of.setdefault(member.uid, {})[address] = None
            for parent in _parents_of(topology, net, link):
                seen.setdefault((parent, address), container)
    for container in topology.containers.values():
        for address in _told(container):
            seen.setdefault((topology.host, address), container)
            of.setdefault(container.uid, {})[address] = None
    return AddressBook(seen, own, parents, {uid: tuple(found) for uid, found in of.items()})


def _addresses(net: NetState) -> Iterator[tuple[Link, str]]:
    for link in net.links.values():
        for address in link.addresses:
            if address.scope not in ("host", "link"):
                yield link, address.address


def _parents_of(topology: Topology, net: NetState, link: Link) -> Iterator[int]:
    peer = topology.peers.get(link.key)
    if peer is not None and peer.ns != net.ns:
        yield peer.ns
    elif link.lower_nsid is not None and link.lower_nsid in net.nsids:
        yield net.nsids[link.lower_nsid]


def _leads_to(topology: Topology, net: NetState) -> Iterator[int]:
    for link in net.links.values():
        yield from _parents_of(topology, net, link)


def _told(container: Container) -> Iterator[str]:
    """The addresses that an engine tells of a container; engines may tell anything, so only real ones."""
    for end in container.endpoints:
        for text in (end.ipv4, end.ipv6):
            address = text.partition("/")[0]
            if is_address(address):
                yield address


def is_address(text: str) -> bool:
    """Whether a text is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def label_of(topology: Topology, ns: int) -> str:
    """What a person calls a namespace; see Topology.label."""
    if ns == topology.host:
        return "host"
    container = topology.container_of(ns)
    if container is not None and container.name:
        return container.name
    space = topology.snapshot.namespaces.get(ns)
    if space is None:
        return f"net:[{ns}]"
    named = f"{space.command}[{space.pids[0]}]" if space.command and space.pids else ""
    return next(
        (text for text in (*space.names, sandbox_of(space), space.unit, named) if text), f"net:[{ns}]"
    )


def names_in(topology: Topology, ns: int) -> dict[bytes, str]:
    """Whose addresses are known in a namespace, by their 16 bytes: its own, and containers seen from it."""
    net = topology.snapshot.nets.get(ns)
    links = net.links.values() if net else ()
    names = {address_bytes(one.address): topology.label(ns) for link in links for one in link.addresses}
    for container in topology.containers.values():
        for address in topology.addresses_of(container):
            owner = topology.container_at(ns, address)
            if owner is not None:
                names[address_bytes(address)] = owner.name
    return names


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
