"""The links by which a person is connected to the host, and the host to the world."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator

from core.model import LinkKey
from core.ops import HOST, Operation
from core.ops.touched import changed_link
from core.plan.draft import Draft
from core.topology import Topology


def reach_lifeline(steps: Iterable[Operation], topology: Topology, session: str = "") -> bool:
    """Whether these steps change a link, as it is now, that `is_lifeline` tells of, a container's own port of
    such a bridge aside; `session` as for a plan."""
    draft = Draft(topology, session=session)
    held = {link.name for link in draft.host.links.values() if is_lifeline(link.key, draft)}
    held -= {member.port for member in draft.ours.members}
    return any(place == HOST and name in held for name, place in map(changed_link, steps))


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
