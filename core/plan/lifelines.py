"""The links by which a person is connected to the host, and the host to the world."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from core.model import LinkKey
from core.plan.draft import Draft


def is_lifeline(key: LinkKey, draft: Draft) -> bool:
    """Whether a change of this link can cut off the person's session, or the host: the link of a default
    route or of the route to the session's other end, its ports and its master."""
    if key.ns != draft.topology.host:
        return False
    held = set(_ways(draft))
    masters = {link.master for index in held if (link := draft.host.links.get(index))} - {None}
    ports = {link.ifindex for link in draft.host.links.values() if link.master in held}
    return key.ifindex in held | masters | ports


def _ways(draft: Draft) -> Iterator[int]:
    """The indexes of links that default routes, and the route to the session's other end, leave by."""
    for route in draft.host.routes:
        if route.dst == "default":
            yield from (hop.ifindex for hop in route.nexthops if hop.ifindex)
    if draft.session:
        yield from _way_to(draft.session, draft)


def _way_to(text: str, draft: Draft) -> Iterator[int]:
    address = ipaddress.ip_address(text.partition("%")[0])
    best = -1
    for route in draft.host.routes:
        if route.dst == "default" or route.kind != "unicast" or (route.family == 6) != (address.version == 6):
            continue
        prefix = ipaddress.ip_network(route.dst)
        if address in prefix and prefix.prefixlen > best:
            best, ways = prefix.prefixlen, [hop.ifindex for hop in route.nexthops if hop.ifindex]
    if best >= 0:
        yield from ways
