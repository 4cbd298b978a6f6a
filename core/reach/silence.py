"""Find links that don't answer ARP or ND, or have the MAC address of another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from core.model import Link, link_ref
from core.model.fix import Fix, FixAddress, FixLink, FixRoute, FixSysctl, Step
from core.model.link import Address
from core.reach.answer import Hop
from core.reach.fixes import default_to, find_gateway
from core.reach.segment import Attachment
from core.text import quoted
from core.topology import Topology

_WITH_ARP = ("veth", "bridge", "macvlan", "physical", "vlan", "bond")
_NEVER = 8  # arp_ignore: no answers for local addresses


def sends_nothing(link: Link) -> bool:
    """Return whether a link sends frames to itself only, because ARP is off."""
    return link.arp_off and link.kind in _WITH_ARP


def answers(link: Link, address: str) -> bool:
    """Return whether a link answers for a local address of its namespace."""
    own = any(one.address == address for one in link.addresses)
    if ":" in address:
        return own and not link.ipv6_disabled  # ND answers only for addresses of the link itself
    if sends_nothing(link) or link.arp_ignore >= _NEVER:
        return False
    return own or not link.arp_ignore


def find(topology: Topology, attachments: Sequence[Attachment], address: str) -> Hop | None:
    """Return the link on a segment that should answer for an address but doesn't."""
    for one in attachments:
        link = one.link
        if any(each.address == address for each in link.addresses) and not answers(link, address):
            return hop(topology, link, address)
    if ":" in address:
        disabled = [
            one.link for one in attachments if one.link.ipv6_disabled and _is_inside(topology, one.link)
        ]
        if len(disabled) == 1:
            return hop(topology, disabled[0], address)
    return None


def _is_inside(topology: Topology, link: Link) -> bool:
    return topology.container_of(link.ns) is not None


def hop(topology: Topology, link: Link, address: str) -> Hop:
    """Return the hop of a link that doesn't answer, with its repair."""
    place = topology.label(link.ns)
    conf = link.name.replace(".", "/")
    if ":" in address:
        key = f"net.ipv6.conf.{conf}.disable_ipv6"
        steps: tuple[Step, ...] = (FixSysctl(link.ns, key, "0", "1"),)
        if not any(one.address == address for one in link.addresses):
            own = Address(6, address, _length(topology, link, address))
            steps = (*steps, FixAddress(link.key, own, True), *_default_route(topology, link, own))
        fix = Fix(f"enable IPv6 on {link.name} of {place}", steps)
        text = f"IPv6 is disabled on {link.name} of {place}"
        return Hop("address", place, text, "stop", (f"{key} = 1",), link_ref(link.key), fix, text)
    if link.arp_ignore and not link.arp_off:
        key = f"net.ipv4.conf.{conf}.arp_ignore"
        fix = Fix(f"set {key} to 0", (FixSysctl(link.ns, key, "0", str(link.arp_ignore)),))
        text = f"{link.name} of {place} doesn't answer ARP: arp_ignore is {link.arp_ignore}"
        evidence = (f"{key} = {link.arp_ignore}",)
        return Hop("neighbour", place, text, "stop", evidence, link_ref(link.key), fix, text)
    text = f"ARP is off on {link.name} of {place}"
    fix = Fix(f"turn ARP on for {link.name}", (FixLink(link.key, "arp", "on"),))
    return Hop("link", place, text, "stop", (f"{link.name}: NOARP",), link_ref(link.key), fix, text)


def _default_route(topology: Topology, link: Link, own: Address) -> Iterator[FixRoute]:
    """Yield the default route that a link had with an address: by its bridge."""
    if any((one.dst, one.family) == ("default", 6) for one in topology.snapshot.nets[link.ns].routes):
        return
    if (found := find_gateway(topology, link.ns, True, down=replace(link, addresses=(own,)))) is not None:
        yield FixRoute(link.ns, default_to(found[1], link, True), True)


def _length(topology: Topology, link: Link, address: str) -> int:
    """Return the prefix length of the bridge's address of that family, or 64."""
    bridge = topology.bridge_of(link)
    own = (one for one in (bridge.addresses if bridge else ()) if (one.family == 6) == (":" in address))
    return next((one.prefixlen for one in own if one.scope == "global"), 64)


def same_mac(topology: Topology, owner: Attachment, attachments: Sequence[Attachment]) -> Hop | None:
    """Return the conflict of two links of a segment that have the same MAC address."""
    link = owner.link
    twins = [
        one.link
        for one in attachments
        if one.link.mac == link.mac and link.mac and one.link.key != link.key and one.link.kind == link.kind
    ]
    if not twins or not owner.crossings:
        return None
    return mac_conflict(topology, [link, *twins])


def mac_conflict(topology: Topology, links: Sequence[Link]) -> Hop:
    """Return the hop of links with the same MAC address."""
    ordered = sorted(links, key=lambda one: (one.kind == "veth", topology.label(one.ns)))
    culprit = ordered[-1]
    names = " and ".join(f"{one.name} of {topology.label(one.ns)}" for one in ordered)
    text = f"{names} have the MAC address {culprit.mac}"
    new = _other_mac(culprit)
    fix = Fix(f"give {culprit.name} of {topology.label(culprit.ns)} the MAC address {new}",
              (FixLink(culprit.key, "address", new),))  # fmt: skip
    evidence = tuple(f"ip link show {quoted(one.name)}: {one.mac}" for one in ordered)
    return Hop(
        "address", topology.label(culprit.ns), text, "stop", evidence, link_ref(culprit.key), fix, text
    )


def _other_mac(link: Link) -> str:
    """Return a locally administered MAC address made of the link's address or index."""
    own = next((one.address for one in link.addresses if one.family == 4), "")
    parts = (
        [int(part) for part in own.split(".")] if own else [0, 0, link.ifindex >> 8 & 255, link.ifindex & 255]
    )
    return ":".join(f"{part:02x}" for part in (0x02, 0x42, *parts))
