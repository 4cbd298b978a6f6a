"""Plans of repairs: their operations in order, and why there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from core.model import (
    Address,
    BridgePort,
    BridgeSettings,
    Chain,
    FdbEntry,
    Firewall,
    FirewallRule,
    IpSettings,
    Link,
    LinkKey,
    Neighbour,
    NextHop,
    PolicyRule,
    PortVlan,
    Route,
    Snapshot,
)
from core.model.fix import (
    FixAddress,
    FixFdb,
    FixFirewall,
    FixLink,
    FixMasquerade,
    FixNeighbour,
    FixPolicyRule,
    FixPort,
    FixRoute,
    FixSysctl,
    FixVlan,
    Step,
)
from core.operations import (
    AddFirewallRule,
    AddNeighbour,
    AddVlan,
    DeleteFirewallRule,
    DeleteNeighbour,
    DeleteVlan,
    Operation,
    SetRules,
    SetSysctl,
    undo_of,
)
from core.operations.values import from_record, to_record
from core.plan import Plan, plan
from core.plan.requests import Repair
from core.topology import Topology
from tests.support.host_builder import HOST, HostBuilder
from tests.unit.test_plan import PUBLISHED, host, topology

GONE, ALREADY = "it no longer exists", "it is already so: nothing to do"
MISSING = LinkKey(HOST, 999)


def repaired(*steps: Step, now: Topology | None = None) -> Plan:
    made = plan(Repair("repair it", steps), now or Topology(host().snapshot()))
    assert isinstance(made, Plan), made
    for step in (*made.steps, *undo_of(made.steps)):
        assert from_record(to_record(step)) == step
        assert step.command() and step.describe() and step.affects()
    return made


def refused(*steps: Step, now: Topology | None = None) -> str:
    made = plan(Repair("repair it", steps), now or Topology(host().snapshot()))
    assert not isinstance(made, Plan), made
    (reason,) = made.reasons
    start = "can't repair it: "
    assert reason.startswith(start)
    return reason.removeprefix(start)


def _link(made: HostBuilder, name: str) -> Link:
    return next(one for one in made.links[HOST].values() if one.name == name)


def _port(**fields: Any) -> tuple[Topology, LinkKey]:
    """Return a host whose port v-web has these settings, and its key."""
    made = host()
    port = _link(made, "v-web")
    made.links[HOST][port.ifindex] = replace(
        port, port=replace(port.port or BridgePort("forwarding"), **fields)
    )
    return Topology(made.snapshot()), port.key


def _firewall(*rules: FirewallRule, chains: tuple[Chain, ...] = ()) -> Topology:
    snapshot = host().snapshot()
    return Topology(replace(snapshot, firewalls={HOST: Firewall(HOST, chains, rules)}))


def _rule(handle: int, text: str, **fields: Any) -> FirewallRule:
    usual = {"backend": "nft", "family": "inet", "table": "guard", "chain": "forward"}
    return FirewallRule(rule_id=f"nft/inet/guard/{handle}", text=text, **(usual | fields))


def _fix(*rules: FirewallRule) -> tuple[FixFirewall, ...]:
    return tuple(FixFirewall(HOST, one.rule_id) for one in rules)


def _commands(steps: tuple[Operation, ...]) -> list[str]:
    return [step.command() for step in steps]


def test_a_repair_has_the_title_and_the_commands_of_its_fix() -> None:
    made = repaired(FixLink(_link(host(), "br-shop").key, "mtu", "1400"))
    assert made.title == "repair it"
    assert _commands(made.steps) == ["ip link set br-shop mtu 1400"]
    assert not made.guarded


def test_a_repair_of_the_uplink_is_guarded() -> None:
    made = repaired(FixLink(_link(host(), "eth0").key, "mtu", "1400"))
    assert made.guarded
    assert any("60 s" in one for one in made.warnings)


def gone_steps() -> Iterator[Step]:
    yield FixLink(MISSING, "up", "up")
    yield FixPort(MISSING, "isolated", False)
    yield FixVlan(MISSING, PortVlan(1, 1), True)
    yield FixAddress(MISSING, Address(4, "10.9.0.9", 24), True)
    yield FixRoute(HOST, Route(4, "203.0.113.0/24", "blackhole"), False)
    yield FixPolicyRule(HOST, PolicyRule(4, 77))
    yield FixNeighbour(HOST, Neighbour(4, "10.9.0.77", "", 1, "failed"))
    yield FixFdb(HOST, FdbEntry("02:00:00:00:00:99", 1, 2))
    yield FixFirewall(HOST, "nft/ip/filter/7")
    yield FixAddress(_link(host(), "eth0").key, Address(4, "192.0.2.99", 24), False)


@pytest.mark.parametrize("step", gone_steps(), ids=lambda step: type(step).__name__)
def test_what_no_longer_exists_is_refused(step: Step) -> None:
    assert refused(step) == GONE


def done_steps() -> Iterator[Step]:
    uplink = _link(host(), "eth0")
    yield FixLink(uplink.key, "up", "up")
    yield FixLink(uplink.key, "mtu", "1500")
    yield FixLink(_link(host(), "v-web").key, "master", "br-shop")
    yield FixPort(_link(host(), "v-web").key, "state", True)
    yield FixPort(_link(host(), "v-web").key, "locked", False)
    yield FixAddress(uplink.key, Address(4, "192.0.2.2", 24), True)
    yield FixRoute(HOST, Route(4, "default", nexthops=(NextHop("192.0.2.1", uplink.ifindex),)), True)
    yield FixSysctl(HOST, "net.ipv4.ip_forward", "1", "0")


@pytest.mark.parametrize("step", done_steps(), ids=lambda step: type(step).__name__)
def test_what_is_already_so_is_refused(step: Step) -> None:
    assert refused(step) == ALREADY


def test_a_repair_needs_steps_and_namespaces() -> None:
    assert "advice" in refused()
    assert refused(FixRoute(1, Route(4, "default"), True)) == "the namespace no longer exists"
    assert refused(FixMasquerade(1, "10.0.0.0/24", "br0")).startswith("the firewall of the namespace")


# ---- bridge ports


def test_stp_and_a_missing_carrier_decide_the_state_of_a_port() -> None:
    now, key = _port(state="blocking")
    (step,) = repaired(FixPort(key, "state", True), now=now).steps
    assert step.command() == "bridge link set dev v-web state 3"
    assert [one.command() for one in step.inverse()] == ["bridge link set dev v-web state 4"]
    made = host()
    bridge, port = _link(made, "br-shop"), _link(made, "v-web")
    made.links[HOST][port.ifindex] = replace(port, port=BridgePort("blocking"))
    made.links[HOST][bridge.ifindex] = replace(bridge, bridge=BridgeSettings(stp=True))
    assert refused(FixPort(key, "state", True), now=Topology(made.snapshot())).startswith("STP of br-shop")
    made.links[HOST][bridge.ifindex] = bridge
    made.links[HOST][port.ifindex] = replace(port, port=BridgePort("disabled"), carrier=False)
    assert "no carrier" in refused(FixPort(key, "state", True), now=Topology(made.snapshot()))


@pytest.mark.parametrize(
    ("held", "wanted", "expected"),
    [
        ((), PortVlan(7, 7), ["add 7"]),
        ((PortVlan(1, 1, True, True),), PortVlan(7, 7), ["add 7"]),
        ((PortVlan(5, 9),), PortVlan(7, 7, untagged=True), ["del 7", "add 7 untagged"]),
        (
            (PortVlan(1, 1, True, True),),
            PortVlan(7, 7, True, True),
            ["del 1", "add 1 untagged", "add 7 pvid untagged"],
        ),
        ((PortVlan(7, 7, True, True),), PortVlan(7, 7), ["del 7", "add 7"]),
    ],
)
def test_vlans_replace_what_they_change(
    held: tuple[PortVlan, ...], wanted: PortVlan, expected: list[str]
) -> None:
    now, key = _port(vlans=held)
    found = repaired(FixVlan(key, wanted, True), now=now).steps
    words = [step.command().removeprefix("bridge vlan ").replace("dev v-web vid ", "") for step in found]
    assert words == expected
    undone = [step for step in undo_of(found) if isinstance(step, AddVlan)]
    removed = [step.vlan for step in found if isinstance(step, DeleteVlan)]
    assert undone == removed[::-1]


def test_a_vlan_of_a_range_is_deleted_alone() -> None:
    now, key = _port(vlans=(PortVlan(1, 1, True, True), PortVlan(20, 30)))
    (step,) = repaired(FixVlan(key, PortVlan(25, 25), False), now=now).steps
    assert step.command() == "bridge vlan del dev v-web vid 25"
    assert refused(FixVlan(key, PortVlan(40, 40), False), now=now) == GONE
    assert refused(FixVlan(key, PortVlan(22, 23), True), now=now) == ALREADY


# ---- settings, routing, neighbours


def _with_settings(*settings: IpSettings) -> Topology:
    snapshot = host().snapshot()
    net = replace(snapshot.nets[HOST], settings=settings)
    return Topology(replace(snapshot, nets={**snapshot.nets, HOST: net}))


def test_forwarding_of_single_links_survives_the_undo() -> None:
    index = _link(host(), "eth0").ifindex
    now = _with_settings(IpSettings(4, 0), IpSettings(4, index, forwarding=True))
    kept, step = repaired(FixSysctl(HOST, "net.ipv4.ip_forward", "1", "0"), now=now).steps
    assert kept == SetSysctl("net.ipv4.conf.eth0.forwarding", "1", "1")
    assert step == SetSysctl("net.ipv4.ip_forward", "1", "0")
    undone = undo_of((kept, step))
    assert undone == (SetSysctl("net.ipv4.ip_forward", "0", "1"), kept)


def test_the_undo_of_a_setting_is_its_present_value() -> None:
    index = _link(host(), "eth0").ifindex
    now = _with_settings(IpSettings(4, index, rp_filter=0))
    (step,) = repaired(FixSysctl(HOST, "net.ipv4.conf.eth0.rp_filter", "2", "1"), now=now).steps
    assert step == SetSysctl("net.ipv4.conf.eth0.rp_filter", "2", "0")
    assert refused(FixSysctl(HOST, "net.ipv4.conf.gone0.rp_filter", "2", "1")).startswith("the link gone0")


def test_a_policy_rule_with_an_unknown_selector_is_refused() -> None:
    made = host()
    rule = PolicyRule(4, 77, more=("tun_id 9",))
    made.policy[HOST] = [rule]
    reason = refused(FixPolicyRule(HOST, rule), now=Topology(made.snapshot()))
    assert "tun_id 9" in reason and reason.endswith("ip rule del priority 77")


def test_a_route_that_goes_with_an_address_can_be_added_again() -> None:
    uplink = _link(host(), "eth0")
    route = Route(4, "default", nexthops=(NextHop("192.0.2.1", uplink.ifindex),))
    steps = (
        FixAddress(uplink.key, uplink.addresses[0], False),
        FixAddress(uplink.key, Address(4, "192.0.2.2", 25), True),
        FixRoute(HOST, route, False),
        FixRoute(HOST, route, True),
    )
    assert [one.removeprefix("ip ").split(" dev ")[0] for one in _commands(repaired(*steps).steps)] == [
        "route del default via 192.0.2.1",
        "addr del 192.0.2.2/24",
        "addr add 192.0.2.2/25",
        "route add default via 192.0.2.1",
    ]
    assert refused(FixRoute(HOST, route, True)) == ALREADY


def test_a_duplicate_address_leaves_no_neighbour_entry() -> None:
    made = host()
    twice = made.link(HOST, "eth9", "physical", ["10.9.0.2/24"], mac="02:00:00:00:00:99")
    index = _link(made, "br-shop").ifindex
    made.neighbours[HOST] = [
        Neighbour(4, "10.9.0.2", twice.mac, index, "delay"),
        Neighbour(4, "10.9.0.3", twice.mac, index, "reachable"),
    ]
    now = Topology(made.snapshot())
    found = repaired(FixAddress(twice.key, twice.addresses[0], False), now=now).steps
    assert _commands(found) == ["ip addr del 10.9.0.2/24 dev eth9", "ip neigh del 10.9.0.2 dev br-shop"]
    (undo,) = found[-1].inverse()
    assert undo.command().endswith("dev br-shop nud stale")


def test_a_failed_neighbour_needs_no_undo() -> None:
    made = host()
    failed = Neighbour(4, "10.9.0.50", "", _link(made, "br-shop").ifindex, "failed")
    made.neighbours.setdefault(HOST, []).append(failed)
    (step,) = repaired(FixNeighbour(HOST, failed), now=Topology(made.snapshot())).steps
    assert step.command() == "ip neigh del 10.9.0.50 dev br-shop"
    assert step.inverse() == ()
    known = AddNeighbour("br-shop", "10.9.0.50", "02:00:00:00:00:01")
    assert DeleteNeighbour(known).inverse() == (known,)


# ---- firewall rules

FIRST, SECOND = _rule(4, "tcp dport 80 counter drop"), _rule(6, "udp dport 53 drop")
EQUAL, LAST = _rule(8, "udp dport 53 drop"), _rule(9, "accept")


def test_a_rule_goes_back_beside_those_that_stay() -> None:
    now = _firewall(FIRST, SECOND, EQUAL, LAST)
    made = repaired(*_fix(FIRST, SECOND), now=now)
    assert _commands(made.steps) == [
        "nft delete rule inet guard forward handle 4",
        "nft delete rule inet guard forward handle 6",
    ]
    first, second = (step.rule for step in made.steps if isinstance(step, DeleteFirewallRule))
    assert (first.after, first.before, first.number, first.copies, first.length) == (0, 6, 1, 1, 4)
    assert (second.after, second.before, second.number, second.copies, second.length) == (0, 8, 1, 2, 3)
    assert _commands((first,)) == ["nft 'insert rule inet guard forward tcp dport 80 counter drop'"]
    (third,) = repaired(*_fix(LAST), now=now).steps
    assert _commands(third.inverse()) == ["nft 'add rule inet guard forward position 8 accept'"]


def test_iptables_deletes_the_first_of_equal_rules() -> None:
    fields = {"backend": "iptables-legacy", "family": "ip", "table": "filter", "chain": "FORWARD"}
    texts = ("-A FORWARD -j ACCEPT -i lo", '-A FORWARD -m comment --comment "a b" -j DROP')
    rules = tuple(
        replace(_rule(0, text, **fields), rule_id=str(place))
        for place, text in enumerate((texts[0], texts[1], texts[0], texts[1]))
    )
    (step,) = repaired(FixFirewall(HOST, "3"), now=_firewall(*rules)).steps
    assert step.command() == "iptables-legacy -t filter -D FORWARD -m comment --comment 'a b' -j DROP"
    (undo,) = step.inverse()
    assert undo.command() == "iptables-legacy -t filter -I FORWARD 2 -m comment --comment 'a b' -j DROP"


@pytest.mark.parametrize(
    "rule",
    [
        _rule(4, 'drop comment "a"; flush ruleset; comment "b"'),
        _rule(4, 'iifname "x"\nflush ruleset # " drop'),
        _rule(4, 'xt target "MASQUERADE"'),
        _rule(4, "jump { accept }"),
        _rule(4, 'drop comment "\udcff"'),
        _rule(4, '[{"drop": null}]'),
        _rule(4, "drop", chain="a; flush ruleset"),
        _rule(4, "drop", table="it's"),
    ],
    ids=lambda rule: ascii(rule.text)[:30] + rule.table + rule.chain[:2],
)
def test_a_rule_that_nft_could_not_repeat_is_refused(rule: FirewallRule) -> None:
    reason = refused(*_fix(rule), now=_firewall(rule))
    assert "so there is no undo" in reason and "handle 4" in reason


def test_a_semicolon_in_a_comment_is_no_obstacle() -> None:
    rule = _rule(4, 'drop comment "a; b # {x}"')
    (step,) = repaired(*_fix(rule), now=_firewall(rule)).steps
    assert _commands(step.inverse()) == ["nft 'insert rule inet guard forward drop comment \"a; b # {x}\"'"]


def test_a_rule_of_a_published_port_is_unpublished() -> None:
    fields = {"family": "inet", "table": "vnet", "chain": "publish", "comment": PUBLISHED}
    rule = FirewallRule(
        "nft", rule_id="nft/inet/vnet/9", text="dnat", verdict="dnat", l4_proto="tcp", dport="8080",
        to_address="10.9.0.2", to_port="80", **fields,
    )  # fmt: skip
    now = topology(host(), (rule,))
    made = repaired(*_fix(rule), now=now)
    assert any(isinstance(step, SetRules) and PUBLISHED not in step.text for step in made.steps)
    other = replace(rule, rule_id="nft/inet/vnet/10", text="accept", verdict="accept", comment="")
    assert "vnet-tui itself" in refused(*_fix(other), now=topology(host(), (other,)))


NFT_NAT = Chain("nft", "ip", "nat", "post", "postrouting", "nat", 100)
IPTABLES_NAT = Chain("iptables-nft", "ip", "nat", "POSTROUTING", "postrouting", "nat", 100)


def test_a_masquerade_rule_goes_to_an_existing_chain() -> None:
    step = FixMasquerade(HOST, "10.5.0.0/24", "br0")
    assert refused(step, now=_firewall()).startswith("there is no chain for source NAT. Try: iptables -t nat")
    (made,) = repaired(step, now=_firewall(chains=(IPTABLES_NAT,))).steps
    text = "POSTROUTING -s 10.5.0.0/24 '!' -o br0 -j MASQUERADE"
    assert made.command() == f"iptables-nft -t nat -A {text}"
    assert _commands(made.inverse()) == [f"iptables-nft -t nat -D {text}"]
    (made,) = repaired(step, now=_firewall(chains=(IPTABLES_NAT, NFT_NAT))).steps
    assert isinstance(made, AddFirewallRule)
    assert made.text == 'ip saddr 10.5.0.0/24 oifname != "br0" masquerade'
    six = FixMasquerade(HOST, "fd00::/64", "br0")
    assert "ip6tables" in refused(six, now=_firewall(chains=(NFT_NAT,)))
    odd = FixMasquerade(HOST, "10.5.0.0/24", "br'0")
    assert "can't name" in refused(odd, now=_firewall(chains=(NFT_NAT,)))


def test_a_network_of_vnet_gets_its_own_rules_again() -> None:
    made = repaired(FixMasquerade(HOST, "10.9.0.0/24", "br-shop"), now=_firewall(chains=(NFT_NAT,)))
    assert [type(step) for step in made.steps] == [SetRules]
    six = FixMasquerade(HOST, "fd00:9::/64", "br-shop")
    assert "as shop was made" in refused(six, now=_firewall(chains=(NFT_NAT,)))


def test_snapshots_without_firewall_are_refused() -> None:
    snapshot: Snapshot = replace(host().snapshot(), firewalls={})
    assert "couldn't be read" in refused(FixFirewall(HOST, "nft/ip/t/1"), now=Topology(snapshot))
