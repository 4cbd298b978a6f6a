"""Find critical links, and warn about other filters.

The user's session or the host's default route depends on a critical link.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence

from core.model import Link, LinkKey
from core.nat.describe import describe_drop, describe_remedy
from core.nat.forward_policy import ForwardPath, Published, by_chain
from core.nat.packets import Kind
from core.operations import HOST, Operation, SetSysctl
from core.plan.builder import PlanBuilder
from core.text import TABLE, safe
from core.topology import Topology


def changes_critical_link(steps: Iterable[Operation], topology: Topology, session: str = "") -> bool:
    """Return whether these steps change a critical link (`is_critical_link`).

    Ports that connect a container don't count; `session` as for a plan.
    """
    builder = PlanBuilder(topology, session=session)
    critical = {link.name for link in builder.host.links.values() if is_critical_link(link.key, builder)}
    critical -= {member.port for member in builder.vnet.members}
    return any(place == HOST and name in critical for name, place in (step.changed_link() for step in steps))


def is_critical_link(key: LinkKey, builder: PlanBuilder) -> bool:
    """Return whether a change of this link can disconnect the user's session or host.

    These are the links of default routes and of the route to the session's remote address, their ports and
    their masters.
    """
    if key.ns != builder.topology.host:
        return False
    uplinks = set(_uplinks(builder))
    masters = {link.master for index in uplinks if (link := builder.host.links.get(index))} - {None}
    ports = {link.ifindex for link in builder.host.links.values() if link.master in uplinks}
    return key.ifindex in uplinks | masters | ports


def _uplinks(builder: PlanBuilder) -> Iterator[int]:
    """Yield the indexes of links of default routes, and of the session's route.

    The session's route is the one to its remote address.
    """
    for route in builder.host.routes:
        if route.dst == "default":
            yield from (hop.ifindex for hop in route.nexthops if hop.ifindex)
    if builder.session:
        yield from _route_links(builder.session, builder)


def _route_links(text: str, builder: PlanBuilder) -> Iterator[int]:
    """Yield the indexes of the links of the most specific route to an address."""
    address = ipaddress.ip_address(text.partition("%")[0])
    best = -1
    for route in builder.host.routes:
        if route.dst == "default" or route.kind != "unicast" or (route.family == 6) != (address.version == 6):
            continue
        prefix = ipaddress.ip_network(route.dst)
        if address in prefix and prefix.prefixlen > best:
            best, links = prefix.prefixlen, [hop.ifindex for hop in route.nexthops if hop.ifindex]
    if best >= 0:
        yield from links


_FORWARD = "net.ipv4.ip_forward"
_FORWARD6 = "net.ipv6.conf.all.forwarding"
BRIDGE_NF_SYSCTL = "net.bridge.bridge-nf-call-iptables"


def warn_of_filters(
    builder: PlanBuilder,
    bridge: str,
    kinds: Sequence[Kind],
    subnets: Sequence[str] = (),
    published: Published | None = None,
    to: str = "",
) -> None:
    """Warn if another table drops forwarded packets: vnet's accept can't override it.

    Without `subnets` both address families count. With br_netfilter bridged packets are checked as well, but
    not those of Open vSwitch.
    """
    evaluator = builder.topology.policy_evaluator
    if evaluator is None:
        return
    is_switch = any(one.bridge == bridge and one.kind == "ovs" for one in builder.vnet.networks.values())
    is_filtered = builder.snapshot.host.sysctls.get(BRIDGE_NF_SYSCTL) == "1" and not is_switch
    if is_filtered and not published and not to:
        kinds = (*kinds, "same")
    found = builder.topology.uplink(builder.topology.host)
    path = ForwardPath(bridge, found[0].name if found else "", tuple(subnets), published, to)
    for chain, dropped in by_chain(evaluator.dropping(path, kinds)):
        drop = describe_drop(evaluator.firewall, chain, dropped, path)
        builder.warn(f"{drop}; {describe_remedy(chain, dropped, path)}")


def warn_of_move(source: Link, to: str, builder: PlanBuilder) -> None:
    """Warn about leases and rules that don't move to another link.

    The host's addresses and routes do move.
    """
    name = safe(source.name)
    leased = [str(one) for one in source.addresses if one.valid_until]
    if leased:
        builder.warn(
            f"{', '.join(leased)} of {name} is leased (DHCP or router advertisements): it keeps its "
            f"remaining lifetime, and must be renewed on {to}"
        )
    rules = [one.priority for one in builder.host.rules if source.name in (one.iif, one.oif)]
    if rules:
        priorities = ", ".join(map(str, dict.fromkeys(rules)))
        builder.warn(
            f"routing rules with priority {priorities} match {name}, but packets will use {to}: change them"
        )
    firewall = builder.snapshot.firewalls.get(builder.topology.host)
    matching = [one for one in (firewall.rules if firewall else ()) if source.name in (one.iif, one.oif)]
    tables = dict.fromkeys(safe(one.table) for one in matching if one.table != TABLE)
    if tables:
        builder.warn(
            f"rules of table {', '.join(tables)} match {name}, but packets will use {to}: change them"
        )


def enable_forwarding(builder: PlanBuilder, ipv4: bool, ipv6: bool) -> None:
    """Switch on forwarding for these address families.

    A sysctl that can't be read counts as 0.
    """
    sysctls = builder.snapshot.host.sysctls
    if ipv4 and sysctls.get(_FORWARD, "0") != "1":
        _keep_links_forwarding(builder, "net.ipv4.conf.")
        builder.set_sysctl(_FORWARD, "1", sysctls.get(_FORWARD, "0"))
    if ipv6 and sysctls.get(_FORWARD6, "0") == "0":
        _warn_of_router_advertisements(builder)
        _keep_links_forwarding(builder, "net.ipv6.conf.")
        builder.set_sysctl(_FORWARD6, "1", "0")


def _keep_links_forwarding(builder: PlanBuilder, prefix: str) -> None:
    """Have an undo keep forwarding of single links.

    Switching off the host's switches off theirs as well.
    """
    for key, value in sorted(builder.snapshot.host.sysctls.items()):
        step = SetSysctl(key, value, value)
        if key.startswith(prefix) and key != _FORWARD6 and step not in builder.steps:
            builder.add(step)


def _warn_of_router_advertisements(builder: PlanBuilder) -> None:
    for route in builder.host.routes:
        if route.protocol == "ra" and route.dst == "default":
            builder.guarded = True
            builder.warn(
                "the host's IPv6 default route comes from router advertisements, which are ignored once the "
                "host forwards IPv6. To keep it, set net.ipv6.conf.LINK.accept_ra=2 for its link"
            )
