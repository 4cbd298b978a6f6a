"""The links by which a person is connected to the host, and the host to the world."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence

from core.model import Link, LinkKey
from core.nat.describe import allow_words, drop_words
from core.nat.forward_policy import ForwardPath, Published, by_chain
from core.nat.packets import Kind
from core.operations import HOST, Operation, SetSysctl
from core.plan.builder import PlanBuilder
from core.tags import TABLE
from core.text import safe
from core.topology import Topology


def reach_lifeline(steps: Iterable[Operation], topology: Topology, session: str = "") -> bool:
    """Whether these steps change a link, as it is now, that `is_lifeline` tells of, a container's own port of
    such a bridge aside; `session` as for a plan."""
    draft = PlanBuilder(topology, session=session)
    held = {link.name for link in draft.host.links.values() if is_lifeline(link.key, draft)}
    held -= {member.port for member in draft.ours.members}
    return any(place == HOST and name in held for name, place in (step.changed_link() for step in steps))


def is_lifeline(key: LinkKey, draft: PlanBuilder) -> bool:
    """Whether a change of this link can cut off the person's session, or the host: the link of a default
    route or of the route to the session's other end, its ports and its master."""
    if key.ns != draft.topology.host:
        return False
    held = set(_ways(draft))
    masters = {link.master for index in held if (link := draft.host.links.get(index))} - {None}
    ports = {link.ifindex for link in draft.host.links.values() if link.master in held}
    return key.ifindex in held | masters | ports


def _ways(draft: PlanBuilder) -> Iterator[int]:
    """The indexes of links that default routes, and the route to the session's other end, leave by."""
    for route in draft.host.routes:
        if route.dst == "default":
            yield from (hop.ifindex for hop in route.nexthops if hop.ifindex)
    if draft.session:
        yield from _way_to(draft.session, draft)


def _way_to(text: str, draft: PlanBuilder) -> Iterator[int]:
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


_FORWARD = "net.ipv4.ip_forward"
_FORWARD6 = "net.ipv6.conf.all.forwarding"
BRIDGED = "net.bridge.bridge-nf-call-iptables"


def warn_of_filters(
    draft: PlanBuilder,
    bridge: str,
    kinds: Sequence[Kind],
    subnets: Sequence[str] = (),
    published: Published | None = None,
    to: str = "",
) -> None:
    """Warn where another table drops what is forwarded: our own accept cannot overrule it, and rules that are
    not ours are not edited. Without subnets both families count. What is switched is judged as well where
    rules see it (br_netfilter)."""
    judge = draft.topology.judge
    if judge is None:
        return
    if draft.snapshot.host.sysctls.get(BRIDGED) == "1" and not published and not to:
        kinds = (*kinds, "same")
    found = draft.topology.uplink(draft.topology.host)
    way = ForwardPath(bridge, found[0].name if found else "", tuple(subnets), published, to)
    for chain, dropped in by_chain(judge.dropping(way, kinds)):
        draft.warn(f"{drop_words(judge.firewall, chain, dropped, way)}; {allow_words(chain, dropped, way)}")


def warn_of_move(source: Link, to: str, draft: PlanBuilder) -> None:
    """Warn of what does not follow by itself when the host's addresses and routes move to another link."""
    name = safe(source.name)
    lent = [str(one) for one in source.addresses if one.valid_until]
    if lent:
        draft.warn(
            f"{', '.join(lent)} of {name} is lent for a time (by DHCP or router advertisements): it moves "
            f"with the time that is left, and what renews it must do so for {to}"
        )
    rules = [one.priority for one in draft.host.rules if source.name in (one.iif, one.oif)]
    if rules:
        told = ", ".join(map(str, dict.fromkeys(rules)))
        draft.warn(f"the routing rules of priority {told} name {name}: what they mean comes by {to} then")
    firewall = draft.snapshot.firewalls.get(draft.topology.host)
    named = [one for one in (firewall.rules if firewall else ()) if source.name in (one.iif, one.oif)]
    tables = dict.fromkeys(safe(one.table) for one in named if one.table != TABLE)
    if tables:
        draft.warn(f"rules of table {', '.join(tables)} name {name}: what they mean comes by {to} then")


def forward(draft: PlanBuilder, ipv4: bool, ipv6: bool) -> None:
    """Have the host forward; what it is set to now is not known where it cannot be read."""
    sysctls = draft.snapshot.host.sysctls
    if ipv4 and sysctls.get(_FORWARD, "0") != "1":
        _keep_links_forwarding(draft, "net.ipv4.conf.")
        draft.sysctl(_FORWARD, "1", sysctls.get(_FORWARD, "0"))
    if ipv6 and sysctls.get(_FORWARD6, "0") == "0":
        _warn_of_router_advertisements(draft)
        _keep_links_forwarding(draft, "net.ipv6.conf.")
        draft.sysctl(_FORWARD6, "1", "0")


def _keep_links_forwarding(draft: PlanBuilder, prefix: str) -> None:
    """Have an undo switch forwarding on again where links forward although the host does not: what it does
    before, to switch the host's off, switches off theirs as well."""
    for key, value in sorted(draft.snapshot.host.sysctls.items()):
        kept = SetSysctl(key, value, value)
        if key.startswith(prefix) and key != _FORWARD6 and kept not in draft.steps:
            draft.do(kept)


def _warn_of_router_advertisements(draft: PlanBuilder) -> None:
    for route in draft.host.routes:
        if route.protocol == "ra" and route.dst == "default":
            draft.guarded = True
            draft.warn(
                "the host has its IPv6 default route by router advertisement and stops taking those once it "
                "forwards IPv6; set net.ipv6.conf.LINK.accept_ra=2 on the link of that route to keep it"
            )
