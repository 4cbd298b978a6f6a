"""NAT entries from firewall rules, with names, containers and networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.model import (
    Chain,
    Firewall,
    FirewallRule,
    NatEntry,
    PublishedPort,
    Snapshot,
    Translation,
    VerdictCase,
)
from core.nat import nat_entries
from core.nat.packets import are_disjoint, covers, matches_link, placed_rules, prefixes, targets
from core.networks import all_networks
from tests.support.host_builder import HOST, HostBuilder
from tests.support.snapshots import HOSTILE_NAME, small_builder

FORWARD = Chain("iptables-nft", "ip", "filter", "FORWARD", "forward", "filter", 0, "accept")
PREROUTING = Chain("iptables-nft", "ip", "nat", "PREROUTING", "prerouting", "nat", -100, "accept")
OUTPUT = Chain("iptables-nft", "ip", "nat", "OUTPUT", "output", "nat", -100, "accept")
POSTROUTING = Chain("iptables-nft", "ip", "nat", "POSTROUTING", "postrouting", "nat", 100, "accept")
CHAINS = (FORWARD, PREROUTING, OUTPUT, POSTROUTING)


def entries_of(snapshot: Snapshot) -> tuple[NatEntry, ...]:
    return nat_entries(snapshot, all_networks(snapshot))


def rule(chain: str, verdict: str, rule_id: str = "", **fields: Any) -> FirewallRule:
    table = "filter" if verdict in ("accept", "drop", "reject") else "nat"
    usual = {"table": table, "family": "ip", "backend": "iptables-nft", "text": f"-A {chain} {fields}"}
    return FirewallRule(
        chain=chain, verdict=verdict, rule_id=rule_id or f"{chain}/{verdict}/{fields}", **(usual | fields)
    )


def with_rules(*rules: FirewallRule, chains: tuple[Chain, ...] = CHAINS) -> tuple[NatEntry, ...]:
    """Return the entries of these rules on the small host."""
    snapshot = small_builder().snapshot(firewalls={HOST: Firewall(HOST, chains, rules)})
    return entries_of(snapshot)


def docker_port(host_port: str, address: str, number: int) -> tuple[FirewallRule, ...]:
    """Return Docker's three rules for a published port."""
    where = {"l4_proto": "tcp", "dport": "80"}
    return (
        rule("DOCKER", "dnat", f"dnat{number}", iif="!br-app", l4_proto="tcp", dport=host_port,
             to_address=address, to_port="80", packets=number, bytes=60 * number),
        rule("DOCKER", "accept", f"accept{number}", iif="!br-app", oif="br-app", dst=address,
             packets=1000, bytes=1000, **where),
        rule("POSTROUTING", "masquerade", f"hairpin{number}", src=address, dst=address,
             packets=1000, bytes=1000, **where),
    )  # fmt: skip


JUMPS = (
    rule("PREROUTING", "jump", target="DOCKER", table="nat", understood=False),
    rule("OUTPUT", "jump", target="DOCKER", table="nat", dst="!127.0.0.0/8", understood=False),
    rule("FORWARD", "jump", target="DOCKER", table="filter", oif="br-app"),
)


def test_a_published_port_is_one_entry_with_its_helper_rules() -> None:
    found = with_rules(*JUMPS, *docker_port("8080", "172.18.0.2", 7))
    assert [entry.kind for entry in found] == ["published port"]
    entry = found[0]
    assert entry.sentence == "published: tcp 8080 on every address -> web1 172.18.0.2:80"
    assert entry.name == "web1 tcp 8080 -> 172.18.0.2:80"
    assert (entry.outside, entry.inside, entry.l4_proto) == ("*:8080", "172.18.0.2:80", "tcp")
    assert entry.rules == ("dnat7", "accept7", "hairpin7")
    assert entry.networks == ("net-app",)


def test_counters_are_those_of_the_rules_that_translate() -> None:
    (entry,) = with_rules(*JUMPS, *docker_port("8080", "172.18.0.2", 7))
    assert (entry.packets, entry.bytes) == (7, 420)


def test_a_port_belongs_to_the_container_and_those_that_joined_it() -> None:
    builder = small_builder()
    uids = {container.name: container.uid for container in builder.containers}
    (entry,) = with_rules(*JUMPS, *docker_port("8080", "172.18.0.2", 7))
    assert entry.containers == (uids["web1"], uids["sidecar"])


def test_two_ports_to_one_destination_have_a_helper_each() -> None:
    both = (*docker_port("8080", "172.18.0.2", 1), *docker_port("9090", "172.18.0.2", 2))
    found = with_rules(*JUMPS, *both)
    assert [entry.rules for entry in found] == [
        ("dnat1", "accept1", "hairpin1"),
        ("dnat2", "accept2", "hairpin2"),
    ]


def test_two_ports_to_one_destination_share_a_helper() -> None:
    first, second = docker_port("8080", "172.18.0.2", 1), docker_port("9090", "172.18.0.2", 2)
    found = with_rules(*JUMPS, *first, second[0])
    assert [entry.rules for entry in found] == [
        ("dnat1", "accept1", "hairpin1"),
        ("dnat2", "accept1", "hairpin1"),
    ]


def test_an_accept_for_another_port_is_a_separate_entry() -> None:
    other = rule("FORWARD", "accept", "other", dst="172.18.0.2", l4_proto="tcp", dport="443")
    found = with_rules(*JUMPS, *docker_port("8080", "172.18.0.2", 1), other)
    assert [(entry.kind, entry.rules[0]) for entry in found] == [
        ("published port", "dnat1"),
        ("filter", "other"),
    ]


def test_the_same_nat_in_two_hooks_is_one_entry_with_both_counters() -> None:
    fields = {"l4_proto": "tcp", "dport": "8080", "to_address": "172.18.0.2", "to_port": "80"}
    found = with_rules(
        rule("PREROUTING", "dnat", "one", packets=3, bytes=30, **fields),
        rule("OUTPUT", "dnat", "two", packets=4, bytes=40, **fields),
    )
    assert [(entry.rules, entry.packets, entry.bytes) for entry in found] == [(("one", "two"), 7, 70)]


def test_the_same_port_on_two_addresses_is_two_entries() -> None:
    fields = {"l4_proto": "tcp", "dport": "8080", "to_address": "172.18.0.2", "to_port": "80"}
    found = with_rules(
        rule("PREROUTING", "dnat", dst="127.0.0.1", **fields),
        rule("PREROUTING", "dnat", dst="192.0.2.1", **fields),
    )
    assert [entry.outside for entry in found] == ["127.0.0.1:8080", "192.0.2.1:8080"]


def test_ipv6_addresses_have_brackets() -> None:
    (entry,) = with_rules(
        rule("PREROUTING", "dnat", family="ip6", dst="2001:db8::1", l4_proto="udp", dport="53",
             to_address="fd00::2", to_port="5353", src="2001:db8:1::/48"),
        chains=(replace(PREROUTING, family="ip6"),),
    )  # fmt: skip
    assert (entry.outside, entry.inside, entry.family) == ("[2001:db8::1]:53", "[fd00::2]:5353", "ip6")
    assert entry.sentence == "dnat: udp 53 on 2001:db8::1 -> [fd00::2]:5353, only from 2001:db8:1::/48"


def test_nat_to_an_unknown_address_is_a_dnat() -> None:
    (entry,) = with_rules(
        rule("PREROUTING", "dnat", l4_proto="tcp", dport="25", to_address="203.0.113.9", iif="eth0")
    )
    assert (entry.kind, entry.networks, entry.containers) == ("dnat", (), ())
    assert entry.sentence == "dnat: tcp 25 on eth0 -> 203.0.113.9:25"


def test_a_map_gives_an_entry_for_each_element() -> None:
    elements = (
        Translation(l4_proto="tcp", dport="8080", to_address="172.18.0.2", to_port="80"),
        Translation(l4_proto="tcp", dport="8081", to_address="172.18.0.3", to_port="80"),
    )
    found = with_rules(rule("PREROUTING", "dnat", "map", translations=elements, packets=5))
    assert [(entry.name, entry.rules) for entry in found] == [
        ("web1 tcp 8080 -> 172.18.0.2:80", ("map",)),
        ("web2 tcp 8081 -> 172.18.0.3:80", ("map",)),
    ]
    assert len({entry.entry_id for entry in found}) == 2


def test_a_redirect_to_a_port_of_the_host() -> None:
    (entry,) = with_rules(rule("PREROUTING", "redirect", l4_proto="tcp", dport="80", to_port="3128"))
    assert (entry.kind, entry.inside) == ("redirect", ":3128")
    assert entry.sentence == "redirect: tcp 80 on every address -> port 3128 of this host"


def test_a_masquerade_is_named_after_its_network() -> None:
    (entry,) = with_rules(rule("POSTROUTING", "masquerade", src="172.18.0.0/16", oif="!br-app"))
    assert (
        entry.sentence
        == "masquerade: packets from app (172.18.0.0/16) get the source address of the outgoing link"
    )
    assert (entry.kind, entry.networks, entry.inside) == ("masquerade", ("net-app",), "172.18.0.0/16")


def test_masquerades_by_protocol_are_one_entry() -> None:
    """The rules of libvirt: TCP, UDP, then the rest."""
    fields = {"src": "172.18.0.0/16", "dst": "!172.18.0.0/16"}
    found = with_rules(
        rule("POSTROUTING", "masquerade", "t", l4_proto="tcp", to_port="1024-65535", packets=1, **fields),
        rule("POSTROUTING", "masquerade", "u", l4_proto="udp", to_port="1024-65535", packets=2, **fields),
        rule("POSTROUTING", "masquerade", "a", packets=4, **fields),
    )
    assert [(one.rules, one.packets, one.l4_proto) for one in found] == [(("t", "u", "a"), 7, "")]


def test_a_masquerade_of_a_link_belongs_to_every_nat_network() -> None:
    (entry,) = with_rules(rule("POSTROUTING", "masquerade", oif="eth0"))
    assert entry.sentence == "masquerade: all packets via eth0 get the source address of eth0"
    assert set(entry.networks) == {"net-bridge", "net-app"}


def test_a_masquerade_inherits_what_the_jump_to_its_chain_matches() -> None:
    """The rules of netavark."""
    (entry,) = with_rules(
        rule("POSTROUTING", "jump", target="NETAVARK-1", table="nat", src="172.18.0.0/16"),
        rule("NETAVARK-1", "accept", dst="172.18.0.0/16", table="nat"),
        rule("NETAVARK-1", "masquerade", dst="!224.0.0.0/4"),
    )
    assert (entry.inside, entry.networks) == ("172.18.0.0/16", ("net-app",))
    assert (
        entry.sentence
        == "masquerade: packets from app (172.18.0.0/16) get the source address of the outgoing link"
    )


def test_source_nat_describes_the_new_address() -> None:
    (entry,) = with_rules(rule("POSTROUTING", "snat", src="172.18.0.3", oif="eth0", to_address="192.0.2.9"))
    assert entry.sentence == "snat: packets from web2 (172.18.0.3) via eth0 get the source address 192.0.2.9"
    assert (entry.outside, entry.inside, len(entry.containers)) == ("192.0.2.9", "172.18.0.3", 1)


def test_rules_that_only_jump_return_or_count_have_no_entry() -> None:
    assert not with_rules(
        *JUMPS,
        rule("DOCKER", "return", iif="docker0", table="nat"),
        rule("FORWARD", "", src="172.18.0.0/16", table="filter"),
        rule("FORWARD", "jump", target="DOCKER-USER", table="filter"),
        rule("FORWARD", "accept"),
    )


def test_a_filter_describes_packets_and_source() -> None:
    (entry,) = with_rules(rule("FORWARD", "drop", src="172.18.0.3", l4_proto="udp", dport="53", packets=17))
    assert entry.sentence == "drop: udp 53 from web2 (172.18.0.3) to anywhere"
    assert (entry.name, entry.verdict, entry.packets) == ("drop 172.18.0.3 -> * udp 53", "drop", 17)
    assert entry.networks == ("net-app",)
    assert [uid.partition(":")[0] for uid in entry.containers] == ["docker"]


def test_filters_off_the_forward_path_have_no_entry() -> None:
    chains = (replace(FORWARD, name="INPUT", hook="input"),)
    assert not with_rules(rule("INPUT", "drop", src="172.18.0.3", table="filter"), chains=chains)


def test_a_filter_is_described_by_its_links() -> None:
    (entry,) = with_rules(rule("FORWARD", "accept", iif="br-app", oif="!br-app"))
    assert entry.sentence == "accept: everything from app (br-app) to anywhere except app (br-app)"
    (entry,) = with_rules(rule("FORWARD", "accept", oif="br-app", ct_state="related,established"))
    assert entry.sentence == "accept: packets of known connections from anywhere to app (br-app)"
    (entry,) = with_rules(rule("FORWARD", "reject", iif="veth-web2"))
    assert entry.sentence == "reject: everything from web2 (veth-web2) to anywhere"
    assert len(entry.containers) == 1


def test_a_filter_behind_several_jumps_inherits_their_matches() -> None:
    """The rules that isolate Docker networks."""
    jump = {"target": "STAGE-2", "table": "filter"}
    found = with_rules(
        rule("FORWARD", "jump", iif="br-app", oif="!br-app", **jump),
        rule("FORWARD", "jump", iif="docker0", oif="!docker0", **jump),
        rule("STAGE-2", "drop", oif="br-app"),
        rule("STAGE-2", "drop", oif="docker0"),
    )
    assert [entry.sentence for entry in found] == [
        "drop: everything from bridge (docker0) to app (br-app)",
        "drop: everything from app (br-app) to bridge (docker0)",
    ]


def test_further_conditions_are_described() -> None:
    (entry,) = with_rules(rule("FORWARD", "drop", iif="br-app", understood=False))
    assert entry.sentence.endswith(", under further conditions")


def test_entries_are_sorted_by_kind_and_rule_order() -> None:
    found = with_rules(
        rule("FORWARD", "drop", src="172.18.0.3"),
        rule("POSTROUTING", "masquerade", src="172.18.0.0/16"),
        *JUMPS,
        *docker_port("8081", "172.18.0.3", 1),
        *docker_port("8080", "172.18.0.2", 2),
    )
    assert [(entry.kind, entry.outside) for entry in found[:2]] == [
        ("published port", "*:8081"), ("published port", "*:8080"),
    ]  # fmt: skip
    assert [entry.kind for entry in found[2:]] == ["masquerade", "filter"]


def test_addresses_belong_to_the_namespace_whose_rules_are_read() -> None:
    """The same address behind another namespace's bridge belongs to another container."""
    builder = small_builder()
    other = builder.namespace(HOST + 5000)
    fields = {"l4_proto": "tcp", "dport": "8080", "to_address": "172.18.0.2", "to_port": "80"}
    firewall = Firewall(other, CHAINS, (rule("PREROUTING", "dnat", **fields),))
    (entry,) = entries_of(builder.snapshot(firewalls={other: firewall}))
    assert (entry.ns, entry.kind, entry.containers, entry.networks) == (other, "dnat", (), ())


def test_untrusted_names_are_unchanged() -> None:
    host = HostBuilder()
    inside = host.namespace(HOST + 1)
    host.wire(inside, host.bridge("br0", ("10.0.0.1/24",)), "v0", ("10.0.0.2/24",))
    host.container("netns", HOSTILE_NAME, inside, ports=(PublishedPort("tcp", "", 1, 1),))
    translating = rule("PREROUTING", "dnat", l4_proto="tcp", dport="1", to_address="10.0.0.2", to_port="1")
    (entry,) = entries_of(host.snapshot(firewalls={HOST: Firewall(HOST, CHAINS, (translating,))}))
    assert entry.name == f"{HOSTILE_NAME} tcp 1 -> 10.0.0.2:1"
    assert entry.kind == "published port"


def test_loops_of_chains_end() -> None:
    circle = (
        rule("A", "jump", target="B", table="filter", iif="x"),
        rule("B", "jump", target="A", table="filter", iif="y"),
    )
    placed = placed_rules(Firewall(HOST, CHAINS, circle))
    assert [one.hooks for one in placed] == [frozenset(), frozenset()]


@pytest.mark.parametrize(
    ("text", "prefix", "held"),
    [
        ("", "10.0.0.0/24", True),
        ("10.0.0.0/8", "10.0.0.0/24", True),
        ("!10.0.0.0/8", "10.0.0.0/24", False),
        ("10.0.0.7", "10.0.0.0/24", None),
        ("192.0.2.0/24", "10.0.0.0/24", False),
        ("!192.0.2.0/24", "10.0.0.0/24", True),
        ("fd00::/8", "10.0.0.0/24", False),
        ("192.0.2.0/24,10.0.0.0-10.0.0.255", "10.0.0.0/24", True),
        ("@blocked", "10.0.0.0/24", None),
    ],
)
def test_address_matches(text: str, prefix: str, held: bool | None) -> None:
    (wanted,) = prefixes(prefix) or ()
    assert covers(text, wanted) is held


@pytest.mark.parametrize(
    ("text", "name", "taken"),
    [
        ("", "eth0", True),
        ("eth0,eth1", "eth1", True),
        ("!eth0", "eth0", False),
        ("eth*", "eth7", True),
        ("!eth*", "br0", True),
        ("br", "br0", False),
    ],
)
def test_link_matches(text: str, name: str, taken: bool) -> None:
    assert matches_link(text, name) is taken


def test_a_rule_that_contradicts_every_path_has_no_hook() -> None:
    jump = rule("FORWARD", "jump", target="ONE", table="filter", iif="br-app", oif="!br-app")
    further = rule("ONE", "jump", target="TWO", table="filter")
    shut = rule("TWO", "drop", oif="br-app", src="172.18.0.2")
    assert with_rules(jump, further, shut) == ()
    other = rule("FORWARD", "jump", "other", target="ONE", table="filter", iif="br-vault", oif="!br-vault")
    assert [entry.name for entry in with_rules(jump, other, further, shut)] == ["drop 172.18.0.2 -> br-app"]


DISJOINT = {
    ("iif", "a", "b"): True,
    ("iif", "a", "a"): False,
    ("iif", "a,b", "b"): False,
    ("iif", "br-*", "br-app"): False,
    ("iif", "br-*", "eth*"): True,
    ("iif", "!a,b", "a"): True,
    ("iif", "!a", "a,b"): False,
    ("iif", "!br-*", "br-app"): True,
    ("oif", "!a", "!b"): False,
    ("src", "10.0.0.0/8", "10.1.2.3"): False,
    ("src", "10.0.0.0/8", "11.1.2.3"): True,
    ("src", "!10.0.0.0/8", "10.1.2.3"): True,
    ("dst", "!10.1.2.3", "10.0.0.0/8"): False,
    ("dst", "@set", "10.1.2.3"): False,
    ("dst", "!@set", "@set"): True,
    ("l4_proto", "tcp", "udp"): True,
    ("l4_proto", "tcp,udp", "udp"): False,
    ("dport", "80", "81"): False,
    ("ct_state", "new", "established"): False,
}


@pytest.mark.parametrize("case", DISJOINT)
def test_disjoint_matches(case: tuple[str, str, str]) -> None:
    field, one, other = case
    assert are_disjoint(field, one, other) == are_disjoint(field, other, one) == DISJOINT[case]


MARKS = {
    "meta mark & 0x00002000 == 0x00002000 masquerade": "masquerade packets marked 0x00002000/0x00002000",
    "meta mark and 0x2000 == 0x2000 masquerade": "masquerade packets marked 0x2000/0x2000",
    "meta mark 0x0000000a masquerade": "masquerade packets marked 0x0000000a",
    "-A POSTROUTING -m mark --mark 0x2000/0x2000 -j MASQUERADE": "masquerade packets marked 0x2000/0x2000",
    "ct mark 0x0000000a masquerade": "masquerade some packets",
    "fib daddr type local masquerade": "masquerade some packets",
}


@pytest.mark.parametrize("text", MARKS)
def test_a_masquerade_by_marks_does_not_match_everything(text: str) -> None:
    (entry,) = with_rules(rule("POSTROUTING", "masquerade", text=text, understood=False))
    assert entry.name == MARKS[text]
    assert entry.sentence.endswith("get the source address of the outgoing link, under further conditions")


def test_branches_of_a_verdict_map_have_verdicts_without_counters() -> None:
    choices = (VerdictCase("eth8", "drop"), VerdictCase("eth9", "accept"))
    fields = {"table": "filter", "chosen_by": "iif", "choices": choices, "packets": 7, "bytes": 70}
    found = with_rules(rule("FORWARD", "vmap", "map", **fields))
    assert {(one.inside, one.verdict, one.packets, one.bytes) for one in found} == {
        ("eth8", "drop", None, None),
        ("eth9", "accept", None, None),
    }
    assert {one.doing for one in found} == {("map",)}


@pytest.mark.parametrize(
    ("verdict", "names"), [("jump", ["a,b"]), ("goto", ["a,b"]), ("vmap", ["a", "b"]), ("accept", [])]
)
def test_only_a_verdict_map_has_several_targets(verdict: str, names: list[str]) -> None:
    """iptables allows a comma in a chain's name."""
    assert [name for *_, name in targets(rule("forward", verdict, target="a,b"))] == names
