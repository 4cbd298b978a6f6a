"""Find the bridges to accelerate: of a selected thing or a typed name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from core.flows import address_text, entry_of
from core.model import Container, FastPath, Link, Network, Ref
from core.model.fastpath import ALL
from core.text import parse_tag, safe
from core.topology import Topology

_NOTHING = {
    "macvlan": "macvlan connects containers to the NIC without a bridge: nothing to accelerate",
    "ipvlan": "ipvlan connects containers to the NIC without a bridge: nothing to accelerate",
    "host": "its containers use the host's network: nothing is forwarded, so nothing to accelerate",
    "none": "its containers have no network: nothing to accelerate",
    "overlay": "its bridge is in a namespace of its engine: nothing to accelerate on this host",
}
_NO_NETWORK = {
    "joined": "it shares another container's network: accelerate that container",
    "host": "it uses the host's network: nothing is forwarded, so nothing to accelerate",
    "none": "it has no network: nothing to accelerate",
    "": "its network isn't known: select its bridge",
}
_SWITCH = "Open vSwitch bridges can't be accelerated: they forward by their own tables"


@dataclass(frozen=True, slots=True)
class BridgeChoice:
    """A bridge to accelerate: its `target` name, and all of its names.

    `nothing` is the reason why there is nothing to do, `label` the text for people.
    """

    label: str
    target: str = ""
    bridge: str = ""
    names: frozenset[str] = frozenset()
    nothing: str = ""


EVERYTHING = BridgeChoice("all bridges, including new ones", ALL, "", frozenset({ALL}))


def choices_of(topology: Topology, ref: Ref | None) -> tuple[BridgeChoice, ...]:
    """Return the bridges of an object.

    A bridge or network stands for itself, a port for its bridge, a container for its networks, a connection
    for those of the containers at its ends, the host for all bridges; others for none.
    """
    if ref is None:
        return ()
    match ref.kind:
        case "network":
            network = topology.network(str(ref.key[0]))
            return (of_network(topology, network),) if network else ()
        case "container":
            mine = (one for one in topology.containers.values() if one.id == str(ref.key[1]))
            return tuple(choice for one in mine for choice in _of_container(topology, one))
        case "link":
            return _of_link(topology, ref)
        case "namespace":
            return _of_namespace(topology, int(ref.key[0]))
        case "flow" | "conntrack":
            return _of_connection(topology, int(ref.key[0]), int(ref.key[1]))
    return ()


def _of_connection(topology: Topology, ns: int, number: int) -> tuple[BridgeChoice, ...]:
    """Return the networks of a connection's containers, or why there are none."""
    table = topology.snapshot.conntracks.get(ns)
    if table is None or not (table.entries["id"] == number).any():
        return ()
    entry = entry_of(table.entries[np.argmax(table.entries["id"] == number)])
    ends = (topology.container_at(ns, address_text(raw)) for raw in (entry.orig_src, entry.reply_src))
    found = dict.fromkeys(choice for one in ends if one for choice in _of_container(topology, one))
    return tuple(choice for choice in found if choice.target) or tuple(found)


def _of_container(topology: Topology, container: Container) -> tuple[BridgeChoice, ...]:
    """Return its networks, or why there is nothing to do."""
    if networks := topology.networks_of(container):
        return tuple(of_network(topology, network) for network in networks)
    mode = container.network_mode
    why = _NO_NETWORK.get("joined" if mode.startswith("container:") else mode, _NO_NETWORK[""])
    return (BridgeChoice(safe(container.name), nothing=why),)


def _of_namespace(topology: Topology, inode: int) -> tuple[BridgeChoice, ...]:
    if inode == topology.host:
        return (EVERYTHING,)
    inside = topology.containers_in(inode)
    return tuple(choice for one in inside[:1] for choice in _of_container(topology, one))


def _of_link(topology: Topology, ref: Ref) -> tuple[BridgeChoice, ...]:
    """Return the bridge: the link, its master, or that of its veth peer."""
    link = next((one for one in topology.snapshot.links() if tuple(one.key) == ref.key), None)
    if link is None:
        return ()
    bridge = link if topology.is_bridge(link) else topology.bridge_of(link)
    if bridge is None and (peer := topology.peer(link)):
        bridge = topology.bridge_of(peer)
    return (of_bridge(topology, bridge),) if bridge else ()


def of_network(topology: Topology, network: Network) -> BridgeChoice:
    """Return the choice for a network's bridge."""
    label = safe(network.name)
    if network.kind in _NOTHING and not network.bridge:
        return BridgeChoice(label, nothing=_NOTHING[network.kind])
    bridge = topology.bridge_link(network)
    if bridge is None:
        return BridgeChoice(label, nothing="it has no bridge here: nothing to accelerate")
    return of_bridge(topology, bridge)


def of_bridge(topology: Topology, bridge: Link) -> BridgeChoice:
    """Return the choice for a bridge, named by its network if that is unique."""
    network = topology.network_of(bridge)
    name = network.name if network else bridge.name
    label = safe(bridge.name if name == bridge.name else f"{name} (bridge {bridge.name})")
    if bridge.kind != "bridge":
        return BridgeChoice(label, nothing=_SWITCH)
    if bridge.ns != topology.host:
        return BridgeChoice(
            label, nothing="it is in another namespace: only bridges of the host are accelerated"
        )
    names = frozenset(_names(topology, bridge))
    here = [net for net in topology.networks if net.ns in (None, bridge.ns)]
    same = [net for net in here if net.name == name and net.bridge and net.bridge != bridge.name]
    taken = any(link.name == name and link.key != bridge.key for link in _bridges(topology))
    return BridgeChoice(label, bridge.name if same or taken else name, bridge.name, names)


def _names(topology: Topology, bridge: Link) -> Iterable[str]:
    yield bridge.name
    yield from bridge.altnames
    yield from (parse_tag(bridge.alias) or {}).get("net") or ()
    for network in topology.networks:
        if network.bridge == bridge.name and network.ns in (None, bridge.ns):
            yield from (network.name, network.id)


def _bridges(topology: Topology) -> list[Link]:
    """Return the host's own Linux bridges."""
    host = topology.snapshot.nets.get(topology.host)
    return [link for link in host.links.values() if link.kind == "bridge"] if host else []


def all_choices(topology: Topology) -> tuple[BridgeChoice, ...]:
    """Return each of the host's bridges."""
    return tuple(of_bridge(topology, link) for link in sorted(_bridges(topology), key=lambda one: one.name))


def choice_named(topology: Topology, word: str) -> BridgeChoice | None:
    """Return the choice of that name, None if there is none.

    "all", a bridge, a network, or the beginning of an engine's id.
    """
    if word == ALL:
        return EVERYTHING
    for bridge in _bridges(topology):
        if word in (bridge.name, *bridge.altnames):
            return of_bridge(topology, bridge)
    found = [net for net in topology.networks if word in (net.name, net.id)]
    found = found or [net for net in topology.networks if len(word) >= 4 and net.id.startswith(word)]
    found.sort(key=lambda net: (topology.bridge_link(net) is None, net.ns not in (None, topology.host)))
    return of_network(topology, found[0]) if found else None


def is_covered(choice: BridgeChoice, fast: FastPath) -> bool:
    """Return whether the fast path accelerates it, or would if not paused."""
    return fast.is_running and (ALL in fast.targets or bool(choice.names & set(fast.targets)))


def added(choices: Iterable[BridgeChoice], fast: FastPath) -> tuple[str, ...]:
    """Return the targets with these choices added."""
    missing = [one.target for one in choices if one.target and not is_covered(one, fast)]
    if ALL in missing:
        return (ALL,)
    return tuple(dict.fromkeys((*fast.targets, *missing)))


def removed(choices: Iterable[BridgeChoice], fast: FastPath, topology: Topology) -> tuple[str, ...]:
    """Return the targets without these choices.

    "all" becomes every other bridge that exists now.
    """
    choices = tuple(choices)
    missing = frozenset().union(*(one.names for one in choices))
    if ALL in missing:
        return ()
    if ALL in fast.targets:
        return tuple(one.target for one in all_choices(topology) if one.target and not one.names & missing)
    return tuple(name for name in fast.targets if name not in missing)
