"""Define forms for networks, unmanaged containers, ports and deletion."""

from __future__ import annotations

from itertools import count

from core.model import Container, Link, Ref
from core.model.fix import Fix
from core.plan import ipam, vnet_state
from core.plan.ports import free_port
from core.plan.requests import (
    DATAPATHS,
    KINDS,
    MODELS,
    PROTOCOLS,
    CountTraffic,
    CreateContainer,
    CreateNetwork,
    Delete,
    DeleteFlow,
    Detach,
    Join,
    Publish,
    Repair,
    Request,
    Separate,
)
from core.plan.tags import pair
from core.plan.vxlan import subnet_by_name, vni_by_name
from core.topology import Topology
from tui.command import CommandError
from tui.screens.forms.attach import (
    able,
    by_label,
    free_address,
    networks_with,
    selected,
    uid_of,
    vnet_networks,
)
from tui.screens.forms.change import Form, FormState, Values, form_about, number, words
from tui.widgets.form import Field

_NO_PORT = ("bridge", "loopback", "ovs-bridge")


def network_form() -> Form:
    """Return an empty form."""
    fields = (
        Field("name", "name", "at most 15 bytes"),
        Field("kind", "kind", options=KINDS),
        Field("uplink", "uplink NIC", "the NIC that becomes its port", hidden=True),
        Field("remotes", "other hosts", "addresses; more can join later", hidden=True),
        Field("etcd", "etcd", "http://ADDRESS:2379 if it is used", hidden=True),
        Field("evpn", "BGP EVPN", options=("no", "yes"), hidden=True),
        Field("vni", "VNI", "follows from the name", hidden=True),
        Field("subnet", "subnet", "a free subnet, or that of etcd"),
        Field("gateway", "gateway", "the first address"),
        Field("ipv6", "IPv6 subnet"),
        Field("nat66", "masquerade IPv6", options=("no", "yes"), hidden=True),
        Field("mtu", "MTU", "the uplink's"),
        Field("vlans", "VLAN filtering", options=("no", "yes")),
        Field("datapath", "datapath", options=DATAPATHS, hidden=True),
        Field("engine", "engine", options=("vnet", "docker"), hidden=True),
    )
    return Form("New network", "network", lambda values, topology: (_request(values),), fields, _fill)


def _fill(topology: Topology, values: Values) -> FormState:
    kind, name = values.get("kind", "nat"), _name(topology)
    is_overlay, named = kind == "overlay", values.get("name", name)
    # With etcd nothing is proposed: another host may have defined it otherwise.
    with_etcd = is_overlay and bool(values.get("etcd"))
    subnet = subnet_by_name(named, 4) if is_overlay else _free(topology, 4)
    subnet = values.get("subnet", "" if with_etcd else subnet)
    free6 = subnet_by_name(named, 6) if is_overlay else _free(topology, 6)
    cards = tuple(link.name for link in _cards(topology))
    way = topology.uplink(topology.host)
    card = way[0].name if way and way[0].name in cards else next(iter(cards), "")
    docker = topology.snapshot.engines.get("docker")
    hidden = {"subnet", "gateway", "ipv6", "nat66"} if kind == "nic-bridged" else {"uplink"}
    translated = kind in ("nat", "ovs") and values.get("ipv6", "none") not in ("", "none")
    hidden |= set() if translated else {"nat66"}
    hidden |= {"engine"} if is_overlay else {"etcd", "remotes", "vni", "evpn"}
    hidden |= {"remotes"} if with_etcd else set()
    hidden |= set() if topology.snapshot.frr.daemons else {"evpn"}
    hidden |= {"vlans"} if kind == "ovs" else {"datapath"}
    hidden |= set() if docker and docker.state == "ok" else {"engine"}
    return FormState(
        {
            "name": name, "kind": "nat", "uplink": card, "subnet": subnet,
            "gateway": _gateway(subnet), "ipv6": "none", "nat66": "no", "vlans": "no", "engine": "vnet",
            "etcd": "", "remotes": "",
            "evpn": "yes" if topology.snapshot.frr.config.group else "no",
            "vni": str(vni_by_name(named)) if is_overlay and not with_etcd else "",
            "datapath": DATAPATHS[0],
        },
        {"uplink": cards, "ipv6": ("none", free6) if free6 else ("none",)},
        frozenset(hidden),
    )  # fmt: skip


def _name(topology: Topology) -> str:
    net = topology.snapshot.nets.get(topology.host)
    taken = {network.name for network in topology.networks}
    taken |= set(vnet_state(topology.snapshot, topology.host).networks)
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
    """Return the host's links that could become ports, network cards first."""
    net = topology.snapshot.nets.get(topology.host)
    free = [
        link
        for link in (net.links.values() if net else ())
        if link.kind not in _NO_PORT and link.master is None
    ]
    return sorted(free, key=lambda link: (link.kind == "veth", link.name))


def _request(values: Values) -> CreateNetwork:
    ipv6, evpn = values.get("ipv6", "none"), values.get("evpn") == "yes"
    hosts = words(values.get("remotes", ""))
    vni = number(values.get("vni", ""), "VNI", 100)
    if values.get("vni") and not vni:
        raise CommandError('can\'t use "0" as VNI: it is out of range. Try: 100')
    subnets, by_name = words(values.get("subnet", "")), False
    if values["kind"] == "overlay" and not subnets and ipv6 not in ("", "none"):
        # The IPv4 subnet follows from the name, or both from etcd.
        by_name = ipv6 == subnet_by_name(values["name"], 6)
        subnets = () if by_name else (subnet_by_name(values["name"], 4),)
    return CreateNetwork(
        values["name"],
        values["kind"],
        subnets + (() if by_name or ipv6 == "none" else words(ipv6)),
        words(values.get("gateway", "")),
        ipv6=by_name,
        mtu=number(values["mtu"], "MTU", 1400),
        uplink=values.get("uplink", ""),
        nat66=values.get("nat66") == "yes",
        vlan_filtering=values.get("vlans") == "yes",
        engine=values.get("engine", "vnet"),
        vni=vni,
        remotes=() if evpn else hosts,
        peers=hosts if evpn else (),
        evpn=evpn,
        datapath=values.get("datapath", ""),
        etcd=values.get("etcd", ""),
    )


def container_form(ref: Ref | None) -> Form:
    """Return a form that starts with the selected network."""
    fields = (
        Field("name", "name", "at most 15 bytes"),
        Field("model", "model", options=MODELS),
        Field("network", "network", "no network yet: Esc, then n creates one"),
        Field("address", "address", "a free address"),
        Field("joined", "joined with", "the container whose namespace it shares"),
    )
    return form_about(
        ref, "New plain container (named namespace)", fields, _fill_container, _container_request
    )


def _fill_container(topology: Topology, values: Values, ref: Ref | None) -> FormState:
    networks, containers = vnet_networks(topology), by_label(topology.containers.values())
    chosen = selected(topology, ref)
    model = values.get("model", "bridged" if chosen.network in networks else "closed")
    network = values.get("network", chosen.network_in(networks))
    hidden = set() if model == "bridged" else {"network", "address"}
    hidden |= set() if model == "joined" else {"joined"}
    return FormState(
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
    """Return a form that starts with the selected network."""
    fields = (
        Field("network", "network", "a network of vnet-tui"),
        Field("other", "other", "another one"),
        Field("state", "state", options=_STATES),
    )
    return form_about(ref, "Join or separate two networks", fields, _fill_join, _join_request)


def _fill_join(topology: Topology, values: Values, ref: Ref | None) -> FormState:
    """Return the form's state; networks that are joined already are listed last."""
    names, joined = vnet_networks(topology), vnet_state(topology.snapshot, topology.host).joined
    network = values.get("network", selected(topology, ref).network_in(names))
    others = tuple(
        sorted((one for one in names if one != network), key=lambda one: pair(network, one) in joined)
    )
    other = values.get("other", next(iter(others), ""))
    state = _STATES[pair(network, other) in joined]
    return FormState(
        {"network": network, "other": other, "state": state}, {"network": names, "other": others}
    )


def _join_request(values: Values, topology: Topology) -> Join | Separate:
    if not values["network"] or not values["other"]:
        raise CommandError(
            "can't join networks: two networks of vnet-tui are needed. Try: n, which creates one"
        )
    return (Join if values["state"] == "joined" else Separate)(values["network"], values["other"])


def publish_form(ref: Ref | None) -> Form:
    """Return a form that starts with the selected container."""
    fields = (
        Field("container", "container", "its name"),
        Field("host", "host port", "or a range, 8000-8010"),
        Field("inside", "container port", "the host port"),
        Field("proto", "protocol", options=PROTOCOLS),
        Field("address", "host address", "all addresses"),
    )
    return form_about(ref, "Publish a port", fields, _publish_state, _publish_request, "publishing")


def _publish_state(topology: Topology, values: Values, ref: Ref | None) -> FormState:
    containers = by_label(able(topology))
    label, proto = selected(topology, ref).container_in(containers), values.get("proto", "tcp")
    proposals = {"container": label, "host": free_port(topology, proto), "inside": "80", "proto": "tcp"}
    addresses = _addresses(topology, containers.get(values.get("container", label)))
    return FormState(proposals, {"container": tuple(containers), "address": addresses})


def _addresses(topology: Topology, container: Container | None) -> tuple[str, ...]:
    """Return the host's addresses of a container's address families.

    ::1 leads to no container.
    """
    net = topology.snapshot.nets.get(topology.host)
    own = [one for link in net.links.values() for one in link.addresses] if net else []
    families = {":" in one for one in topology.addresses_of(container)} if container else set()
    found = [one.address for one in own if one.scope != "link" and one.address != "::1"]
    return tuple(dict.fromkeys(one for one in found if (":" in one) in families))


def _publish_request(values: Values, topology: Topology) -> Publish:
    container = uid_of(values["container"], able(topology))
    return Publish(container, values["host"], values["inside"], values["proto"], values["address"])


def delete_form(ref: Ref) -> Form:
    """Return the form that asks whether to delete the selected object."""
    title = "Unpublish" if ref.kind == "nat" else "Delete"
    return Form(title, "whole", lambda values, topology: (_delete_request(ref, topology),), is_question=True)


def _delete_request(ref: Ref, topology: Topology) -> Request:
    """Delete a thing; Docker's containers are detached instead of their links."""
    chosen = selected(topology, ref)
    if ref.kind == "link" and chosen.container and chosen.container.runtime == "docker":
        theirs = set(networks_with(topology, chosen.container)) - set(
            vnet_state(topology.snapshot, topology.host).networks
        )
        if chosen.network in theirs:
            return Detach(chosen.container.uid, chosen.network)
    return Delete(ref)


def repair_form(fix: Fix) -> Form:
    """Return the form that asks whether to apply the fix of a finding."""
    request = Repair(fix.sentence, fix.steps)
    return Form("Repair", "repair", lambda values, topology: (request,), is_question=True)


def forget_form(request: DeleteFlow) -> Form:
    """Return the form that asks whether to delete a connection from conntrack."""
    return Form("Delete a connection", "light", lambda values, topology: (request,), is_question=True)


def counting_form(namespaces: tuple[int, ...]) -> Form | None:
    """Return the form for namespaces that don't count, None without any."""
    request = CountTraffic(namespaces)
    title = "Traffic accounting"
    return Form(title, "light", lambda values, topology: (request,), is_question=True) if namespaces else None
