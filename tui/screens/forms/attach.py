"""Define the forms that attach, detach and move a container."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count

from core.model import Container, LinkKey, Ref
from core.plan import ipam, vnet_state
from core.plan.requests import Attach, Detach, Move
from core.text import safe
from core.topology import Topology
from tui.command import CommandError
from tui.screens.forms.change import Form, FormState, Values, form_about, number, words
from tui.widgets.form import Field

# Docker's networks that nothing can be attached to, or detached from.
_NO_NETWORKS = ("host", "none")


@dataclass(frozen=True, slots=True)
class Selected:
    """Container and network of the selected thing, each None if there is none."""

    container: Container | None = None
    network: str = ""

    def network_in(self, networks: tuple[str, ...]) -> str:
        """Return the selected network if it is one of these, else the first of them."""
        return self.network if self.network in networks else next(iter(networks), "")

    def container_in(self, containers: dict[str, Container]) -> str:
        """Return the label of the selected container if listed, else the first label."""
        found = (label for label, one in containers.items() if one == self.container)
        return next(found, next(iter(containers), ""))


def selected(topology: Topology, ref: Ref | None) -> Selected:
    """Return the container and the network of a ref."""
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
    """Return the container at either end of a link, and the network at either end."""
    link = topology.snapshot.link(key)
    peer = topology.peer(link) if link else None
    network = next((one for end in (link, peer) if end and (one := topology.network_of(end))), None)
    container = topology.container_of(key.ns) or (topology.container_of(peer.ns) if peer else None)
    return Selected(container, _name(topology, network.name, network.bridge) if network else "")


def _name(topology: Topology, name: str, bridge: str) -> str:
    """Return a network's name: from vnet's tag, if its bridge has one."""
    vnet = vnet_state(topology.snapshot, topology.host).networks.values()
    return next((one.name for one in vnet if bridge and one.bridge == bridge), name)


def by_label(containers: Iterable[Container]) -> dict[str, Container]:
    """Return containers by name, or by uid if they share a name."""
    every = list(containers)
    names = [safe(one.name) for one in every]
    return {
        name if names.count(name) == 1 else safe(one.uid): one
        for name, one in sorted(zip(names, every, strict=True), key=lambda pair: pair[0])
    }


def uid_of(text: str, containers: Iterable[Container]) -> str:
    """Return the uid of the container of that label, else the text itself."""
    found = by_label(containers).get(text)
    return found.uid if found else text


def able(topology: Topology) -> list[Container]:
    """Return the containers with a network namespace of their own."""
    return [one for one in topology.containers.values() if one.netns not in (None, topology.host)]


def vnet_networks(topology: Topology) -> tuple[str, ...]:
    """Return the names of vnet's networks."""
    return tuple(sorted(vnet_state(topology.snapshot, topology.host).networks))


def foreign_networks(topology: Topology) -> tuple[str, ...]:
    """Return the networks of the host that neither vnet nor an engine made."""
    vnet = {one.bridge for one in vnet_state(topology.snapshot, topology.host).networks.values()}
    found = [one for one in topology.networks if one.engine == "kernel" and one.ns == topology.host]
    return tuple(sorted(safe(one.name) for one in found if one.bridge not in vnet))


def docker_networks(topology: Topology) -> tuple[str, ...]:
    """Return Docker's networks that containers can be attached to."""
    docker = topology.snapshot.engines.get("docker")
    networks = docker.networks if docker else ()
    return tuple(sorted(one.name for one in networks if one.driver == "bridge"))


def networks_for(topology: Topology, container: Container | None) -> tuple[str, ...]:
    """Return the networks to attach the container to: vnet's, then Docker's.

    Docker's are listed for its own containers, or if no container is given.
    """
    theirs = docker_networks(topology) if container is None or container.runtime == "docker" else ()
    there = set(networks_with(topology, container)) if container else set()
    return tuple(one for one in dict.fromkeys([*vnet_networks(topology), *theirs]) if one not in there)


def networks_with(topology: Topology, container: Container) -> tuple[str, ...]:
    """Return the networks to detach a container from: our own, then Docker's."""
    members = vnet_state(topology.snapshot, topology.host).members
    vnet = sorted(one.network for one in members if one.container == container.uid)
    theirs = [one.network for one in container.endpoints] if container.runtime == "docker" else []
    return tuple(dict.fromkeys([*vnet, *(one for one in theirs if one not in _NO_NETWORKS)]))


def free_address(topology: Topology, network: str) -> str:
    """Return the next free address of a network; "" if Docker chooses it."""
    found = vnet_state(topology.snapshot, topology.host).networks.get(network)
    used = ipam.used_addresses(topology.snapshot)
    try:
        return ipam.next_address(found.subnets[0], used) if found and found.subnets else ""
    except ipam.Exhausted:
        return ""


def attach_form(ref: Ref | None) -> Form:
    """Return a form that starts with the selected row's object."""
    fields = (
        Field("container", "container", "its name"),
        Field("network", "network", "no network yet: Esc, then n creates one"),
        Field("address", "address", "a free address"),
        Field("link", "link name", "the first free ethN"),
        Field("vlan", "VLAN", "none: with the host", hidden=True),
    )
    return form_about(ref, "Attach a container", fields, _fill_attach, _attach)


def detach_form(ref: Ref | None) -> Form:
    """Return a form that starts with the selected row's object."""
    fields = (
        Field("container", "container", "its name"),
        Field("network", "network", "no network of vnet-tui or Docker"),
    )
    return form_about(ref, "Detach a container", fields, _fill_leaving, _detach)


def move_form(ref: Ref | None) -> Form:
    """Return a form that starts with the selected row's object."""
    fields = (
        Field("container", "container", "its name"),
        Field("network", "from", "no network of vnet-tui or Docker"),
        Field("to", "to", "no other one: Esc, then n creates one"),
        Field("address", "address", "a free address"),
    )
    return form_about(ref, "Move a container", fields, _fill_move, _move)


def _fill_attach(topology: Topology, values: Values, ref: Ref | None) -> FormState:
    containers, chosen = by_label(able(topology)), selected(topology, ref)
    every = {label: networks_for(topology, one) for label, one in containers.items()}
    fitting = {label: one for label, one in containers.items() if chosen.network_in(every[label])}
    wanting = {label: one for label, one in fitting.items() if chosen.network in every[label]}
    label = chosen.container_in(containers if chosen.container else wanting or fitting or containers)
    container = values.get("container", label)
    networks = every.get(container, networks_for(topology, None))
    network = values.get("network", chosen.network_in(networks))
    # Docker names the link inside itself.
    hidden = {"link"} if _is_dockers(network, topology) else set()
    hidden |= set() if _is_on_ovs(network, topology) else {"vlan"}
    return FormState(
        {
            "container": container, "network": network, "address": free_address(topology, network),
            "link": _link(topology, containers.get(container)), "vlan": "",
        },
        {"container": tuple(containers), "network": networks},
        frozenset(hidden),
    )  # fmt: skip


def _fill_leaving(topology: Topology, values: Values, ref: Ref | None) -> FormState:
    """Propose a container that is attached to a network: the selected one first."""
    chosen, containers = selected(topology, ref), by_label(able(topology))
    there = {label: networks_with(topology, one) for label, one in containers.items()}
    fitting = {label: one for label, one in containers.items() if there[label]}
    on_it = {label: one for label, one in fitting.items() if chosen.network in there[label]}
    label = chosen.container_in(containers) if chosen.container else next(iter(on_it or fitting), "")
    container = values.get("container", label)
    networks = there.get(container, ())
    return FormState(
        {"container": container, "network": chosen.network_in(networks)},
        {"container": tuple(dict.fromkeys([*fitting, label] if label else fitting)), "network": networks},
    )


def _fill_move(topology: Topology, values: Values, ref: Ref | None) -> FormState:
    filled = _fill_leaving(topology, values, ref)
    container = by_label(able(topology)).get(filled.proposals["container"])
    network = values.get("network", filled.proposals["network"])
    same = vnet_networks(topology) if network in vnet_networks(topology) else docker_networks(topology)
    others = tuple(one for one in networks_for(topology, container) if one in same)
    to = values.get("to", next(iter(others), ""))
    return FormState(
        {**filled.proposals, "to": to, "address": free_address(topology, to)},
        {**filled.options, "to": others},
    )


def _is_dockers(network: str, topology: Topology) -> bool:
    return network in docker_networks(topology) and network not in vnet_networks(topology)


def _is_on_ovs(network: str, topology: Topology) -> bool:
    found = vnet_state(topology.snapshot, topology.host).networks.get(network)
    return found is not None and found.kind == "ovs"


def _link(topology: Topology, container: Container | None) -> str:
    net = topology.snapshot.nets.get(container.netns or 0) if container else None
    names = {link.name for link in net.links.values()} if net else set()
    return next(name for number in count() if (name := f"eth{number}") not in names)


def _container(values: Values, topology: Topology) -> str:
    """Return the uid of the container to attach.

    Raises CommandError.
    """
    if not values["container"]:
        raise CommandError("can't attach a container: there is none. Try: c, which creates a plain one")
    return uid_of(values["container"], able(topology))


def _leaving(verb: str, values: Values, topology: Topology) -> str:
    """Return the uid of the container to detach or move.

    Raises CommandError.
    """
    if not values["network"]:
        who, which = (values["container"], "it") if values["container"] else ("a container", "one")
        why = f"neither vnet-tui nor Docker attached {which} to a network"
        raise CommandError(f"can't {verb} {who}: {why}. Try: d for other links")
    return uid_of(values["container"], able(topology))


def _describe_networks(topology: Topology) -> str:
    """Explain which networks containers can be attached to, and which not."""
    able_to = [*vnet_networks(topology), *docker_networks(topology)]
    foreign = foreign_networks(topology)
    words = f"possible networks, created by vnet-tui or Docker: {', '.join(able_to) or 'none yet'}"
    return f"{words}; not possible: {', '.join(foreign)}" if foreign else words


def _attach(values: Values, topology: Topology) -> Attach:
    container = _container(values, topology)
    if not values["network"]:
        why = f"there is no network for it ({_describe_networks(topology)})"
        raise CommandError(f"can't attach {values['container']}: {why}. Try: n, which creates one")
    return Attach(
        container, values["network"], words(values["address"]), values.get("link", ""),
        number(values.get("vlan", ""), "VLAN", 10),
    )  # fmt: skip


def _detach(values: Values, topology: Topology) -> Detach:
    return Detach(_leaving("detach", values, topology), values["network"])


def _move(values: Values, topology: Topology) -> Move:
    container = _leaving("move", values, topology)
    if not values["to"]:
        why = f"there is no other network for it ({_describe_networks(topology)})"
        raise CommandError(f"can't move {values['container']}: {why}. Try: n, which creates one")
    return Move(container, values["network"], values["to"], words(values["address"]))
