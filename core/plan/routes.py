"""Routes over a link: which of them somebody made, and what takes them away and brings them back."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import replace

from core.model import Address, Link, NetState, NextHop, Route
from core.model.routes import METRICS
from core.operations import AddRoute, DeleteRoute, Hop, NetnsTarget
from core.plan.builder import Refusal

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
        raise Refusal([f"the route to {route.dst}{why} could not be made anew: take it away by hand before"])
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
    return any(hop.gateway for hop in route.ways)


def moved(route: AddRoute, link: str, to: str) -> AddRoute:
    """The same route with the link `to` instead of `link`."""
    return _by(route, tuple(replace(hop, link=to) if hop.link == link else hop for hop in route.ways))


def _by(route: AddRoute, ways: tuple[Hop, ...]) -> AddRoute:
    if len(ways) > 1:
        return replace(route, hops=ways)
    (only,) = ways
    return replace(route, link=only.link, gateway=only.gateway, onlink=only.onlink, hops=())
