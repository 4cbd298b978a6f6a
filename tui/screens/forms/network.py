"""The form that makes a network."""

from __future__ import annotations

from itertools import count

from core.model import Link, Ref
from core.plan import ipam, ours
from core.plan.requests import KINDS, MODELS, CreateContainer, CreateNetwork, Join, Part
from core.plan.tags import pair
from core.topology import Topology
from tui.command import CommandError
from tui.screens.forms.attach import by_label, free_address, our_names, selected, uid_of
from tui.screens.forms.change import Filled, Form, Values, form_about, number, words
from tui.widgets.form import Field

_NO_PORT = ("bridge", "loopback", "ovs-bridge")


def network_form() -> Form:
    """An empty one."""
    fields = (
        Field("name", "name", "15 bytes at most"),
        Field("kind", "kind", options=KINDS),
        Field("uplink", "network card", "the link that becomes its port", hidden=True),
        Field("subnet", "subnet", "a free one"),
        Field("gateway", "gateway", "the first address"),
        Field("ipv6", "IPv6 subnet"),
        Field("nat66", "translate IPv6", options=("no", "yes"), hidden=True),
        Field("mtu", "MTU", "that of the uplink"),
        Field("vlans", "VLAN-aware", options=("no", "yes")),
        Field("engine", "made by", options=("vnet", "docker"), hidden=True),
    )
    return Form("New network", "light", lambda values, topology: (_request(values),), fields, _fill)


def _fill(topology: Topology, values: Values) -> Filled:
    kind = values.get("kind", "nat")
    subnet = values.get("subnet", _free(topology, 4))
    free6 = _free(topology, 6)
    cards = tuple(link.name for link in _cards(topology))
    way = topology.uplink(topology.host)
    card = way[0].name if way and way[0].name in cards else next(iter(cards), "")
    docker = topology.snapshot.engines.get("docker")
    hidden = {"subnet", "gateway", "ipv6", "nat66"} if kind == "nic-bridged" else {"uplink"}
    hidden |= set() if kind == "nat" and values.get("ipv6", "none") not in ("", "none") else {"nat66"}
    hidden |= set() if docker and docker.state == "ok" else {"engine"}
    return Filled(
        {
            "name": _name(topology), "kind": "nat", "uplink": card, "subnet": subnet,
            "gateway": _gateway(subnet), "ipv6": "none", "nat66": "no", "vlans": "no", "engine": "vnet",
        },
        {"uplink": cards, "ipv6": ("none", free6) if free6 else ("none",)},
        frozenset(hidden),
    )  # fmt: skip


def _name(topology: Topology) -> str:
    net = topology.snapshot.nets.get(topology.host)
    taken = {network.name for network in topology.networks}
    taken |= set(ours(topology.snapshot, topology.host).networks)
    taken |= {link.name.removeprefix("br-") for link in net.links.values()} if net else set()
    return next(name for number in count(1) if (name := f"net{number}") not in taken)


def _free(topology: Topology, family: int) -> str:
    try:
        return ipam.propose_subnet(topology.snapshot, family)
    except ipam.Exhausted:
        return ""


def _gateway(subnet: str) -> str:
    try:
        return ipam.next_address(subnet, ())
    except (ValueError, ipam.Exhausted):
        return ""


def _cards(topology: Topology) -> list[Link]:
    """The host's links that could become a port, network cards first."""
    net = topology.snapshot.nets.get(topology.host)
    free = [
        link
        for link in (net.links.values() if net else ())
        if link.kind not in _NO_PORT and link.master is None
    ]
    return sorted(free, key=lambda link: (link.kind == "veth", link.name))


def _request(values: Values) -> CreateNetwork:
    ipv6 = values.get("ipv6", "none")
    return CreateNetwork(
        values["name"],
        values["kind"],
        words(values.get("subnet", "")) + (() if ipv6 == "none" else words(ipv6)),
        words(values.get("gateway", "")),
        mtu=number(values["mtu"], "MTU", 1400),
        uplink=values.get("uplink", ""),
        nat66=values.get("nat66") == "yes",
        vlan_filtering=values["vlans"] == "yes",
        engine=values.get("engine", "vnet"),
    )


def container_form(ref: Ref | None) -> Form:
    """One that begins with the selected network."""
    fields = (
        Field("name", "name", "15 bytes at most"),
        Field("model", "model", options=MODELS),
        Field("network", "network", "n makes one"),
        Field("address", "address", "a free one"),
        Field("joined", "joined with", "whose network it shares"),
    )
    return form_about(
        ref, "New plain container (a named namespace)", fields, _fill_container, _container_request
    )


def _fill_container(topology: Topology, values: Values, ref: Ref | None) -> Filled:
    networks, containers = our_names(topology), by_label(topology.containers.values())
    chosen = selected(topology, ref)
    model = values.get("model", "bridged" if chosen.network in networks else "closed")
    network = values.get("network", chosen.network_in(networks))
    hidden = set() if model == "bridged" else {"network", "address"}
    hidden |= set() if model == "joined" else {"joined"}
    return Filled(
        {
            "name": _container_name(topology), "model": model, "network": network,
            "address": free_address(topology, network), "joined": chosen.container_in(containers),
        },
        {"network": networks, "joined": tuple(containers)},
        frozenset(hidden),
    )  # fmt: skip


def _container_name(topology: Topology) -> str:
    taken = {name for space in topology.snapshot.namespaces.values() for name in space.names}
    return next(name for number in count(1) if (name := f"box{number}") not in taken)


def _container_request(values: Values, topology: Topology) -> CreateContainer:
    joined = uid_of(values["joined"], topology.containers.values()) if "joined" in values else ""
    addresses = words(values.get("address", ""))
    return CreateContainer(values["name"], values["model"], values.get("network", ""), addresses, joined)


_STATES = ("joined", "apart")


def join_form(ref: Ref | None) -> Form:
    """One that begins with the selected network."""
    fields = (
        Field("network", "network", "one of vnet's"),
        Field("other", "other", "another of vnet's"),
        Field("state", "shall be", options=_STATES),
    )
    return form_about(ref, "Join or part two networks", fields, _fill_join, _join_request)


def _fill_join(topology: Topology, values: Values, ref: Ref | None) -> Filled:
    """Of a network with several others, one that it is joined with comes last."""
    names, joined = our_names(topology), ours(topology.snapshot, topology.host).joined
    network = values.get("network", selected(topology, ref).network_in(names))
    others = tuple(
        sorted((one for one in names if one != network), key=lambda one: pair(network, one) in joined)
    )
    other = values.get("other", next(iter(others), ""))
    state = _STATES[pair(network, other) in joined]
    return Filled({"network": network, "other": other, "state": state}, {"network": names, "other": others})


def _join_request(values: Values, topology: Topology) -> Join | Part:
    if not values["network"] or not values["other"]:
        raise CommandError("it takes two networks of vnet's: n makes one")
    return (Join if values["state"] == "joined" else Part)(values["network"], values["other"])
