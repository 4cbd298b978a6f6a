"""Taking links down step by step, each step carrying what brings it back."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import replace

from core.model import Address, BridgePort, BridgeSettings, Link, NetState, NextHop, PortVlan, Route
from core.model.link import METRICS
from core.operations import (
    AddAddress,
    AddNeighbour,
    AddRoute,
    AddVlan,
    CreateBridge,
    CreateVeth,
    DeleteLink,
    DeleteNeighbour,
    DeleteRoute,
    DeleteVlan,
    Hop,
    NetnsTarget,
    Operation,
    SetBridge,
    SetLink,
    SetPort,
)
from core.plan.builder import CannotPlan, PlanBuilder, Target
from core.plan.tuning import PLAIN_SIZE, resize
from core.text import safe

# The names of the options that AddRoute carries.
_CARRIED = {*METRICS.values(), "tos", "pref"}


def leads_over(route: Route, link: Link) -> bool:
    """Whether it is a route of somebody's of which one way at least leaves by that link."""
    return is_over(route, link) and not _by_itself(route, link)


def is_over(route: Route, link: Link) -> bool:
    """Whether one way at least leaves by that link."""
    return any(hop.ifindex == link.ifindex for hop in route.nexthops)


def _by_itself(route: Route, link: Link) -> bool:
    """Whether the kernel makes it, and takes it away, with the address, the link or the next advertisement.
    Network managers, too, call what they make for a subnet the kernel's."""
    if route.protocol == "kernel":
        return route.table == "local" or route.dst in set(_prefixes(link))
    return route.protocol == "redirect" or by_advertisement(route)


def by_advertisement(route: Route) -> bool:
    """Whether a router told of it itself."""
    return route.protocol == "ra" and any(hop.gateway for hop in route.nexthops)


def _prefixes(link: Link) -> Iterator[str]:
    """The prefixes that the kernel makes a route to with an address."""
    yield "fe80::/64"
    for one in link.addresses:
        if one.prefix_route:
            yield prefix_of(one)
            yield prefix_of(replace(one, address=one.peer or one.address))


def prefix_of(address: Address) -> str:
    """The subnet of an address."""
    return str(ipaddress.ip_network(str(address), strict=False))


def as_operation(route: Route, net: NetState, place: NetnsTarget) -> AddRoute:
    """The operation that makes a route of `net`. Raises Refusal for one that no operation makes."""
    wrong = [option for option in route.options if _is_foreign(option)]
    hops = tuple(_hop(hop, net) for hop in route.nexthops)
    if wrong or not all(hop.link for hop in hops):
        why = f" ({', '.join(wrong)})" if wrong else ""
        raise CannotPlan(
            [f"the route to {route.dst}{why} could not be made anew: take it away by hand before"]
        )
    several = len(hops) > 1
    return AddRoute(
        route.dst,
        "" if several else hops[0].link,
        "" if several else hops[0].gateway,
        place,
        route.metric,
        route.source,
        route.protocol,
        route.scope if route.family == 4 and route.scope != "global" else "",
        route.family,
        "" if route.table == "main" else route.table,
        "" if route.kind == "unicast" else route.kind,
        not several and hops[0].onlink,
        tuple(route.options),
        hops if several else (),
        route.valid_until,
    )


def _is_foreign(option: str) -> bool:
    name, _, value = option.partition(" ")
    return name not in _CARRIED or (name == "features" and value != "ecn")


def _hop(hop: NextHop, net: NetState) -> Hop:
    link = net.links.get(hop.ifindex or 0)
    return Hop(link.name if link else "", hop.gateway, hop.weight, hop.onlink)


def without(net: NetState, link: Link, place: NetnsTarget) -> Iterator[DeleteRoute | AddRoute]:
    """What takes away the routes that somebody made over a link, those by a gateway first; a route with other
    ways as well keeps these."""
    over = [as_operation(route, net, place) for route in net.routes if leads_over(route, link)]
    for route in sorted(over, key=lambda one: not has_gateway(one)):
        yield DeleteRoute(route)
        if left := tuple(hop for hop in route.hops if hop.link != link.name):
            yield _by(route, left)


def has_gateway(route: AddRoute) -> bool:
    """Whether a way to a gateway has to be there before."""
    return any(hop.gateway for hop in route.next_hops)


def moved(route: AddRoute, link: str, to: str) -> AddRoute:
    """The same route with the link `to` instead of `link`."""
    return _by(route, tuple(replace(hop, link=to) if hop.link == link else hop for hop in route.next_hops))


def _by(route: AddRoute, ways: tuple[Hop, ...]) -> AddRoute:
    if len(ways) > 1:
        return replace(route, hops=ways)
    (only,) = ways
    return replace(route, link=only.link, gateway=only.gateway, onlink=only.onlink, hops=())


_PORT_FLAGS = (
    "isolated",
    "hairpin",
    "learning",
    "flood",
    "mcast_flood",
    "bcast_flood",
    "neigh_suppress",
    "guard",
    "root_block",
    "fastleave",
)
_USER_HZ = 100


def delete_pair(draft: PlanBuilder, end: Link) -> None:
    """Delete a veth pair of which one end is given, both ends emptied before. Raises Refusal where the other
    end is out of sight."""
    peer = draft.topology.peer(end)
    if peer is None:
        raise CannotPlan([f"the other end of {safe(end.name)} is out of sight: it could not be brought back"])
    place, peer_place = draft.place_of(end.ns), draft.place_of(peer.ns)
    empty_link(draft, peer)
    empty_link(draft, end)
    for inner, where in ((peer, peer_place), (end, place)):
        # One message makes the pair with one MTU and the first end's alias: the rest is set before.
        if inner is peer and peer.alias:
            draft.do(SetLink(inner.name, "alias", "", inner.alias, where))
        if inner is peer and inner.mtu != end.mtu:
            draft.do(SetLink(inner.name, "mtu", str(end.mtu), str(inner.mtu), where))
        draft.do(*resize(inner, PLAIN_SIZE, where))
    again = CreateVeth(end.name, peer.name, place, peer_place, end.mtu, end.mac, peer.mac, end.alias)
    draft.do(DeleteLink(end.name, place, again))


def delete_bridge(draft: PlanBuilder, bridge: Link) -> None:
    """Delete a bridge that has no port any more."""
    empty_link(draft, bridge)
    delete_empty_bridge(draft, bridge)


def delete_empty_bridge(draft: PlanBuilder, bridge: Link) -> None:
    """Delete a bridge that is down and has neither ports nor addresses any more."""
    place, settings = draft.place_of(bridge.ns), bridge.bridge or BridgeSettings()
    own = _vlans_to_default(bridge.name, settings.vlans, settings.vlan_default_pvid, place, own=True)
    draft.do(*own, *_settings_to_defaults(bridge.name, settings, place))
    # A bridge allows large packets once it has ports: what takes this back must come last.
    draft.steps[:0] = resize(bridge, PLAIN_SIZE, place)
    filtering = settings.vlan_filtering and not _filters_late(settings)
    again = CreateBridge(bridge.name, place, bridge.mac, bridge.mtu, bridge.alias, settings.stp, filtering)
    draft.do(DeleteLink(bridge.name, place, again))


def empty_link(draft: PlanBuilder, link: Link) -> None:
    """Take a link's routes and addresses away, take it off its bridge and set it down."""
    place = draft.place_of(link.ns)
    # With a link's last address the kernel forgets its neighbours.
    draft.do(*routes_of(draft, link, place), *permanent_neighbours(draft, link, place))
    # Later addresses of a subnet are secondary to the first: they go first.
    for address in reversed(own_addresses(link)):
        draft.do(*address_operation(link.name, address, place).inverse())
    if link.admin_up:
        draft.do(SetLink(link.name, "up", "down", "up", place))
    release_port(draft, link, place)


def own_addresses(link: Link) -> tuple[Address, ...]:
    """A link's addresses but those that the kernel gives by itself."""
    return tuple(one for one in link.addresses if one.family == 4 or one.scope != "link")


def address_operation(link: str, address: Address, place: NetnsTarget) -> AddAddress:
    """The operation that gives a link this address."""
    return AddAddress(
        link,
        str(address),
        place,
        address.broadcast,
        address.scope if address.family == 4 and address.scope != "global" else "",
        address.prefix_route,
        address.peer,
        address.label if address.label != link else "",
        address.metric,
        address.valid_until,
        address.preferred_until,
    )


def permanent_neighbours(draft: PlanBuilder, link: Link, place: NetnsTarget) -> Iterator[DeleteNeighbour]:
    """What takes away the neighbours that somebody told a link; they go when it is set down."""
    net = draft.snapshot.nets.get(link.ns)
    for one in net.neighbours if net else ():
        if one.ifindex == link.ifindex and one.state == "permanent" and one.mac and not one.proxy:
            yield DeleteNeighbour(AddNeighbour(link.name, one.address, one.mac, place))


def release_port(draft: PlanBuilder, link: Link, place: NetnsTarget) -> None:
    """Take a link off its master, its flags and VLANs as a port put to their defaults before."""
    master = draft.snapshot.link((link.ns, link.master)) if link.master is not None else None
    if master is None:
        return
    if link.port:
        # Some of them a port that is withdrawn has set already.
        flags = _flags_to_defaults(link.name, link.port, place)
        draft.do(*(step for step in flags if step not in draft.steps))
        default = (master.bridge or BridgeSettings()).vlan_default_pvid
        draft.do(*_vlans_to_default(link.name, link.port.vlans, default, place))
    draft.do(SetLink(link.name, "master", "", master.name, place))


def routes_of(draft: PlanBuilder, link: Link, place: NetnsTarget) -> Iterator[DeleteRoute | AddRoute]:
    """What takes away the routes that somebody made over a link."""
    net = draft.snapshot.nets.get(link.ns)
    yield from without(net, link, place) if net else ()


def made_routes(draft: PlanBuilder, target: Target, link: str) -> tuple[AddRoute, ...]:
    """The routes that somebody made in a container over the link of that name."""
    net = draft.snapshot.nets.get(target.ns or 0)
    there = [one for one in net.links.values() if one.name == link] if net else []
    found = [route for one in there for route in (net.routes if net else ()) if leads_over(route, one)]
    return tuple(as_operation(route, net, target.place) for route in found if net)


def _flags_to_defaults(name: str, port: BridgePort, place: NetnsTarget) -> Iterator[Operation]:
    default = BridgePort(port.state)
    for flag in _PORT_FLAGS:
        before, after = getattr(port, flag), getattr(default, flag)
        if before != after:
            yield SetPort(name, flag, after, before, place)


def _vlans_to_default(
    name: str, vlans: tuple[PortVlan, ...], default: int, place: NetnsTarget, own: bool = False
) -> Iterator[Operation]:
    """What leaves a port, or the bridge's `own` end, in the VLAN alone that the kernel puts a new one in."""
    if not vlans:
        return  # a kernel without VLANs, or one that was not asked
    wanted = PortVlan(default, default, True, True)
    for one in vlans:
        if one != wanted:
            yield DeleteVlan(AddVlan(name, one.vid, one.vid_end, one.pvid, one.untagged, own, place))
    if default and wanted not in vlans:
        yield AddVlan(name, default, default, True, True, own, place)


def _filters_late(settings: BridgeSettings) -> bool:
    """Whether filtering has to be off while the default VLAN is set, as the kernel demands."""
    return settings.vlan_filtering and settings.vlan_default_pvid != BridgeSettings().vlan_default_pvid


def _settings_to_defaults(name: str, settings: BridgeSettings, place: NetnsTarget) -> Iterator[Operation]:
    """What CreateBridge does not carry; times in 1/100 s as ip-link(8) takes them."""
    default = BridgeSettings()
    if _filters_late(settings):
        yield SetBridge(name, "vlan_filtering", 0, 1, place)
    for setting, field in (
        ("ageing_time", "ageing_time"),
        ("forward_delay", "forward_delay"),
        ("hello_time", "hello_time"),
        ("max_age", "max_age"),
    ):
        before, after = getattr(settings, field), getattr(default, field)
        if before != after:
            yield SetBridge(name, setting, int(after * _USER_HZ), int(before * _USER_HZ), place)
    for setting, field in (
        ("priority", "priority"),
        ("vlan_default_pvid", "vlan_default_pvid"),
        ("mcast_snooping", "mcast_snooping"),
        ("group_fwd_mask", "group_fwd_mask"),
        ("nf_call_iptables", "nf_call_iptables"),
        ("nf_call_ip6tables", "nf_call_ip6tables"),
    ):
        before, after = int(getattr(settings, field)), int(getattr(default, field))
        if before != after:
            yield SetBridge(name, setting, after, before, place)
