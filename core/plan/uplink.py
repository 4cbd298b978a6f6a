"""Moving what a link is for the host (addresses, routes, neighbours) to a bridge over it, and back."""

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
from core.plan.tags import OurNetwork
from core.plan.teardown import (
    address_operation,
    as_operation,
    by_advertisement,
    delete_empty_bridge,
    has_gateway,
    is_over,
    leads_over,
    moved,
    own_addresses,
    prefix_of,
    release_port,
)
from core.plan.validate import NAME_BYTES
from core.text import safe

_UNFIT = ("loopback", "bridge", "ovs-bridge", "tun", "wireguard", "ipip", "sit", "gre")
# Links that take in a card's frames themselves: the kernel lets no bridge have it then.
_TAKERS = ("macvlan", "macvtap", "ipvlan", "ipvtap")
_ANSWERED = ("reachable", "stale", "delay", "probe")


def bridge_nic(network: OurNetwork, request: CreateNetwork, draft: PlanBuilder) -> None:
    """Make a bridge with the card's own MAC, make the card its port, and move the host over to it."""
    card = _card(request, draft)
    draft.do(
        CreateBridge(
            network.bridge, mac=card.mac, mtu=network.mtu, alias=network.tag(),
            vlan_filtering=request.vlan_filtering,
        ),
        SetLink(network.bridge, "up", "up", "down"),
    )  # fmt: skip
    if network.mtu != card.mtu:
        draft.do(SetLink(card.name, "mtu", str(network.mtu), str(card.mtu)))
    if not card.admin_up:
        draft.do(SetLink(card.name, "up", "up", "down"))
    draft.do(SetLink(card.name, "master", network.bridge, ""))
    _move(card, network.bridge, draft)
    draft.guarded = True
    draft.warn(
        f"what configures {safe(card.name)} (NetworkManager, systemd-networkd, a DHCP client) may give it "
        f"its address back: let it configure {network.bridge} instead"
    )


def _card(request: CreateNetwork, draft: PlanBuilder) -> Link:
    if not request.uplink:
        raise CannotPlan(["a NIC-bridged network needs the link that becomes its port"])
    card = draft.link(request.uplink)
    if card is None:
        raise CannotPlan([f'there is no link "{safe(request.uplink)}" on the host'])
    require(
        when(card.kind in _UNFIT, f"{safe(card.name)} ({card.kind}) cannot be a port of a bridge"),
        when(card.master is not None, f"{safe(card.name)} is a port of another link already"),
        *(_carries(card, one, draft) for one in _on_top(card, draft)),
    )
    return card


def _carries(card: Link, top: Link, draft: PlanBuilder) -> str:
    where = safe(draft.topology.label(top.ns))
    return (
        f"{safe(card.name)} carries the {top.kind} {safe(top.name)} in {where}: "
        "the kernel does not let such a link be a port of a bridge"
    )


def _on_top(card: Link, draft: PlanBuilder) -> Iterator[Link]:
    """The links, in whichever namespace, that take in the card's frames."""
    for net in draft.snapshot.nets.values():
        for link in net.links.values():
            parent = net.ns if link.lower_nsid is None else net.nsids.get(link.lower_nsid)
            if link.kind in _TAKERS and (parent, link.lower) == card.key:
                yield link


def restore_nic(network: OurNetwork, bridge: Link, draft: PlanBuilder) -> None:
    """Give the card back what its bridge has, and delete the bridge."""
    card = draft.link(network.uplink)
    if card is None:
        raise CannotPlan(
            [f"its card {safe(network.uplink)} is gone: move the addresses of {bridge.name} first"]
        )
    release_port(draft, card, HOST)
    _move(bridge, card.name, draft)
    draft.guarded = True
    if bridge.admin_up:
        draft.do(SetLink(bridge.name, "up", "down", "up"))
    delete_empty_bridge(draft, bridge)


def _move(source: Link, to: str, draft: PlanBuilder) -> None:
    """The new link has every address before the old one loses it, and a route is gone for a moment only."""
    given = [address_operation(source.name, one, HOST) for one in own_addresses(source)]
    routes = [as_operation(route, draft.host, HOST) for route in _routes(source, draft)]
    lingering = [
        replace(as_operation(route, draft.host, HOST), beside=True) for route in _lingering(source, draft)
    ]
    warn_of_move(source, to, draft)
    draft.do(*(moved(route, source.name, to) for route in lingering))
    draft.do(*(_relabelled(one, source.name, to, draft) for one in given))
    draft.do(*_neighbours(source, to, draft))
    # Ways over a gateway need the way to the gateway: that goes first.
    for route in sorted(routes, key=has_gateway):
        draft.do(DeleteRoute(route), moved(route, source.name, to))
    # Later addresses of a subnet are secondary to the first, and those that expire leave the subnet's route.
    given.reverse()
    for one in sorted(given, key=lambda one: not one.valid_until):
        draft.do(*one.inverse())
    draft.do(*map(DeleteRoute, lingering))


def _lingering(source: Link, draft: PlanBuilder) -> Iterator[Route]:
    """The routes to the subnets of IPv6 addresses that expire: the kernel does not take them away with the
    address (ipv6_del_addr), unless another one in the subnet stays for ever."""
    addresses = [one for one in own_addresses(source) if one.family == 6 and one.prefix_route]
    lasting = {prefix_of(one) for one in addresses if not one.valid_until}
    expiring = {prefix_of(one) for one in addresses} - lasting
    for route in draft.host.routes:
        if route.dst in expiring and route.protocol == "kernel" and is_over(route, source):
            yield route


def _relabelled(address: AddAddress, link: str, to: str, draft: PlanBuilder) -> AddAddress:
    """The same address for the link `to`. Labels begin with the link's name, as ip-address(8) demands."""
    label = f"{to}{address.label.removeprefix(link)}" if address.label.startswith(link) else ""
    if len(label) > NAME_BYTES or (address.label and not label):
        draft.warn(f"{address.address} loses its label {safe(address.label)}: {to} can have none like it")
        label = ""
    return replace(address, link=to, label=label)


def _routes(source: Link, draft: PlanBuilder) -> Iterator[Route]:
    for route in draft.host.routes:
        if leads_over(route, source) or (by_advertisement(route) and is_over(route, source)):
            yield route


def _neighbours(source: Link, to: str, draft: PlanBuilder) -> Iterator[AddNeighbour | DeleteNeighbour]:
    """Permanent neighbours move; those that answered of late are told to the new link, which asks again when
    it must."""
    for one in draft.host.neighbours:
        if one.ifindex == source.ifindex and one.mac and not one.proxy:
            yield from _neighbour(one, source.name, to)


def _neighbour(one: Neighbour, source: str, to: str) -> Iterator[AddNeighbour | DeleteNeighbour]:
    if one.state == "permanent":
        yield AddNeighbour(to, one.address, one.mac, state="permanent")
        yield DeleteNeighbour(AddNeighbour(source, one.address, one.mac, state="permanent"))
    elif one.state in _ANSWERED:
        yield AddNeighbour(to, one.address, one.mac, state="stale")
