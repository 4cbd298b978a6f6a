"""Choose the repair of links and addresses."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Sequence

from core.model import Address, Link, Neighbour, NetState, link_ref
from core.model.fix import Fix, FixAddress, FixLink, FixNeighbour, FixRoute, Step
from core.reach.answer import Hop
from core.reach.fixes import default_to, find_gateway
from core.reach.packet import parse_address
from core.topology import Topology


def delete_duplicate(topology: Topology, ns: int, address: str) -> Fix | None:
    """Return the repair for an address that exists twice: delete the later one."""
    culprit = duplicate_holder(topology, address, ns)
    if culprit is None:
        return None
    link, found = culprit
    return Fix(
        f"delete {found} from {link.name} of {topology.label(link.ns)}", (FixAddress(link.key, found, False),)
    )


def duplicate_holder(topology: Topology, address: str, ns: int) -> tuple[Link, Address] | None:
    """Return the link that most likely has an address by mistake.

    It is one that has other addresses of the family too; of several, the one that got it last.
    """
    holders = [
        (link, one)
        for link in topology.snapshot.links()
        for one in link.addresses
        if one.address == address and link.kind != "loopback"
    ]
    if len(holders) < 2:
        return next(((link, one) for link, one in holders if link.ns == ns), None)
    return max(holders, key=lambda each: _order_of(each[0], each[1]))


def _order_of(link: Link, address: Address) -> tuple[bool, bool, int]:
    own = [one for one in link.addresses if one.family == address.family and one.scope == "global"]
    return (
        link.kind != "bridge",
        len(own) > 1 and own[0] != address,
        own.index(address) if address in own else 0,
    )


def is_on_link(link: Link, address: str) -> bool:
    """Return whether an address is in a subnet of a link."""
    own = parse_address(address)
    return any(own in ipaddress.ip_network(str(one), strict=False) for one in link.addresses)


def align_prefix(topology: Topology, ns: int, address: str) -> Fix | None:
    """Return the repair for an address with another prefix length than its bridge's."""
    net = topology.snapshot.nets[ns]
    for link in net.links.values():
        for one in link.addresses:
            prefix = ipaddress.ip_network(str(one), strict=False)
            if parse_address(address) in prefix and (wanted := bridge_prefix(topology, link, one)):
                return change_prefix(topology, link, one, wanted)
    return None


def bridge_prefix(topology: Topology, link: Link, address: Address) -> int:
    """Return the prefix length of the bridge's address of the same subnet, 0 if none."""
    bridge = topology.bridge_of(link)
    for one in bridge.addresses if bridge is not None and bridge.key != link.key else ():
        is_near = parse_address(address.address) in ipaddress.ip_network(str(one), strict=False)
        if is_near and one.scope == "global":
            return one.prefixlen
    return 0


def change_prefix(topology: Topology, link: Link, address: Address, length: int) -> Fix:
    """Return the repair that gives an address another prefix length."""
    new = Address(address.family, address.address, length)
    steps: list[Step] = [FixAddress(link.key, address, False), FixAddress(link.key, new, True)]
    net = topology.snapshot.nets[link.ns]
    for route in net.routes:
        is_own = route.table == "main" and route.family == address.family and route.protocol != "kernel"
        if is_own and any(hop.ifindex == link.ifindex for hop in route.nexthops):
            steps.append(FixRoute(link.ns, route, True))
    return Fix(f"change {address} of {link.name} to {new}", tuple(steps))


def attach_port(topology: Topology, port: Link) -> Fix | None:
    """Return the repair for a veth that isn't on its bridge."""
    bridge = lost_bridge(topology, port)
    if bridge is None:
        return None
    steps = (FixLink(port.key, "master", bridge.name),)
    return Fix(f"make {port.name} a port of {bridge.name}", steps)


def lost_bridge(topology: Topology, port: Link) -> Link | None:
    """Return the bridge of a loose veth: one with an address in its peer's subnet."""
    peer, net = topology.peer(port), topology.snapshot.nets.get(port.ns)
    if peer is None or net is None or peer.ns == port.ns or topology.master_of(port) is not None:
        return None
    if any(one.scope == "global" for one in port.addresses):
        return None
    subnets = [
        ipaddress.ip_network(str(one), strict=False) for one in peer.addresses if one.scope == "global"
    ]
    for link in net.links.values():
        if link.kind == "bridge":
            own = [parse_address(one.address) for one in link.addresses]
            if any(address in subnet for address in own for subnet in subnets):
                return link
    return None


def loose_port(topology: Topology, link: Link, address: str) -> Link | None:
    """Return a veth without bridge: the peer of a link, or that leads to an address."""
    inner = [link, *(one for one in topology.snapshot.links() if one.ns != link.ns and _has(one, address))]
    for one in inner:
        peer = topology.peer(one)
        if peer is not None and lost_bridge(topology, peer) is not None:
            return peer
    return None


def _has(link: Link, address: str) -> bool:
    return any(one.address == address for one in link.addresses)


def inner_ns(topology: Topology, port: Link) -> int:
    """Return the namespace at the other end of a veth."""
    peer = topology.peer(port)
    return peer.ns if peer else port.ns


def down_link(net: NetState) -> Link | None:
    """Return a link of a namespace that is down and has addresses.

    The kernel deletes the routes of such a link.
    """
    found = (one for one in net.links.values() if not one.admin_up and one.kind != "loopback")
    return next((one for one in found if any(each.scope == "global" for each in one.addresses)), None)


def set_up(topology: Topology, link: Link) -> Fix:
    """Return the repair for a link that is down, with the default route that it had."""
    steps: tuple[Step, ...] = (FixLink(link.key, "up", "up"),)
    net = topology.snapshot.nets[link.ns]
    ipv6 = not any(one.family == 4 for one in link.addresses)
    network = topology.network_of(link)
    is_internal = network is not None and network.internal
    found = find_gateway(topology, link.ns, ipv6, down=link) if link in net.links.values() else None
    has_route = any(one.dst == "default" and (one.family == 6) == ipv6 for one in net.routes)
    if found is not None and found[0].key == link.key and not has_route and not is_internal:
        route = default_to(found[1], link, ipv6)
        return Fix(f"set {link.name} up and add its default route", (*steps, FixRoute(link.ns, route, True)))
    return Fix(f"set {link.name} up", steps)


def mtu_hop(topology: Topology, sender: Link, links: Sequence[Link]) -> Hop | None:
    """Return a warning if a link of a segment has a smaller MTU than the sender's.

    Such packets are lost without an ICMP message. The cause is the link whose MTU differs from the others'.
    """
    least = min(links, key=lambda one: one.mtu, default=sender)
    if least.mtu >= sender.mtu:
        return None
    culprit, wanted = odd_mtu(topology, links)
    if culprit.kind == "bridge":
        culprit = lowered_port(topology, culprit, wanted) or culprit
    text = f"{least.name} has MTU {least.mtu}, {sender.name} sends packets of up to {sender.mtu} bytes"
    fix = Fix(f"set the MTU of {culprit.name} to {wanted}", (FixLink(culprit.key, "mtu", str(wanted)),))
    subject = f"packets larger than {least.mtu} bytes are lost: {culprit.name} has MTU {culprit.mtu}"
    return Hop(
        "mtu", topology.label(culprit.ns), text, "warn", (f"{culprit.name}: mtu {culprit.mtu}",),
        link_ref(culprit.key), fix, subject,
    )  # fmt: skip


def odd_mtu(topology: Topology, links: Sequence[Link]) -> tuple[Link, int]:
    """Return the link of a segment whose MTU differs, and the MTU of the others.

    If there are as many of both, it is the host's own link.
    """
    counts = Counter(one.mtu for one in links)
    wanted, most = counts.most_common(1)[0]
    if list(counts.values()).count(most) > 1:
        culprit = next((one for one in links if one.ns == topology.host), links[0])
        return culprit, next((one.mtu for one in links if one.mtu != culprit.mtu), culprit.mtu)
    return next(one for one in links if one.mtu != wanted), wanted


def lowered_port(topology: Topology, bridge: Link, usual: int) -> Link | None:
    """Return the port whose small MTU a bridge has taken over, None if it has its own.

    The kernel sets a bridge to the least MTU of its ports, unless a user has set it (br_mtu_auto_adjust in
    net/bridge/br_if.c); it follows when the port's MTU is raised again.
    """
    least = min(topology.ports_of(bridge.key), key=lambda one: one.mtu, default=bridge)
    is_lowered = least.mtu == bridge.mtu < usual
    return least if is_lowered and least.key != bridge.key else None


def delete_neighbour(ns: int, entry: Neighbour) -> Fix:
    """Return the repair for a wrong neighbour entry."""
    return Fix(f"delete the neighbour entry of {entry.address}", (FixNeighbour(ns, entry),))


def elsewhere(topology: Topology, link: Link, address: str) -> Hop | None:
    """Return the conflict of an address that is behind another bridge."""
    for one in topology.snapshot.links():
        bridge = topology.bridge_of(one) if _has(one, address) and one.ns != link.ns else None
        if bridge is not None and bridge.ns == link.ns and bridge.key != link.key:
            place = topology.label(link.ns)
            text = f"{address} is on {bridge.name}, but the route leads to {link.name}: their subnets overlap"
            fix = _delete_overlap(link, address)
            return Hop("overlap", place, text, "stop", (), link_ref(link.key), fix, text)
    return None


def _delete_overlap(link: Link, address: str) -> Fix | None:
    """Return the repair: delete the address whose subnet overlaps another bridge's."""
    own = parse_address(address)
    for one in link.addresses:
        if own in ipaddress.ip_network(str(one), strict=False):
            return Fix(f"delete {one} from {link.name}", (FixAddress(link.key, one, False),))
    return None
