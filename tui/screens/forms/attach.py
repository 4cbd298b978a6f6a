"""The form that attaches a container to a network, and what forms take from the selected thing."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from core.model import Container, LinkKey, Ref
from core.plan import ipam, ours
from core.plan.requests import Attach
from core.topology import Topology
from tui.screens.forms.form import Filled, Form, Values, by_label, uid_of, words
from tui.widgets.form import Field


@dataclass(frozen=True, slots=True)
class Selected:
    """The container and the network that belong to the selected thing, None where none does."""

    container: Container | None = None
    network: str = ""

    def network_in(self, networks: tuple[str, ...]) -> str:
        """The selected network, where it is one of these, else the first of them."""
        return self.network if self.network in networks else next(iter(networks), "")


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
            link = topology.snapshot.link(LinkKey(ns, ifindex))
            network = topology.network_of(link) if link else None
            name = _name(topology, network.name, network.bridge) if network else ""
            peer = topology.peer(link) if link else None
            return Selected(
                topology.container_of(ns) or (topology.container_of(peer.ns) if peer else None), name
            )
    return Selected()


def _name(topology: Topology, name: str, bridge: str) -> str:
    """A network's name; that of our own tag, where its bridge carries one."""
    mine = ours(topology.snapshot, topology.host).networks.values()
    return next((one.name for one in mine if bridge and one.bridge == bridge), name)


def attach_form(ref: Ref | None) -> Form:
    """One that begins with the selected thing."""
    fields = (
        Field("container", "container", "its name"),
        Field("network", "network", "n makes one"),
        Field("address", "address", "a free one"),
        Field("link", "link inside", "the first free ethN"),
    )
    return Form(
        "Attach a container",
        "light",
        lambda values, topology: (_request(values, topology),),
        fields,
        lambda topology, values: _fill(topology, values, selected(topology, ref)),
    )


def able(topology: Topology) -> list[Container]:
    """The containers with a network namespace of their own."""
    return [one for one in topology.containers.values() if one.netns not in (None, topology.host)]


def _fill(topology: Topology, values: Values, chosen: Selected) -> Filled:
    containers = by_label(able(topology))
    networks = network_names(topology)
    label = next((name for name, one in containers.items() if one == chosen.container), "")
    container = values.get("container", label or next(iter(containers), ""))
    network = values.get("network", chosen.network_in(networks))
    return Filled(
        {
            "container": container, "network": network, "address": free_address(topology, network),
            "link": _link(topology, containers.get(container)),
        },
        {"container": tuple(containers), "network": networks},
    )  # fmt: skip


def network_names(topology: Topology) -> tuple[str, ...]:
    """The networks that take containers: ours, then Docker's."""
    docker = topology.snapshot.engines.get("docker")
    theirs = [one.name for one in docker.networks if one.driver == "bridge"] if docker else []
    return tuple(dict.fromkeys([*sorted(ours(topology.snapshot, topology.host).networks), *sorted(theirs)]))


def free_address(topology: Topology, network: str) -> str:
    """The next free address of a network of ours; "" leaves it to who makes it."""
    found = ours(topology.snapshot, topology.host).networks.get(network)
    used = ipam.used_addresses(topology.snapshot)
    try:
        return ipam.next_address(found.subnets[0], used) if found and found.subnets else ""
    except ipam.Exhausted:
        return ""


def _link(topology: Topology, container: Container | None) -> str:
    net = topology.snapshot.nets.get(container.netns or 0) if container else None
    names = {link.name for link in net.links.values()} if net else set()
    return next(name for number in count() if (name := f"eth{number}") not in names)


def _request(values: Values, topology: Topology) -> Attach:
    container = uid_of(values["container"], able(topology))
    return Attach(container, values["network"], words(values["address"]), values["link"])
