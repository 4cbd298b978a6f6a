"""Look up routes of one namespace, with its policy rules and rp_filter.

See the kernel's net/ipv4/fib_rules.c, fib_frontend.c and Documentation/networking/ip-sysctl.rst.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from core.model import Address, IpSettings, Link, NetState, NextHop, PolicyRule, Route
from core.nat.packets import PROTOCOL_NUMBERS
from core.reach.packet import Packet, parse_address
from core.text import bounds

_ENDS = {"blackhole": "blackhole", "unreachable": "unreachable", "prohibit": "prohibit"}
_SELECTOR = re.compile(r"(ipproto|dport|sport) (\S+)")
_STRICT = 1


@dataclass(frozen=True, slots=True)
class Lookup:
    """The result of a lookup.

    `route` is None if no table has one; `end` is "blackhole", "unreachable" or "prohibit" if a route or rule
    of that kind was found. `rule` is the policy rule that chose the table, or ended the lookup. `unsure` is
    True if a rule has a selector that can't be evaluated.
    """

    route: Route | None
    rule: PolicyRule | None = None
    end: str = ""
    unsure: bool = False

    @property
    def is_local(self) -> bool:
        """Return whether the destination is an address of the namespace itself."""
        return self.route is not None and self.route.kind == "local"

    @property
    def hop(self) -> NextHop | None:
        """Return the first next hop of the route."""
        return self.route.nexthops[0] if self.route and self.route.nexthops else None


_DEFAULT_RULES = tuple(
    PolicyRule(family, priority, table=table)
    for family in (4, 6)
    for priority, table in ((0, "local"), (32766, "main"), (32767, "default"))
)


class RoutingTables:
    """Index the routes of a namespace by table, prefix length and network."""

    def __init__(self, net: NetState) -> None:
        self.net = net
        self.rules = net.rules or _DEFAULT_RULES
        self._tables: dict[tuple[int, str], dict[int, dict[int, list[Route]]]] = {}
        for route in (*net.routes, *_derived(net)):
            prefix = _prefix(route)
            if prefix is not None and route.kind not in ("anycast", "multicast"):
                length, network = prefix
                by_length = self._tables.setdefault((route.family, route.table), {})
                by_length.setdefault(length, {}).setdefault(network, []).append(route)
        for by_length in self._tables.values():
            for routes in (each for by_network in by_length.values() for each in by_network.values()):
                routes.sort(key=lambda one: one.metric)
        self._settings: Mapping[tuple[int, int], IpSettings] = {
            (one.family, one.ifindex): one for one in net.settings
        }

    def lookup(self, packet: Packet, iif: str = "", oif: str = "") -> Lookup:
        """Find the route of a packet that came in by link `iif` ("" for one of its own)."""
        family = 6 if packet.is_ipv6 else 4
        unsure, least = False, -1
        for rule in self.rules:
            if rule.family != family or rule.priority < least:
                continue
            matched = _selects(rule, packet, iif, oif)
            unsure = unsure or matched is None
            if not matched:
                continue
            if rule.action == "goto" and rule.goto is not None:
                least = rule.goto
            elif rule.action in _ENDS:
                return Lookup(None, rule, rule.action, unsure)
            elif rule.action == "lookup":
                found = self._in_table(family, rule, packet.dst, oif)
                if found is not None:
                    return Lookup(found, rule, _ENDS.get(found.kind, ""), unsure)
        return Lookup(None, unsure=unsure)

    def _in_table(self, family: int, rule: PolicyRule, dst: str, oif: str) -> Route | None:
        by_length = self._tables.get((family, rule.table), {})
        bits, number = (128, int(parse_address(dst))) if family == 6 else (32, int(parse_address(dst)))
        for length in sorted(by_length, reverse=True):
            if rule.suppress_prefixlen is not None and length <= rule.suppress_prefixlen:
                continue
            for route in by_length[length].get(number >> (bits - length), ()):
                if route.kind == "throw":
                    return None
                if not oif or any(self._name(hop) == oif for hop in route.nexthops):
                    return route
        return None

    def _name(self, hop: NextHop) -> str:
        link = self.net.links.get(hop.ifindex or 0)
        return link.name if link else ""

    def is_local(self, address: str) -> bool:
        """Return whether an address is one of the namespace."""
        probe = Packet(address, address)
        found = self._in_table(6 if probe.is_ipv6 else 4, _LOCAL[probe.is_ipv6], address, "")
        return found is not None and found.kind == "local"

    def local_addresses(self) -> list[str]:
        """Return the addresses of the namespace, without the prefix of loopback addresses."""
        found = (route.dst for route in (*self.net.routes, *_derived(self.net)) if route.kind == "local")
        return [one.partition("/")[0] for one in found]

    def has_wide_answers(self) -> bool:
        """Return whether it answers for whole prefixes: local ones, or as a proxy."""
        wide = (one for one in self.net.routes if one.kind == "local" and "/" in one.dst)
        is_wide = any(not one.dst.startswith("127.") and one.dst[-3:] not in ("/32", "128") for one in wide)
        return is_wide or any(one.proxy for one in self.net.settings)

    def source_for(self, lookup: Lookup, dst: str) -> str:
        """Choose the source address of a packet that the namespace sends, "" for none."""
        route, hop, ipv6 = lookup.route, lookup.hop, ":" in dst
        if route is None:
            return ""
        if route.kind == "local":
            return dst
        if route.source:
            return route.source
        link = self.net.links.get(hop.ifindex or 0) if hop else None
        own = [*_usable(link, ipv6)] if link else []
        target = parse_address((hop.gateway if hop else "") or dst)
        near = (one.address for one in own if target in ipaddress.ip_network(str(one), strict=False))
        others = (one.address for each in self.net.links.values() for one in _usable(each, ipv6))
        return next(near, "") or next((one.address for one in own), "") or next(others, "")

    def first_address(self, ipv6: bool) -> str:
        """Return the address that the kernel chooses for a link without one, "" for none."""
        found = (one.address for link in self.net.links.values() for one in _usable(link, ipv6))
        return next(found, "")

    def address_on(self, link: Link, near: str) -> str:
        """Return the address of a link nearest to another one, "" for none."""
        own, target = _usable(link, ":" in near), parse_address(near)
        fit = (one.address for one in own if target in ipaddress.ip_network(str(one), strict=False))
        return next(fit, own[0].address if own else "")

    def forwards(self, link: Link, ipv6: bool) -> bool | None:
        """Return whether packets that enter by a link are forwarded, None if unknown."""
        found = self._settings.get((6, 0) if ipv6 else (4, link.ifindex))
        return found.forwarding if found else None

    def forwards_at_all(self, ipv6: bool) -> bool | None:
        """Return the setting for all links, None if it isn't known."""
        found = self._settings.get((6 if ipv6 else 4, 0))
        return found.forwarding if found else None

    def has_proxy(self, link: Link, ipv6: bool) -> bool:
        """Return whether it answers ARP or ND on a link for addresses that it routes."""
        families = ((6 if ipv6 else 4, one) for one in (0, link.ifindex))
        return any(self._settings[key].proxy for key in families if key in self._settings)

    def rp_filter(self, link: Link) -> int:
        """Return the rp_filter that applies to a link: 0 off, 1 strict, 2 loose."""
        keys = ((4, 0), (4, link.ifindex))
        return max((self._settings[key].rp_filter for key in keys if key in self._settings), default=0)

    def source_fault(self, packet: Packet, link: Link) -> str:
        """Return why a packet that enters by a link is dropped for its source.

        The result is "own address" (a martian source) or "rp_filter".
        """
        if packet.is_ipv6 or link.kind == "loopback":
            return ""
        if self.is_local(packet.src):
            return "own address"
        mode = self.rp_filter(link)
        if not mode:
            return ""
        back = self.lookup(Packet(packet.dst, packet.src, packet.l4_proto))
        if back.route is None or back.end:
            return "rp_filter"
        if link.ifindex in {hop.ifindex for hop in back.route.nexthops}:
            return ""
        has_address = any(one.family == 4 for one in link.addresses)
        return "rp_filter" if mode == _STRICT or not has_address else ""


_LOCAL = {False: PolicyRule(4, 0, table="local"), True: PolicyRule(6, 0, table="local")}


def _derived(net: NetState) -> Iterator[Route]:
    """Yield the routes of addresses that a snapshot lacks."""
    local = {route.dst for route in net.routes if route.table == "local"}
    for link in net.links.values():
        for one in link.addresses if link.admin_up else ():
            hop = (NextHop("", link.ifindex),)
            if one.address not in local:
                yield Route(one.family, one.address, "local", hop, table="local")
            if local:
                continue
            network = ipaddress.ip_network(str(one), strict=False)
            yield Route(one.family, str(network), "unicast", hop, source=one.address, scope="link")


def _usable(link: Link, ipv6: bool) -> list[Address]:
    own = (one for one in link.addresses if (one.family == 6) == ipv6)
    return [one for one in own if one.scope == "global" and not one.address.startswith("fe80")]


def _prefix(route: Route) -> tuple[int, int] | None:
    """Return the prefix length and the leading bits of a destination."""
    if route.dst == "default":
        return 0, 0
    text, _, length = route.dst.partition("/")
    try:
        number = int(parse_address(text))
    except ValueError:
        return None
    bits = 128 if route.family == 6 else 32
    return int(length or bits), number >> (bits - int(length or bits))


def _selects(rule: PolicyRule, packet: Packet, iif: str, oif: str) -> bool | None:
    """Return whether a policy rule applies to a packet, None if that isn't known."""
    found = [
        not rule.src or _is_in(packet.src, rule.src),
        not rule.dst or _is_in(packet.dst, rule.dst),
        not rule.iif or rule.iif == (iif or "lo"),
        not rule.oif or rule.oif == oif,
    ]
    if not all(found):
        return rule.inverted
    if rule.fwmark is not None:
        if packet.mark is None:
            return None
        if packet.mark & (rule.fwmask or 0xFFFFFFFF) != rule.fwmark:
            return rule.inverted
    more = [_more(one, packet) for one in rule.more]
    if False in more:
        return rule.inverted
    return None if None in more else not rule.inverted


def _more(text: str, packet: Packet) -> bool | None:
    found = _SELECTOR.fullmatch(text)
    if not found:
        return None
    if found[1] == "ipproto":
        return found[2] in (packet.l4_proto, PROTOCOL_NUMBERS.get(packet.l4_proto))
    port = packet.dport if found[1] == "dport" else packet.sport
    first, last = bounds(found[2])
    return first <= port <= last if port else None


def _is_in(address: str, prefix: str) -> bool:
    if not address:
        return False
    return parse_address(address) in ipaddress.ip_network(prefix, strict=False)
