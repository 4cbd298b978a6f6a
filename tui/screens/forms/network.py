"""The form that makes a network."""

from __future__ import annotations

from itertools import count

from core.model import Link
from core.plan import ipam, ours
from core.plan.requests import KINDS, CreateNetwork
from core.topology import Topology
from tui.screens.forms.form import Filled, Form, Values, number, words
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
