"""Moving what a link is for the host (addresses, routes, neighbours) to a bridge over it, and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from core.model import Link, Neighbour, Route
from core.ops import HOST, AddNeighbour, AddRoute, CreateBridge, DeleteNeighbour, DeleteRoute, SetLink
from core.plan.base import Refusal, require, when
from core.plan.draft import Draft
from core.plan.requests import CreateNetwork
from core.plan.tags import OurNetwork
from core.plan.teardown import address_operation, as_operation, delete_empty_bridge, leads_over, own_addresses
from core.text import safe

_UNFIT = ("loopback", "bridge", "ovs-bridge", "tun", "wireguard", "ipip", "sit", "gre")
_ANSWERED = ("reachable", "stale", "delay", "probe")


def bridge_nic(network: OurNetwork, request: CreateNetwork, draft: Draft) -> None:
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


def _card(request: CreateNetwork, draft: Draft) -> Link:
    if not request.uplink:
        raise Refusal(["a NIC-bridged network needs the link that becomes its port"])
    card = draft.link(request.uplink)
    if card is None:
        raise Refusal([f'there is no link "{safe(request.uplink)}" on the host'])
    require(
        when(card.kind in _UNFIT, f"{safe(card.name)} ({card.kind}) cannot be a port of a bridge"),
        when(card.master is not None, f"{safe(card.name)} is a port of another link already"),
        _several_ways(card, draft),
    )
    return card


def _several_ways(card: Link, draft: Draft) -> str:
    several = [
        route.dst
        for route in draft.host.routes
        if len(route.nexthops) > 1 and any(hop.ifindex == card.ifindex for hop in route.nexthops)
    ]
    return when(
        several,
        f"the route to {', '.join(several)} has several ways, one over {safe(card.name)}: move it by hand",
    )


def restore_nic(network: OurNetwork, bridge: Link, draft: Draft) -> None:
    """Give the card back what its bridge has, and delete the bridge."""
    card = draft.link(network.uplink)
    if card is None:
        raise Refusal([f"its card {safe(network.uplink)} is gone: move the addresses of {bridge.name} first"])
    draft.do(SetLink(card.name, "master", "", bridge.name))
    _move(bridge, card.name, draft)
    draft.guarded = True
    if bridge.admin_up:
        draft.do(SetLink(bridge.name, "up", "down", "up"))
    delete_empty_bridge(draft, bridge)


def _move(source: Link, to: str, draft: Draft) -> None:
    """The new link has every address before the old one loses it, and a route is gone for a moment only."""
    given = [address_operation(source.name, one, HOST) for one in own_addresses(source)]
    routes = list(_routes(source, draft))
    draft.do(*(replace(one, link=to) for one in given))
    draft.do(*_neighbours(source, to, draft))
    # Ways over a gateway need the way to the gateway: that goes first.
    for route in sorted(routes, key=lambda one: bool(one.gateway)):
        draft.do(DeleteRoute(route), replace(route, link=to))
    for one in reversed(given):
        draft.do(*one.inverse())


def _routes(source: Link, draft: Draft) -> Iterator[AddRoute]:
    for route in draft.host.routes:
        if leads_over(route, source) or _by_advertisement(route, source):
            yield as_operation(route, source.name, draft.place_of(source.ns))


def _by_advertisement(route: Route, link: Link) -> bool:
    hops = route.nexthops
    return (
        route.protocol == "ra"
        and len(hops) == 1
        and bool(hops[0].gateway)
        and hops[0].ifindex == link.ifindex
    )


def _neighbours(source: Link, to: str, draft: Draft) -> Iterator[AddNeighbour | DeleteNeighbour]:
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
