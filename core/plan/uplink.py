"""Plan to move the host's network from a NIC to a bridge over it, and back.

The host's addresses, routes and neighbours move.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from core.model import Link, Neighbour, Route
from core.operations import (
    HOST,
    AddAddress,
    AddNeighbour,
    CreateBridge,
    DeleteNeighbour,
    DeleteRoute,
    SetLink,
)
from core.plan.builder import CannotPlan, PlanBuilder, require, when
from core.plan.connectivity import warn_of_move
from core.plan.requests import CreateNetwork
from core.plan.tags import VnetNetwork
from core.plan.teardown import (
    address_operation,
    as_operation,
    by_advertisement,
    delete_empty_bridge,
    has_gateway,
    is_over,
    is_static_over,
    own_addresses,
    prefix_of,
    release_port,
    with_link,
)
from core.plan.validate import NAME_BYTES
from core.text import safe

_UNSUPPORTED_KINDS = ("loopback", "bridge", "ovs-bridge", "tun", "wireguard", "ipip", "sit", "gre")
# Links on top of a NIC with which the kernel refuses to make it a bridge port.
_UPPER_KINDS = ("macvlan", "macvtap", "ipvlan", "ipvtap")
_REACHABLE = ("reachable", "stale", "delay", "probe")


def bridge_nic(network: VnetNetwork, request: CreateNetwork, builder: PlanBuilder) -> None:
    """Plan to create a bridge over a NIC, and to move the host's addresses to it.

    The bridge has the NIC's MAC address, and the NIC becomes its port.
    """
    nic = _nic(request, builder)
    builder.add(
        CreateBridge(
            network.bridge, mac=nic.mac, mtu=network.mtu, alias=network.tag(),
            vlan_filtering=request.vlan_filtering,
        ),
        SetLink(network.bridge, "up", "up", "down"),
    )  # fmt: skip
    if network.mtu != nic.mtu:
        builder.add(SetLink(nic.name, "mtu", str(network.mtu), str(nic.mtu)))
    if not nic.admin_up:
        builder.add(SetLink(nic.name, "up", "up", "down"))
    builder.add(SetLink(nic.name, "master", network.bridge, ""))
    _move(nic, network.bridge, builder)
    builder.guarded = True
    builder.warn(
        f"the program that configures {safe(nic.name)} (NetworkManager, systemd-networkd, a DHCP client) may "
        f"restore its address: configure {network.bridge} there instead"
    )


def _nic(request: CreateNetwork, builder: PlanBuilder) -> Link:
    if not request.uplink:
        raise CannotPlan(["a NIC-bridged network needs an uplink, the NIC that becomes its port"])
    nic = builder.link(request.uplink)
    if nic is None:
        raise CannotPlan([f'the host has no link "{safe(request.uplink)}"'])
    require(
        when(nic.kind in _UNSUPPORTED_KINDS, f"{safe(nic.name)} ({nic.kind}) can't be a bridge port"),
        when(nic.master is not None, f"{safe(nic.name)} is already a port of another link"),
        *(_refusal(nic, one, builder) for one in _upper_links(nic, builder)),
    )
    return nic


def _refusal(nic: Link, top: Link, builder: PlanBuilder) -> str:
    namespace = safe(builder.topology.label(top.ns))
    return (
        f"the kernel refuses to attach {safe(nic.name)} to a bridge because of "
        f"the {top.kind} {safe(top.name)} in {namespace}"
    )


def _upper_links(nic: Link, builder: PlanBuilder) -> Iterator[Link]:
    """Yield links of these kinds on top of a NIC, in any namespace."""
    for net in builder.snapshot.nets.values():
        for link in net.links.values():
            parent = net.ns if link.lower_nsid is None else net.nsids.get(link.lower_nsid)
            if link.kind in _UPPER_KINDS and (parent, link.lower) == nic.key:
                yield link


def restore_nic(network: VnetNetwork, bridge: Link, builder: PlanBuilder) -> None:
    """Plan to move addresses and routes back to the NIC, and to delete the bridge."""
    nic = builder.link(network.uplink)
    if nic is None:
        remedy = f"move the addresses of {bridge.name} to another link first"
        raise CannotPlan([f"its NIC {safe(network.uplink)} no longer exists. Try: {remedy}"])
    release_port(builder, nic, HOST)
    _move(bridge, nic.name, builder)
    builder.guarded = True
    if bridge.admin_up:
        builder.add(SetLink(bridge.name, "up", "down", "up"))
    delete_empty_bridge(builder, bridge)


def _move(source: Link, to: str, builder: PlanBuilder) -> None:
    """Move addresses, neighbours and routes to another link.

    Each address is added before it is deleted from the old link; routes are replaced one by one.
    """
    addresses = [address_operation(source.name, one, HOST) for one in own_addresses(source)]
    routes = [as_operation(route, builder.host, HOST) for route in _routes(source, builder)]
    expiring = [
        replace(as_operation(route, builder.host, HOST), beside=True)
        for route in _expiring_routes(source, builder)
    ]
    warn_of_move(source, to, builder)
    builder.add(*(with_link(route, source.name, to) for route in expiring))
    builder.add(*(_relabelled(one, source.name, to, builder) for one in addresses))
    builder.add(*_neighbours(source, to, builder))
    # Routes with a gateway need the route to the gateway: add that first.
    for route in sorted(routes, key=has_gateway):
        builder.add(DeleteRoute(route), with_link(route, source.name, to))
    # Later addresses of a subnet are secondary to the first; expiring ones leave the subnet's route behind.
    addresses.reverse()
    for one in sorted(addresses, key=lambda one: not one.valid_until):
        builder.add(*one.inverse())
    builder.add(*map(DeleteRoute, expiring))


def _expiring_routes(source: Link, builder: PlanBuilder) -> Iterator[Route]:
    """Yield the routes to subnets of expiring IPv6 addresses.

    The kernel doesn't delete them with the address (ipv6_del_addr), unless the subnet has a permanent
    address.
    """
    addresses = [one for one in own_addresses(source) if one.family == 6 and one.prefix_route]
    permanent = {prefix_of(one) for one in addresses if not one.valid_until}
    expiring = {prefix_of(one) for one in addresses} - permanent
    for route in builder.host.routes:
        if route.dst in expiring and route.protocol == "kernel" and is_over(route, source):
            yield route


def _relabelled(address: AddAddress, link: str, to: str, builder: PlanBuilder) -> AddAddress:
    """Return the address for the link `to`.

    By ip-address(8) a label must begin with the link's name.
    """
    label = f"{to}{address.label.removeprefix(link)}" if address.label.startswith(link) else ""
    if len(label) > NAME_BYTES or (address.label and not label):
        builder.warn(f"{address.address} loses its label {safe(address.label)}: {to} can't have it")
        label = ""
    return replace(address, link=to, label=label)


def _routes(source: Link, builder: PlanBuilder) -> Iterator[Route]:
    for route in builder.host.routes:
        if is_static_over(route, source) or (by_advertisement(route) and is_over(route, source)):
            yield route


def _neighbours(source: Link, to: str, builder: PlanBuilder) -> Iterator[AddNeighbour | DeleteNeighbour]:
    """Move permanent neighbours, and copy reachable ones as stale.

    The kernel verifies stale ones.
    """
    for one in builder.host.neighbours:
        if one.ifindex == source.ifindex and one.mac and not one.proxy:
            yield from _neighbour(one, source.name, to)


def _neighbour(one: Neighbour, source: str, to: str) -> Iterator[AddNeighbour | DeleteNeighbour]:
    if one.state == "permanent":
        yield AddNeighbour(to, one.address, one.mac, state="permanent")
        yield DeleteNeighbour(AddNeighbour(source, one.address, one.mac, state="permanent"))
    elif one.state in _REACHABLE:
        yield AddNeighbour(to, one.address, one.mac, state="stale")
