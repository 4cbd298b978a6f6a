"""Plan to delete links step by step, so that an undo can restore their settings."""

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
    SetStormGuard,
)
from core.plan import ovs
from core.plan.builder import CannotPlan, PlanBuilder, Target
from core.plan.guarded_ports import limits_of
from core.plan.tuning import PLAIN_SIZE, resize
from core.text import safe

# Names of route options that AddRoute supports.
_SUPPORTED = {*METRICS.values(), "tos", "pref"}


def is_static_over(route: Route, link: Link) -> bool:
    """Return whether a route uses that link and wasn't made by the kernel."""
    return is_over(route, link) and not _is_automatic(route, link)


def is_over(route: Route, link: Link) -> bool:
    """Return whether a next hop of the route uses that link."""
    return any(hop.ifindex == link.ifindex for hop in route.nexthops)


def _is_automatic(route: Route, link: Link) -> bool:
    """Return whether a route comes and goes with an address, link or advertisement.

    Network managers also use the protocol "kernel" for their routes to subnets.
    """
    if route.protocol == "kernel":
        return route.table == "local" or route.dst in set(_prefixes(link))
    return route.protocol == "redirect" or by_advertisement(route)


def by_advertisement(route: Route) -> bool:
    """Return whether the route has a gateway from router advertisements."""
    return route.protocol == "ra" and any(hop.gateway for hop in route.nexthops)


def _prefixes(link: Link) -> Iterator[str]:
    """Yield the prefixes to which the kernel makes routes with the link's addresses."""
    yield "fe80::/64"
    for one in link.addresses:
        if one.prefix_route:
            yield prefix_of(one)
            yield prefix_of(replace(one, address=one.peer or one.address))


def prefix_of(address: Address) -> str:
    """Return the subnet of an address."""
    return str(ipaddress.ip_network(str(address), strict=False))


def as_operation(route: Route, net: NetState, place: NetnsTarget) -> AddRoute:
    """Return the operation that adds a route of `net`.

    Raises CannotPlan for unsupported options.
    """
    unsupported = [option for option in route.options if not _is_supported(option)]
    hops = tuple(_hop(hop, net) for hop in route.nexthops)
    if unsupported or not all(hop.link for hop in hops):
        options = f" ({', '.join(unsupported)})" if unsupported else ""
        reason = f"vnet-tui couldn't add the route to {route.dst}{options} again"
        raise CannotPlan([f"{reason}. Try: delete it first with ip route"])
    several = len(hops) > 1
    hop = hops[0] if len(hops) == 1 else Hop("")  # a blackhole has none
    return AddRoute(
        route.dst,
        hop.link,
        hop.gateway,
        place,
        route.metric,
        route.source,
        route.protocol,
        route.scope if route.family == 4 and route.scope != "global" else "",
        route.family,
        "" if route.table == "main" else route.table,
        "" if route.kind == "unicast" else route.kind,
        hop.onlink,
        tuple(route.options),
        hops if several else (),
        route.valid_until,
    )


def _is_supported(option: str) -> bool:
    name, _, value = option.partition(" ")
    return name in _SUPPORTED and (name != "features" or value == "ecn")


def _hop(hop: NextHop, net: NetState) -> Hop:
    link = net.links.get(hop.ifindex or 0)
    return Hop(link.name if link else "", hop.gateway, hop.weight, hop.onlink)


def delete_routes(net: NetState, link: Link, place: NetnsTarget) -> Iterator[DeleteRoute | AddRoute]:
    """Yield the operations that delete the static routes over a link.

    Those with a gateway come first; a multipath route keeps its other next hops.
    """
    routes = [as_operation(route, net, place) for route in net.routes if is_static_over(route, link)]
    for route in sorted(routes, key=lambda one: not has_gateway(one)):
        yield DeleteRoute(route)
        if hops := tuple(hop for hop in route.hops if hop.link != link.name):
            yield _with_hops(route, hops)


def has_gateway(route: AddRoute) -> bool:
    """Return whether the route needs another route, to its gateway."""
    return any(hop.gateway for hop in route.next_hops)


def with_link(route: AddRoute, link: str, to: str) -> AddRoute:
    """Return the route with the link `to` instead of `link`."""
    return _with_hops(
        route, tuple(replace(hop, link=to) if hop.link == link else hop for hop in route.next_hops)
    )


def _with_hops(route: AddRoute, hops: tuple[Hop, ...]) -> AddRoute:
    if len(hops) > 1:
        return replace(route, hops=hops)
    (only,) = hops
    return replace(route, link=only.link, gateway=only.gateway, onlink=only.onlink, hops=())


_PORT_FLAGS = (
    "isolated",
    "locked",
    "hairpin",
    "learning",
    "flood",
    "mcast_flood",
    "bcast_flood",
    "neigh_suppress",
    "proxy_arp_wifi",
    "guard",
    "root_block",
    "fastleave",
)
_USER_HZ = 100


def delete_pair(builder: PlanBuilder, end: Link) -> None:
    """Plan to delete a veth pair, after all its settings.

    Raises CannotPlan if the peer isn't visible.
    """
    peer = builder.topology.peer(end)
    if peer is None:
        name = safe(end.name)
        raise CannotPlan([f"the peer of {name} isn't visible, so an undo couldn't restore the pair"])
    place, peer_place = builder.netns_target(end.ns), builder.netns_target(peer.ns)
    empty_link(builder, peer)
    empty_link(builder, end)
    for inner, where in ((peer, peer_place), (end, place)):
        # CreateVeth carries one MTU and the first end's alias: other values are reset before.
        if inner is peer and peer.alias:
            builder.add(SetLink(inner.name, "alias", "", inner.alias, where))
        if inner is peer and inner.mtu != end.mtu:
            builder.add(SetLink(inner.name, "mtu", str(end.mtu), str(inner.mtu), where))
        builder.add(*resize(inner, PLAIN_SIZE, where))
    again = CreateVeth(end.name, peer.name, place, peer_place, end.mtu, end.mac, peer.mac, end.alias)
    builder.add(DeleteLink(end.name, place, again))


def delete_bridge(builder: PlanBuilder, bridge: Link) -> None:
    """Plan to delete a bridge without ports."""
    empty_link(builder, bridge)
    delete_empty_bridge(builder, bridge)


def delete_empty_bridge(builder: PlanBuilder, bridge: Link) -> None:
    """Plan to delete a bridge that is down and has neither ports nor addresses."""
    place, settings = builder.netns_target(bridge.ns), bridge.bridge or BridgeSettings()
    own = _vlans_to_default(bridge.name, settings.vlans, settings.vlan_default_pvid, place, own=True)
    builder.add(*own, *_settings_to_defaults(bridge.name, settings, place))
    # A bridge only allows large packets while it has ports: an undo must set the size last.
    builder.steps[:0] = resize(bridge, PLAIN_SIZE, place)
    filtering = settings.vlan_filtering and not _must_filter_late(settings)
    again = CreateBridge(bridge.name, place, bridge.mac, bridge.mtu, bridge.alias, settings.stp, filtering)
    builder.add(DeleteLink(bridge.name, place, again))


def empty_link(builder: PlanBuilder, link: Link) -> None:
    """Plan to remove a link's routes and addresses, and detach it from its bridge.

    The link is set down before it is detached.
    """
    place = builder.netns_target(link.ns)
    # The kernel deletes a link's neighbours with its last address.
    neighbours = permanent_neighbours(builder, link, place)
    builder.add(*routes_of(builder, link, place), *(one for one in neighbours if one not in builder.steps))
    # Later addresses of a subnet are secondary to the first: delete them first.
    for address in reversed(own_addresses(link)):
        builder.add(*address_operation(link.name, address, place).inverse())
    if link.admin_up:
        builder.add(SetLink(link.name, "up", "down", "up", place))
    release_port(builder, link, place)


def own_addresses(link: Link) -> tuple[Address, ...]:
    """Return a link's addresses without the kernel's own link-local ones."""
    return tuple(one for one in link.addresses if one.family == 4 or one.scope != "link")


def address_operation(link: str, address: Address, place: NetnsTarget) -> AddAddress:
    """Return the operation that adds an address to a link."""
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


def permanent_neighbours(builder: PlanBuilder, link: Link, place: NetnsTarget) -> Iterator[DeleteNeighbour]:
    """Yield operations that delete a link's permanent neighbours.

    The kernel also deletes them at link down.
    """
    net = builder.snapshot.nets.get(link.ns)
    for one in net.neighbours if net else ():
        if one.ifindex == link.ifindex and one.state == "permanent" and one.mac and not one.proxy:
            yield DeleteNeighbour(AddNeighbour(link.name, one.address, one.mac, place))


def release_port(builder: PlanBuilder, link: Link, place: NetnsTarget) -> None:
    """Plan to detach a link from its master, after resetting its port flags and VLANs."""
    if (release := ovs.port_release(builder, link)) is not None:
        builder.add(release)
        return
    master = builder.snapshot.link((link.ns, link.master)) if link.master is not None else None
    if master is None or builder.topology.ovs_bridge(link) is not None:
        return
    if limits := limits_of(link, builder):
        builder.add(SetStormGuard(link.name, "", limits, place))
    if link.port:
        # Unpublishing a port may have reset some of them.
        flags = _flags_to_defaults(link.name, link.port, place)
        builder.add(*(step for step in flags if step not in builder.steps))
        default = (master.bridge or BridgeSettings()).vlan_default_pvid
        builder.add(*_vlans_to_default(link.name, link.port.vlans, default, place))
    builder.add(SetLink(link.name, "master", "", master.name, place))


def routes_of(builder: PlanBuilder, link: Link, place: NetnsTarget) -> Iterator[DeleteRoute | AddRoute]:
    """Yield operations that delete the static routes over a link."""
    net = builder.snapshot.nets.get(link.ns)
    yield from delete_routes(net, link, place) if net else ()


def static_routes(builder: PlanBuilder, target: Target, link: str) -> tuple[AddRoute, ...]:
    """Return the static routes in a container over the link of that name."""
    net = builder.snapshot.nets.get(target.ns or 0)
    links = [one for one in net.links.values() if one.name == link] if net else []
    found = [route for one in links for route in (net.routes if net else ()) if is_static_over(route, one)]
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
    """Yield operations that reset the VLANs of a port to the default.

    With `own` they are the VLANs of the bridge itself.
    """
    if not vlans:
        return  # the kernel has no VLAN support, or the VLANs weren't read
    default_vlan = PortVlan(default, default, True, True)
    for one in vlans:
        if one != default_vlan:
            yield DeleteVlan(AddVlan(name, one.vid, one.vid_end, one.pvid, one.untagged, own, place))
    if default and default_vlan not in vlans:
        yield AddVlan(name, default, default, True, True, own, place)


def _must_filter_late(settings: BridgeSettings) -> bool:
    """Return whether the default VLAN must be set before filtering is switched on.

    The kernel refuses that while filtering is on.
    """
    return settings.vlan_filtering and settings.vlan_default_pvid != BridgeSettings().vlan_default_pvid


def _settings_to_defaults(name: str, settings: BridgeSettings, place: NetnsTarget) -> Iterator[Operation]:
    """Yield operations for settings that CreateBridge doesn't have.

    Times are in 1/100 s as in ip-link(8).
    """
    default = BridgeSettings()
    if _must_filter_late(settings):
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
        ("mcast_querier", "mcast_querier"),
        ("group_fwd_mask", "group_fwd_mask"),
        ("nf_call_iptables", "nf_call_iptables"),
        ("nf_call_ip6tables", "nf_call_ip6tables"),
    ):
        before, after = int(getattr(settings, field)), int(getattr(default, field))
        if before != after:
            yield SetBridge(name, setting, after, before, place)
