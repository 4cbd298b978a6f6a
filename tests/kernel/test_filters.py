"""Forward filters in the host's rules, compared with nft and iptables-save."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.collect import nft
from core.collect.firewall import read_filters, read_firewall
from core.model import Chain, Firewall, FirewallRule, Namespace
from core.nat.forward_policy import ForwardPath, PolicyEvaluator, Published
from core.nat.packets import Kind
from core.plan import rules
from core.plan.tags import VnetNetwork, VnetPort, VnetState
from tests.support.host import ThrowawayHost

pytestmark = pytest.mark.root

VNET_RULES = rules.render(
    VnetState(
        networks={"shop": VnetNetwork("shop", "nat", "br-shop", ("10.9.0.0/24", "fd00:9::/64"),
                                     ("10.9.0.1", "fd00:9::1"))},
        ports=(VnetPort("netns:web", "tcp", "", "8080", "10.9.0.2", "80"),
               VnetPort("netns:web", "udp", "192.0.2.1", "5000-5002", "10.9.0.2", "6000-6002"),
               VnetPort("netns:web", "sctp", "", "7", "fd00:9::2", "9")),
    )
)  # fmt: skip
OTHER_RULES = """
table inet own {
    chain first { type filter hook forward priority 10; policy drop; iifname "br-a" accept; }
    chain second { iifname "br-b" ip daddr 192.0.2.1 counter accept; iifname != "br-c" accept; }
    chain third { iifname "br-d" drop; oifname "br-e" accept; iifname { "br-f", "br-g" } accept; }
    chain fourth { type nat hook postrouting priority srcnat; policy accept; iifname "br-h" masquerade; }
}
table bridge b { chain c { type filter hook forward priority 0; policy accept; }; }
table arp a { chain c { type filter hook input priority 0; policy accept; }; }
table inet lets {
    chain c { type filter hook forward priority -5; policy accept; iifname "br-i" accept; }
}
"""


def namespace_of(host: ThrowawayHost) -> Namespace:
    return Namespace(host.inode, entry=f"/run/netns/{host.name}")


def short_and_full(host: ThrowawayHost) -> tuple[Firewall, Firewall]:
    brief, whole = read_filters(namespace_of(host)), read_firewall(namespace_of(host))
    assert brief.problems == whole.problems == ()
    return brief, whole


def vnet_rules(firewall: Firewall) -> list[FirewallRule]:
    return [replace(rule, text="") for rule in firewall.rules if rule.table == "vnet"]


def chains(firewall: Firewall) -> set[tuple[str, ...]]:
    return {tuple(str(getattr(chain, name)) for name in Chain.__slots__) for chain in firewall.chains}


def accepting(firewall: Firewall) -> list[tuple[str, str, str]]:
    """Return by table the rules of other programs that a network's bridge passes."""
    found = [rule for rule in firewall.rules if rule.table != "vnet" and rule.verdict == "accept"]
    drop = {(chain.family, chain.table) for chain in firewall.chains
            if chain.policy == "drop" and chain.hook == "forward"}  # fmt: skip
    plain = [rule for rule in found if rule.iif and rule.iif[0] != "!" and "," not in rule.iif]
    return sorted((one.family, one.table, one.iif) for one in plain if (one.family, one.table) in drop)


@pytest.fixture(params=["library", "tool"])
def nft_access(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """With libnftables, and without it."""
    load = ctypes.CDLL

    def refuse(name: str | None, *more: Any, **named: Any) -> ctypes.CDLL:
        if name and "nftables" in name:
            raise OSError("no such library")
        return load(name, *more, **named)

    if request.param == "tool":
        monkeypatch.setattr(ctypes, "CDLL", refuse)
    nft.library.cache_clear()
    yield request.param
    nft.library.cache_clear()


def test_vnets_table_is_read_completely(host: ThrowawayHost, nft_access: str) -> None:
    host.run(["nft", VNET_RULES])
    brief, whole = short_and_full(host)
    assert vnet_rules(brief) == vnet_rules(whole)
    assert len(vnet_rules(brief)) == sum(
        1 for one in host.json("nft -j list table inet vnet")["nftables"] if "rule" in one
    )
    assert chains(brief) == chains(whole)
    assert (nft.library() is None) == (nft_access == "tool")


FORWARDING = """
table inet fw {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related counter accept comment "answers"
        ct state invalid drop
        oifname "up0" ip saddr 10.5.0.9 drop
        ct status dnat accept
        iifname "br-a" jump a
        iifname "br-c" tcp dport 80 accept
    }
    chain a { oifname "br-a" accept; oifname "up0" accept; }
}
"""


@pytest.mark.parametrize(
    ("bridge", "out", "same"), [("br-a", None, None), ("br-b", True, True), ("br-c", False, False)]
)
def test_packets_dropped_by_other_programs_chains(
    host: ThrowawayHost, bridge: str, out: bool | None, same: bool | None
) -> None:
    """Accepted packets are not reported; uncertain ones are reported as uncertain.

    The short dump gives the same result.
    """
    host.run(["nft", FORWARDING])
    for firewall in short_and_full(host):
        kinds: tuple[Kind, ...] = ("out", "answers", "published", "same")
        path = ForwardPath(bridge, "up0", ("10.5.1.0/24",))
        found = {one.kind: one.certain for one in PolicyEvaluator(firewall).dropping(path, kinds)}
        assert found == {kind: it for kind, it in (("out", out), ("same", same)) if it is not None}


@pytest.mark.parametrize("state", ["ESTABLISHED,RELATED", "NEW"])
def test_packets_accepted_by_iptables(host: ThrowawayHost, state: str) -> None:
    for command in ("-P FORWARD DROP", f"-A FORWARD -m conntrack --ctstate {state} -j ACCEPT"):
        host.run(f"iptables-nft {command}")
    for firewall in short_and_full(host):
        found = {
            one.kind: one.certain
            for one in PolicyEvaluator(firewall).dropping(ForwardPath("br-a"), ("out", "answers"))
        }
        assert found == ({"answers": True} if state == "NEW" else {"out": True})


SETS = ("docker-20.10.ip4", "docker-28.ip4", "docker-29.nft", "ufw.ip4", "ufw.ip6", "firewalld.nft")
FORWARD_PATHS = (
    ForwardPath("docker0", "up0", ("172.17.0.0/16", "fd17::/64")),
    ForwardPath("docker0", "up0", published=Published("172.17.0.3", "tcp", "80", "", "8081")),
    ForwardPath("docker0", "up0", published=Published("172.17.0.2", "tcp", "80", "", "8080")),
    ForwardPath("docker0", "up0", published=Published("fd17::2", "udp", "80-82", "", "8080-8082")),
    ForwardPath("br-shop", "up0", ("10.91.0.0/24",)),
    ForwardPath("br-shop", "up0", ("10.91.0.0/24",), to="docker0"),
)


@pytest.mark.parametrize("name", SETS)
def test_short_and_full_dumps_give_the_same_result(host: ThrowawayHost, name: str) -> None:
    file = Path(__file__).parents[1] / "support/rules" / name
    tool = {"nft": "nft -f", "ip4": "iptables-restore", "ip6": "ip6tables-restore"}[name.rpartition(".")[2]]
    host.run(f"{tool} {file}")
    kinds: tuple[Kind, ...] = ("out", "answers", "published", "replies", "same", "joined")
    brief, whole = (
        [
            (number, one.chain.table, one.kind, one.certain, one.families, one.accept_chain)
            for number, path in enumerate(FORWARD_PATHS)
            for one in PolicyEvaluator(firewall).dropping(path, kinds)
        ]
        for firewall in short_and_full(host)
    )
    assert brief == whole
    # Packets to docker0: a port that Docker publishes there is accepted.
    assert all(certain for number, _, _, certain, _, _ in whole if number != 5)
    assert bool(whole)
    if name.startswith("docker"):
        assert not [one for one in whole if one[0] == 1], "the port that Docker publishes passes"


VERDICTS = {
    "a limit": ("limit rate 1/second", None),
    "the other end's address alone": ("ip saddr 198.51.100.9", False),
    "all but one address": ("ip saddr != 198.51.100.9", None),
    "another port": ("tcp dport 81", False),
    "ports in a range": ("tcp dport { 70-90, 443 }", True),
    "another protocol": ("meta l4proto udp", False),
    "a forged source": ("fib saddr . iif oif missing", False),
    "what conntrack can't place": ("ct state invalid", False),
    "all but known ones": ("ct state != { established, related }", True),
    "another bridge": ('oifname { "br-b", "br-c" }', False),
    "a map's element": ('oifname vmap { "br-a" : jump refuse, "br-b" : accept }', True),
    "a map's other element": ('oifname vmap { "br-b" : jump refuse }', False),
    "a state's element": ("ct state vmap { invalid : drop, established : accept, related : accept }", False),
    "a mark": ("meta mark 7", None),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_the_effect_of_drop_rules_on_a_published_port(host: ThrowawayHost, name: str) -> None:
    """Return True if all packets are dropped, False if none, None if it depends."""
    match, expected = VERDICTS[name]
    rule = match if "vmap" in match else f"{match} drop"
    chain = f"type filter hook forward priority 0; policy accept; {rule};"
    host.run(["nft", f"table inet t {{ chain refuse {{ drop; }}; chain f {{ {chain} }}; }}"])
    path = ForwardPath("br-a", "up0", published=Published("10.5.1.2", "tcp", "80", "", "8080"))
    for firewall in short_and_full(host):
        found = [one.certain for one in PolicyEvaluator(firewall).dropping(path, ("published",))]
        assert found == {True: [True], False: [], None: [False]}[expected]


def test_chains_of_other_programs_and_what_they_accept(host: ThrowawayHost) -> None:
    host.run(["nft", VNET_RULES + OTHER_RULES])
    brief, whole = short_and_full(host)
    assert chains(brief) == chains(whole)
    assert accepting(brief) == accepting(whole) == [("inet", "own", "br-a"), ("inet", "own", "br-b")]
    assert vnet_rules(brief) == vnet_rules(whole), "in their midst too"


def test_rules_of_iptables(host: ThrowawayHost) -> None:
    for command in (
        "-P FORWARD DROP", "-N DOCKER-USER", "-A FORWARD -j DOCKER-USER", "-A DOCKER-USER -i br-a -j ACCEPT",
        "-A FORWARD -i br-b -o br-c -m comment --comment hello -j ACCEPT", "-A FORWARD ! -i br-d -j ACCEPT",
        "-A FORWARD -o br-e -j ACCEPT", "-A FORWARD -i br-f -j RETURN", "-t nat -A POSTROUTING -j MASQUERADE",
    ):  # fmt: skip
        host.run(f"iptables-nft {command}")
    brief, whole = short_and_full(host)
    assert chains(brief) < chains(whole), "iptables-save also prints those that it would make"
    assert {one for one in chains(whole) if "drop" in one} <= chains(brief)
    assert ("iptables-nft", "ip", "filter", "DOCKER-USER") in {one[:4] for one in chains(brief)}
    assert accepting(brief) == accepting(whole) == [("ip", "filter", "br-a"), ("ip", "filter", "br-b")]


def test_rules_of_iptables_legacy_are_read_as_usual(host: ThrowawayHost) -> None:
    host.run("iptables-legacy -P FORWARD DROP")
    host.run("iptables-legacy -A FORWARD -i br-a -j ACCEPT")
    brief, whole = short_and_full(host)
    assert brief == whole
    assert [chain.policy for chain in brief.chains if chain.hook == "forward"] == ["drop"]


def test_no_tool_is_run_for_rules_of_other_programs(
    host: ThrowawayHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host.run("iptables-nft -P FORWARD DROP")
    host.run(["nft", OTHER_RULES])
    monkeypatch.setenv("PATH", str(tmp_path))
    found = read_filters(namespace_of(host))
    assert found.problems == ()
    assert {chain.table for chain in found.chains if chain.policy == "drop"} == {"filter", "own"}


def test_a_host_without_rules(host: ThrowawayHost) -> None:
    assert read_filters(namespace_of(host)) == Firewall(host.inode)
    assert json.loads(host.run("nft -j list tables"))["nftables"][1:] == [], "looking makes none"
