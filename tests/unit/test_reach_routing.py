"""Route lookups of `why`: policy rules, tables, metrics, the source check, source addresses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from core.model import IpSettings, Link, NetState, NextHop, PolicyRule, Route
from core.reach.packet import Packet
from core.reach.routing import RoutingTables
from tests.support.host_builder import address

NS = 9
RULES = (
    PolicyRule(4, 0, table="local"),
    PolicyRule(4, 32766, table="main"),
    PolicyRule(4, 32767, table="default"),
)
PACKET = Packet("10.0.0.2", "198.51.100.7", "tcp", 45678, 443)


def link(ifindex: int, name: str, *addresses: str, kind: str = "veth") -> Link:
    return Link(NS, ifindex, name, kind, admin_up=True, addresses=tuple(map(address, addresses)))


ETH0, ETH1 = link(2, "eth0", "10.0.0.2/24"), link(3, "eth1", "10.1.0.2/24")


def via(gateway: str, ifindex: int = 2, dst: str = "default", **fields: object) -> Route:
    return replace(Route(6 if ":" in gateway else 4, dst, nexthops=(NextHop(gateway, ifindex),)), **fields)


def tables(
    routes: Iterable[Route] = (), rules: Iterable[PolicyRule] = RULES, links: Iterable[Link] = (ETH0, ETH1),
    settings: Iterable[IpSettings] = (),
) -> RoutingTables:  # fmt: skip
    ordered = sorted(rules, key=lambda rule: rule.priority)  # as the kernel dumps them
    return RoutingTables(
        NetState(
            NS, {one.ifindex: one for one in links}, tuple(routes), tuple(ordered), settings=tuple(settings)
        )
    )


def gateway(found: RoutingTables, packet: Packet = PACKET, **where: str) -> str:
    hop = found.lookup(packet, **where).hop
    return hop.gateway if hop else ""


# ---- the choice of a route


def test_the_longest_prefix_wins_then_the_lowest_metric() -> None:
    routes = [
        via("10.0.0.1", metric=100), via("10.0.0.9", metric=50),
        via("10.1.0.1", 3, "198.51.100.0/24", metric=900),
    ]  # fmt: skip
    found = tables(routes)
    assert gateway(found) == "10.1.0.1"
    assert gateway(found, replace(PACKET, dst="203.0.113.1")) == "10.0.0.9"


def test_a_packet_that_is_bound_to_a_link_takes_a_route_by_it() -> None:
    found = tables([via("10.0.0.1"), via("10.1.0.1", 3, metric=10)])
    assert (gateway(found), gateway(found, oif="eth1")) == ("10.0.0.1", "10.1.0.1")


def test_of_several_next_hops_the_first_is_followed_and_all_are_ways_back() -> None:
    hops = (NextHop("10.0.0.1", 2), NextHop("10.1.0.1", 3))
    found = tables([Route(4, "default", nexthops=hops)], settings=[IpSettings(4, 0, rp_filter=1)])
    assert gateway(found) == "10.0.0.1"
    for one in (ETH0, ETH1):
        assert found.source_fault(Packet("198.51.100.7", "10.0.0.2"), one) == ""


@pytest.mark.parametrize("kind", ["blackhole", "unreachable", "prohibit"])
def test_a_route_or_a_rule_may_end_a_lookup(kind: str) -> None:
    by_route = tables([via("10.0.0.1"), Route(4, "198.51.100.0/24", kind)]).lookup(PACKET)
    assert by_route.end == kind and by_route.route is not None
    rule = PolicyRule(4, 50, src="10.0.0.0/24", action=kind)
    by_rule = tables([via("10.0.0.1")], (*RULES, rule)).lookup(PACKET)
    assert (by_rule.end, by_rule.route, by_rule.rule) == (kind, None, rule)
    assert gateway(tables([via("10.0.0.1")], (*RULES, rule)), replace(PACKET, src="10.1.0.2")) == "10.0.0.1"


def test_a_throw_route_continues_with_the_next_rule() -> None:
    routes = [
        via("10.1.0.1", 3, table="100"),
        Route(4, "198.51.100.0/24", "throw", table="100"),
        via("10.0.0.1"),
    ]
    found = tables(routes, (*RULES, PolicyRule(4, 50, table="100")))
    assert gateway(found) == "10.0.0.1"
    assert gateway(found, replace(PACKET, dst="203.0.113.1")) == "10.1.0.1"


def test_without_a_route_nothing_is_found() -> None:
    found = tables([]).lookup(PACKET)
    assert (found.route, found.hop, found.end, found.is_local) == (None, None, "", False)


# ---- policy rules


def test_rules_are_tried_by_priority() -> None:
    routes = [via("10.0.0.1"), via("10.0.0.5", table="5"), via("10.0.0.6", table="6")]
    rules = (
        *RULES,
        PolicyRule(4, 60, src="10.0.0.2", table="6"),
        PolicyRule(4, 50, src="10.0.0.0/24", table="5"),
    )
    found = tables(routes, rules)
    assert gateway(found) == "10.0.0.5"
    assert gateway(found, replace(PACKET, src="10.1.0.2")) == "10.0.0.1"
    assert gateway(tables(routes, (*rules, PolicyRule(4, 40, dst="198.51.0.0/16")))) == "10.0.0.1"


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        (PolicyRule(4, 50, iif="eth1"), False),
        (PolicyRule(4, 50, iif="eth0"), True),
        (PolicyRule(4, 50, iif="eth0", inverted=True), False),
        (PolicyRule(4, 50, oif="eth1"), False),
        (PolicyRule(6, 50), False),
        (PolicyRule(4, 50, more=("ipproto 6",)), True),
        (PolicyRule(4, 50, more=("ipproto udp",)), False),
        (PolicyRule(4, 50, more=("dport 440-450",)), True),
        (PolicyRule(4, 50, more=("ipproto tcp", "dport 80")), False),
        (PolicyRule(4, 50, fwmark=0x10), False),
        (PolicyRule(4, 50, fwmark=0x1), False),
        (PolicyRule(4, 50, fwmark=0x1, fwmask=0x1), True),
        (PolicyRule(4, 50, fwmark=0x3), True),
        (PolicyRule(4, 50, fwmark=0x3, inverted=True), False),
        (PolicyRule(4, 50, fwmark=0x10, inverted=True), True),
    ],
)  # fmt: skip
def test_selectors_of_rules(rule: PolicyRule, matches: bool) -> None:
    found = tables([via("10.0.0.1"), via("10.0.0.5", table="5")], (*RULES, replace(rule, table="5")))
    lookup = found.lookup(replace(PACKET, mark=3), iif="eth0")
    assert lookup.hop is not None and not lookup.unsure
    assert (lookup.hop.gateway == "10.0.0.5") == matches


def test_a_packet_of_the_namespace_itself_comes_in_by_lo() -> None:
    found = tables(
        [via("10.0.0.1"), via("10.0.0.5", table="5")], (*RULES, PolicyRule(4, 50, iif="lo", table="5"))
    )
    assert (gateway(found), gateway(found, iif="eth0")) == ("10.0.0.5", "10.0.0.1")


@pytest.mark.parametrize(
    ("rule", "mark"), [(PolicyRule(4, 50, fwmark=1), None), (PolicyRule(4, 50, more=("uidrange 0-9",)), 0)]
)
def test_a_selector_that_is_not_known_makes_the_result_unsure(rule: PolicyRule, mark: int | None) -> None:
    found = tables([via("10.0.0.1")], (*RULES, rule)).lookup(replace(PACKET, mark=mark))
    assert found.unsure and found.hop == NextHop("10.0.0.1", 2)


def test_rules_of_wg_quick() -> None:
    """All but the tunnel's own packets take its table, unless a route of main is more specific."""
    rules = (
        *RULES,
        PolicyRule(4, 32764, table="main", suppress_prefixlen=0),
        PolicyRule(4, 32765, fwmark=0xCA6C, table="51820", inverted=True),
    )
    routes = [
        via("10.0.0.1"),
        via("", 3, "10.1.0.0/24"),
        Route(4, "default", nexthops=(NextHop("", 7),), table="51820"),
    ]
    found = tables(routes, rules, (ETH0, ETH1, link(7, "wg0", "10.9.0.1/32", kind="wireguard")))
    for packet, ifindex in (
        (PACKET, 7), (replace(PACKET, mark=0xCA6C), 2), (replace(PACKET, dst="10.1.0.5"), 3),
    ):  # fmt: skip
        hop = found.lookup(packet).hop
        assert hop is not None and hop.ifindex == ifindex


def test_a_rule_may_skip_others() -> None:
    rules = (
        *RULES,
        PolicyRule(4, 40, action="goto", goto=60),
        PolicyRule(4, 50, table="5"),
        PolicyRule(4, 60, table="6"),
    )
    found = tables([via("10.0.0.5", table="5"), via("10.0.0.6", table="6")], rules)
    assert gateway(found) == "10.0.0.6"


# ---- addresses of the namespace


def test_own_addresses_are_local_also_without_a_table_of_them() -> None:
    for routes in ([], [Route(4, "10.0.0.2", "local", (NextHop("", 2),), table="local")]):
        found = tables(routes)
        assert found.is_local("10.0.0.2") and not found.is_local("10.0.0.3")
        assert found.lookup(replace(PACKET, dst="10.0.0.2")).is_local
    wide = tables(
        [Route(4, "127.0.0.0/8", "local", table="local"), Route(4, "10.5.0.0/16", "local", table="local")]
    )
    assert wide.is_local("10.5.7.7") and wide.has_wide_answers() and not tables([]).has_wide_answers()
    assert tables([], settings=[IpSettings(4, 2, proxy=True)]).has_wide_answers()


def test_the_local_table_comes_first_and_a_rule_before_it_may_hide_it() -> None:
    broadcast = Route(4, "10.0.0.255", "broadcast", (NextHop("", 2),), table="local")
    found = tables([broadcast, via("10.0.0.1")]).lookup(replace(PACKET, dst="10.0.0.255"))
    assert found.route == broadcast and not found.is_local
    moved = [replace(RULES[0], priority=100), *RULES[1:], PolicyRule(4, 50, dst="10.0.0.2")]
    hidden = tables([via("10.0.0.1")], moved).lookup(replace(PACKET, dst="10.0.0.2"))
    assert hidden.hop == NextHop("", 2) and not hidden.is_local


@pytest.mark.parametrize(
    ("route", "source"),
    [
        (via("10.1.0.1", 3), "10.1.0.2"),
        (via("10.0.0.1", source="10.0.0.77"), "10.0.0.77"),
        (via("", 2, "10.8.0.0/24"), "10.0.0.2"),
        (via("", 7), "10.0.0.2"),
    ],
)
def test_source_addresses(route: Route, source: str) -> None:
    links = (ETH0, ETH1, link(7, "wg0", kind="wireguard"))
    dst = "10.8.0.9" if route.dst != "default" else "198.51.100.7"
    found = tables([route], links=links)
    assert found.source_for(found.lookup(replace(PACKET, src="", dst=dst)), dst) == source


def test_of_several_addresses_the_one_next_to_the_gateway_is_chosen() -> None:
    both = link(2, "eth0", "10.0.0.2/24", "10.3.0.2/24", "fe80::1/64", "2001:db8::2/64")
    found = tables(
        [via("10.3.0.1"), via("fe80::9")], (*RULES, *(replace(one, family=6) for one in RULES)), (both,)
    )
    for dst, source in (("198.51.100.7", "10.3.0.2"), ("2001:db8:9::7", "2001:db8::2")):
        assert found.source_for(found.lookup(Packet("", dst)), dst) == source
    assert found.source_for(found.lookup(Packet("", "10.0.0.2")), "10.0.0.2") == "10.0.0.2"


# ---- the check of sources


@pytest.mark.parametrize(
    ("source", "mode", "at", "fault"),
    [
        ("10.0.0.9", 1, ETH0, ""),
        ("10.0.0.9", 1, ETH1, "rp_filter"),
        ("10.0.0.9", 2, ETH1, ""),
        ("10.0.0.9", 0, ETH1, ""),
        ("203.0.113.5", 2, ETH0, "rp_filter"),
        ("203.0.113.5", 0, ETH0, ""),
        ("10.1.0.2", 0, ETH0, "own address"),
        ("10.0.0.9", 2, link(3, "eth1"), "rp_filter"),
    ],
)
def test_the_check_of_the_source(source: str, mode: int, at: Link, fault: str) -> None:
    """Mode 2 needs any way back, mode 1 one by the same link (fib_validate_source)."""
    routes = [via("", 2, "10.0.0.0/24"), via("", 3, "10.1.0.0/24")]
    for settings in ([IpSettings(4, 0, rp_filter=mode)], [IpSettings(4, at.ifindex, rp_filter=mode)]):
        found = tables(routes, settings=settings)
        assert found.source_fault(Packet(source, "10.0.0.2"), at) == fault


def test_the_larger_rp_filter_counts_and_ipv6_has_none() -> None:
    found = tables(settings=[IpSettings(4, 0, rp_filter=2), IpSettings(4, 2, rp_filter=1)])
    assert (found.rp_filter(ETH0), found.rp_filter(ETH1)) == (2, 2)
    assert found.source_fault(Packet("2001:db8::9", "2001:db8::2"), ETH0) == ""


def test_forwarding_is_a_setting_of_the_link_for_ipv4_and_of_all_for_ipv6() -> None:
    settings = [IpSettings(4, 0), IpSettings(4, 2, forwarding=True), IpSettings(6, 0), IpSettings(6, 2, True)]
    found = tables(settings=settings)
    assert (found.forwards(ETH0, False), found.forwards(ETH0, True)) == (True, False)
    assert (found.forwards(ETH1, False), found.forwards_at_all(False)) == (None, False)
