"""What forms take from the selected thing, and what is there to choose from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from core.model import Container, LinkKey, Ref
from core.plan import ipam, ours
from core.text import safe
from core.topology import Topology

# The networks of Docker's that nothing can be attached to, nor detached from.
_NO_NETWORKS = ("host", "none")


@dataclass(frozen=True, slots=True)
class Selected:
    """The container and the network that belong to the selected thing, None where none does."""

    container: Container | None = None
    network: str = ""

    def network_in(self, networks: tuple[str, ...]) -> str:
        """The selected network, where it is one of these, else the first of them."""
        return self.network if self.network in networks else next(iter(networks), "")

    def container_in(self, containers: dict[str, Container]) -> str:
        """The label of the selected container, where it is one of these, else of the first of them."""
        found = (label for label, one in containers.items() if one == self.container)
        return next(found, next(iter(containers), ""))


def selected(topology: Topology, ref: Ref | None) -> Selected:
    """What a reference stands for in a form."""
    match ref:
        case Ref("container", (str(runtime), str(container_id))):
            return Selected(topology.containers.get(f"{runtime}:{container_id}"))
        case Ref("namespace", (int(inode),)):
            return Selected(topology.container_of(inode))
        case Ref("network", (str(network_id),)):
            network = topology.network(network_id)
            return Selected(None, _name(topology, network.name, network.bridge) if network else "")
        case Ref("link", (int(ns), int(ifindex))):
            return _of_link(topology, LinkKey(ns, ifindex))
    return Selected()


def _of_link(topology: Topology, key: LinkKey) -> Selected:
    """The container at either end of a link, and the network at either end."""
    link = topology.snapshot.link(key)
    peer = topology.peer(link) if link else None
    network = next((one for end in (link, peer) if end and (one := topology.network_of(end))), None)
    container = topology.container_of(key.ns) or (topology.container_of(peer.ns) if peer else None)
    return Selected(container, _name(topology, network.name, network.bridge) if network else "")


def _name(topology: Topology, name: str, bridge: str) -> str:
    """A network's name; that of our own tag, where its bridge carries one."""
    mine = ours(topology.snapshot, topology.host).networks.values()
    return next((one.name for one in mine if bridge and one.bridge == bridge), name)


def by_label(containers: Iterable[Container]) -> dict[str, Container]:
    """Containers by what a person calls them; those that share a name by their uid."""
    every = list(containers)
    names = [safe(one.name) for one in every]
    return {
        name if names.count(name) == 1 else safe(one.uid): one
        for name, one in sorted(zip(names, every, strict=True), key=lambda pair: pair[0])
    }


def uid_of(text: str, containers: Iterable[Container]) -> str:
    """The uid of the container of that label; the text itself, where it is none."""
    found = by_label(containers).get(text)
    return found.uid if found else text


def able(topology: Topology) -> list[Container]:
    """The containers with a network namespace of their own."""
    return [one for one in topology.containers.values() if one.netns not in (None, topology.host)]


def our_names(topology: Topology) -> tuple[str, ...]:
    """The networks of ours."""
    return tuple(sorted(ours(topology.snapshot, topology.host).networks))


def others_names(topology: Topology) -> tuple[str, ...]:
    """The networks of the host that neither vnet nor an engine made."""
    mine = {one.bridge for one in ours(topology.snapshot, topology.host).networks.values()}
    found = [one for one in topology.networks if one.engine == "kernel" and one.ns == topology.host]
    return tuple(sorted(safe(one.name) for one in found if one.bridge not in mine))


def dockers_names(topology: Topology) -> tuple[str, ...]:
    """The networks of Docker's that take containers."""
    docker = topology.snapshot.engines.get("docker")
    networks = docker.networks if docker else ()
    return tuple(sorted(one.name for one in networks if one.driver == "bridge"))


def networks_for(topology: Topology, container: Container | None) -> tuple[str, ...]:
    """The networks that take a container and that it is not on yet: ours, then, where it is Docker's or none
    in particular, Docker's."""
    theirs = dockers_names(topology) if container is None or container.runtime == "docker" else ()
    there = set(networks_with(topology, container)) if container else set()
    return tuple(one for one in dict.fromkeys([*our_names(topology), *theirs]) if one not in there)


def networks_with(topology: Topology, container: Container) -> tuple[str, ...]:
    """The networks that a container can be detached from: ours, then Docker's."""
    members = ours(topology.snapshot, topology.host).members
    mine = sorted(one.network for one in members if one.container == container.uid)
    theirs = [one.network for one in container.endpoints] if container.runtime == "docker" else []
    return tuple(dict.fromkeys([*mine, *(one for one in theirs if one not in _NO_NETWORKS)]))


def free_address(topology: Topology, network: str) -> str:
    """The next free address of a network of ours; "" leaves it to who makes it."""
    found = ours(topology.snapshot, topology.host).networks.get(network)
    used = ipam.used_addresses(topology.snapshot)
    try:
        return ipam.next_address(found.subnets[0], used) if found and found.subnets else ""
    except ipam.Exhausted:
        return ""
