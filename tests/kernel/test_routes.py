"""Check routes, rules and neighbours against `ip -j`."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from core.model import Neighbour, PolicyRule, Route
from tests.kernel.reading import net_of
from tests.support.host import ThrowawayHost

pytestmark = pytest.mark.root

ROUTES = (
    "default via 10.0.0.254",
    "10.5.0.0/16 via 10.0.0.9 metric 50 proto static mtu 1300",
    "10.6.0.0/16 nexthop via 10.0.0.7 weight 2 nexthop via 10.0.0.8 weight 5",
    "10.7.0.7 dev v0 scope link src 10.0.0.1",
    "blackhole 10.8.0.0/16",
    "unreachable 10.9.0.0/16 metric 9",
    "prohibit 10.10.0.0/16 table 77",
    "throw 10.11.0.0/16 table 4242",
    "10.12.0.0/16 via inet6 fd00::9 dev v0",
)
ROUTES_6 = (
    "default via fd00::fe",
    "fd05::/48 via fd00::9 metric 50 proto bgp",
    "fd06::/48 nexthop via fd00::7 nexthop via fd00::8",
    "blackhole fd08::/48",
    "fd09::9 dev v0 table 77",
)
RULES = (
    "from 10.1.0.0/16 to 10.2.0.0/24 iif v0 oif w0 fwmark 0x10/0xf0 priority 100 table 77",
    "not from all fwmark 0x51820 priority 101 table 51820",
    "priority 102 blackhole to 10.66.0.1",
    "priority 103 goto 32766",
    "priority 104 table main suppress_prefixlength 0",
    "priority 105 ipproto tcp dport 80 table 77",
    "priority 106 sport 1000-2000 ipproto udp uidrange 5-6 table 77",
)


@pytest.fixture
def routed(host: ThrowawayHost) -> ThrowawayHost:
    """Create a host with a link v0 that has addresses and is up."""
    host.run("ip link add v0 type veth peer name w0")
    for arguments in ("10.0.0.1/24", "fd00::1/64 nodad"):
        host.run(f"ip addr add {arguments} dev v0")
    host.run("ip link set w0 up")
    host.run("ip link set v0 up")
    return host


def from_ip(entry: dict[str, Any], family: int) -> tuple[Any, ...]:
    """Pick the properties of a route of `ip -j -d route`."""
    hops = entry.get("nexthops") or ([entry] if {"dev", "gateway", "via"} & entry.keys() else [])
    nexthops = [
        (h.get("gateway") or h.get("via", {}).get("host", ""), h.get("dev"), h.get("weight", 1)) for h in hops
    ]
    mtus = [metrics["mtu"] for metrics in entry.get("metrics", ()) if "mtu" in metrics]
    return (
        entry["dst"] if entry["dst"] == "default" else str(ipaddress.ip_network(entry["dst"])),
        entry.get("type", "unicast"),
        tuple(sorted(nexthops)),
        entry.get("prefsrc", ""), entry.get("metric", 0), entry.get("table", "main"), entry["protocol"],
        entry["scope"], mtus[0] if mtus else 0, family,
    )  # fmt: skip


def route_of_model(route: Route, names: dict[int | None, str]) -> tuple[Any, ...]:
    """Pick the same properties of the model."""
    hops = tuple(sorted((hop.gateway, names.get(hop.ifindex), hop.weight) for hop in route.nexthops))
    return (
        route.dst, route.kind, hops, route.source, route.metric, route.table, route.protocol, route.scope,
        route.mtu, route.family,
    )  # fmt: skip


def test_routes_of_all_tables_are_those_that_ip_prints(routed: ThrowawayHost) -> None:
    for arguments in ROUTES:
        routed.run(f"ip route add {arguments}")
    for arguments in ROUTES_6:
        routed.run(f"ip -6 route add {arguments}")
    net = net_of(routed)
    names: dict[int | None, str] = {ifindex: link.name for ifindex, link in net.links.items()}
    for family in (4, 6):
        printed = [from_ip(e, family) for e in routed.json(f"ip -{family} -j -d route show table all")]
        read = [route_of_model(route, names) for route in net.routes if route.family == family]
        assert sorted(read, key=repr) == sorted(printed, key=repr)
        assert len(read) > len(ROUTES)


def rule_from_ip(entry: dict[str, Any]) -> tuple[Any, ...]:
    """Pick the properties of a rule of `ip -j rule`."""
    action = entry.get("action") or ("goto" if "goto" in entry else "lookup")
    prefixes = [
        "" if end == "all" else f"{end}/{entry.get(f'{name}len', 32)}"
        for name, end in (("src", entry["src"]), ("dst", entry.get("dst", "all")))
    ]
    return (
        entry["priority"], *prefixes, entry.get("iif", ""), entry.get("oif", ""),
        int(entry["fwmark"], 16) if "fwmark" in entry else None,
        int(entry["fwmask"], 16) if "fwmask" in entry else 0xFFFFFFFF if "fwmark" in entry else None,
        entry.get("table") if action == "lookup" else None, action, "not" in entry, entry.get("goto"),
        entry.get("suppress_prefixlen"),
    )  # fmt: skip


def rule_of_model(rule: PolicyRule) -> tuple[Any, ...]:
    """Pick the same properties of the model."""
    return (
        rule.priority, rule.src, rule.dst, rule.iif, rule.oif, rule.fwmark, rule.fwmask,
        rule.table if rule.action == "lookup" else None, rule.action, rule.inverted, rule.goto,
        rule.suppress_prefixlen,
    )  # fmt: skip


def test_rules_are_those_that_ip_prints(routed: ThrowawayHost) -> None:
    for arguments in RULES:
        routed.run(f"ip rule add {arguments}")
    routed.run("ip -6 rule add priority 200 from fd00::/64 table 77")
    net = net_of(routed)
    for family in (4, 6):
        read = [rule_of_model(rule) for rule in net.rules if rule.family == family]
        assert read == [rule_from_ip(entry) for entry in routed.json(f"ip -{family} -j rule")]
    more = {rule.priority: rule.more for rule in net.rules if rule.more}
    assert more == {105: ("ipproto 6", "dport 80"), 106: ("uidrange 5-6", "ipproto 17", "sport 1000-2000")}


def neighbour_of_model(entry: Neighbour, names: dict[int, str]) -> tuple[Any, ...]:
    """Pick the properties of a neighbour."""
    return entry.address, names[entry.ifindex], entry.mac, entry.state.upper(), entry.router, entry.proxy


def test_neighbours_are_those_that_ip_prints(routed: ThrowawayHost) -> None:
    for arguments in (
        "10.0.0.50 lladdr 02:00:00:00:00:50 nud permanent",
        "10.0.0.51 lladdr 02:00:00:00:00:51 nud stale",
        "fd00::50 lladdr 02:00:00:00:00:52 nud stale router",
        "10.0.0.52 nud failed",
    ):
        routed.run(f"ip neigh add {arguments} dev v0")
    routed.run("ip neigh add proxy 10.0.0.60 dev v0")
    net = net_of(routed)
    names = {ifindex: link.name for ifindex, link in net.links.items()}
    printed = [
        (e["dst"], e["dev"], e.get("lladdr", ""), *e["state"], "router" in e, False)
        for e in routed.json("ip -j neigh")
    ]
    printed += [(e["dst"], e["dev"], "", "NONE", False, True) for e in routed.json("ip -j neigh show proxy")]
    assert sorted(neighbour_of_model(entry, names) for entry in net.neighbours) == sorted(printed)
    assert {"PERMANENT", "STALE", "FAILED"} <= {row[3] for row in printed}
