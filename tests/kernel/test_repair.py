"""Repairs of findings: each kind of step is applied to a real fault, and undone."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from core.apply import journal, run
from core.collect.snapshot import read_snapshot
from core.model import Address, Link, NetState, NextHop, Part, PortVlan, Route
from core.model.fix import (
    FixAccept,
    FixAddress,
    FixBridge,
    FixConnection,
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
from core.operations import undo_of
from core.operations.executor import Executor
from core.operations.values import from_record, to_record
from core.plan import Plan, Refused, plan
from core.plan.requests import Repair
from core.reach.fixes import accept
from core.reach.packet import Hook, Packet
from core.topology import Topology
from tests.kernel.test_plan_commands import differences, stable_state
from tests.support.host import ThrowawayHost
from tests.support.kernel_parts import lacking
from tests.support.state import state
from tests.support.waiting import eventually, wait_until

pytestmark = pytest.mark.root

PARTS = (Part.NAMESPACES, Part.LINKS, Part.FIREWALL, Part.CONTAINERS)
MAC = "02:00:00:00:00:77"
NFT = """\
table inet guard {
    set blocked { type ipv4_addr; elements = { 192.0.2.66 }; }
    chain forward {
        type filter hook forward priority 0; policy accept;
        ip saddr @blocked counter drop comment "the first; {one}"
        tcp dport { 80, 443 } counter accept
        ip daddr 10.8.0.2 iifname "br0" counter drop
        ip daddr 10.8.0.2 iifname "br0" counter drop
        udp dport vmap { 53 : accept, 67-68 : drop }
        log prefix "last: " accept
    }
}
table ip natted {
    chain post { type nat hook postrouting priority 100; ip saddr 10.77.0.0/24 masquerade; }
}
"""


@dataclass
class Faulty:
    """A host with the bridge br0 (10.8.0.1/24) and the container web (10.8.0.2)."""

    host: ThrowawayHost

    def topology(self) -> Topology:
        return Topology(read_snapshot(PARTS))

    def net(self, short: str = "host") -> NetState:
        return self.topology().snapshot.nets[self.host.inode_of(short)]

    def link(self, name: str, short: str = "host") -> Link:
        return next(one for one in self.net(short).links.values() if one.name == name)

    def rule(self, text: str) -> FixFirewall:
        """Return the fix that deletes the first rule which contains a text."""
        firewall = self.topology().snapshot.firewalls[self.host.inode]
        found = next(one for one in firewall.rules if text in one.text)
        return FixFirewall(self.host.inode, found.rule_id)

    def plan(self, *steps: Step) -> Plan | Refused:
        return plan(Repair("repair it", steps), self.topology())

    def state(self) -> dict[str, Any]:
        names = [self.host.name, self.host.full("web")]
        found: dict[str, Any] = stable_state(state(names))
        for short in ("host", "web"):
            found[f"{short} routing"] = [self.host.json(f"ip -j {v} rule") for v in ("-4", "-6")]
            fdb = self.host.json("bridge -j fdb show", short)
            known = [one for one in fdb if one.get("state") in ("static", "permanent")]
            found[f"{short} fdb"] = sorted(json.dumps(one, sort_keys=True) for one in known)
            found[f"{short} nft"] = self.host.run("nft -s list ruleset", short)
            found[f"{short} settings"] = settings(self.host, short)
        for tool in ("iptables-legacy-save", "ip6tables-legacy-save"):
            found[tool] = [one for one in self.host.run(tool).splitlines() if one[:1] not in "#:"]
        found["states"] = _states(self.host)
        return found


def settings(host: ThrowawayHost, short: str) -> list[str]:
    words = "grep -rs . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf"
    return sorted(
        one for one in host.run(words, short, check=False).splitlines() if "stable_secret" not in one
    )


@pytest.fixture
def faulty(inside_host: ThrowawayHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    monkeypatch.setenv("VNET_STATE", str(tmp_path / "state"))
    host = inside_host
    vlans = " vlan_filtering 1" if not lacking("bridge_vlans") else ""
    host.run(f"ip link add br0 type bridge{vlans}")
    host.run("ip addr add 10.8.0.1/24 dev br0")
    host.run("ip link set br0 up")
    host.container("web", "br0", "10.8.0.2/24", "10.8.0.1")
    host.run("ip link set eth0 mtu 1500 address 02:00:00:00:00:02", "web")
    wait_until(lambda: "forwarding" in host.run("bridge link show dev v-web"), "the port forwards")
    yield Faulty(host)


Find = Callable[[Faulty], tuple[Step, ...]]


@dataclass(frozen=True)
class Case:
    """Commands that make a fault (in "host" or "web"), its fix, and what then holds."""

    faults: tuple[tuple[str, str], ...]
    fix: Find
    works: Callable[[ThrowawayHost], bool]


def _pings(host: ThrowawayHost, target: str = "10.8.0.1", short: str = "web") -> bool:
    return " 0% packet loss" in host.run(f"ping -c1 -W1 {target}", short, check=False)


def _pings_within_limit(host: ThrowawayHost) -> bool:
    """Return whether a rule before the one that accepts still drops large packets."""
    large = host.run("ping -c1 -W1 -s 1200 10.8.0.1", "web", check=False)
    return _pings(host) and " 100% packet loss" in large


def _gets_answers_only(host: ThrowawayHost) -> bool:
    return _pings(host, "10.8.0.2", "host") and not _pings(host)


def _nft(faulty: Faulty) -> None:
    done = subprocess.run(["nft", "-f", "-"], input=NFT, text=True, capture_output=True, check=False)
    assert not done.returncode, done.stderr


def _port(host: ThrowawayHost, key: str, short: str = "v-web") -> Any:
    return host.json(f"bridge -j -d link show dev {short}")[0].get(key)


def _gateways(host: ThrowawayHost) -> list[str]:
    return [one["gateway"] for one in host.json("ip -j route show default", "web")]


def _states(host: ThrowawayHost) -> list[str]:
    """Return the states of ports with carrier; without it they change by themselves."""
    ports = host.json("bridge -j link")
    return [one["state"] for one in ports if "LOWER_UP" in one["flags"]]


def _vlans(host: ThrowawayHost) -> list[int]:
    return [one["vlan"] for one in host.json("bridge -j vlan show dev v-web")[0]["vlans"]]


def _web_link(host: ThrowawayHost) -> Any:
    return host.json("ip -j link show eth0", "web")[0]


ROUTE = Route(4, "default", "unicast", (NextHop("10.8.0.1", 0),), protocol="boot")


def _default(faulty: Faulty) -> FixRoute:
    hops = (NextHop("10.8.0.1", faulty.link("eth0", "web").ifindex),)
    return FixRoute(faulty.host.inode_of("web"), replace(ROUTE, nexthops=hops), True)


def _route(faulty: Faulty, kind: str) -> FixRoute:
    found = next(one for one in faulty.net("web").routes if one.kind == kind)
    return FixRoute(faulty.host.inode_of("web"), found, False)


def _policy(faulty: Faulty, priority: int, family: int = 4) -> FixPolicyRule:
    rules = faulty.net("web").rules
    found = next(one for one in rules if (one.priority, one.family) == (priority, family))
    return FixPolicyRule(faulty.host.inode_of("web"), found)


def _entry(faulty: Faulty, mac: str, state: str) -> FixFdb:
    found = next(one for one in faulty.net().fdb if (one.mac, one.state) == (mac, state))
    return FixFdb(faulty.host.inode, found)


def _address(faulty: Faulty, text: str, short: str, link: str) -> FixAddress:
    there = faulty.link(link, short)
    return FixAddress(there.key, next(one for one in there.addresses if str(one) == text), False)


def _accept(faulty: Faulty, packet: Packet) -> FixAccept:
    """Return the repair for the policy of an input chain that drops a packet."""
    chains = faulty.topology().snapshot.firewalls[faulty.host.inode].chains
    chain = next(one for one in chains if (one.hook, one.policy) == ("input", "drop"))
    (step,) = accept(faulty.host.inode, chain, packet, Hook("input", ("br0",)), True).steps
    assert isinstance(step, FixAccept)
    return step


_PING = Packet("10.8.0.2", "10.8.0.1", "icmp")

CASES: dict[str, Case] = {
    "link-up": Case(
        (("web", "ip link set eth0 down"),),
        lambda one: (FixLink(one.link("eth0", "web").key, "up", "up"), _default(one)),
        lambda host: _pings(host) and bool(host.json("ip -j route show default", "web")),
    ),
    "link-mtu": Case(
        (("web", "ip link set eth0 mtu 900"),),
        lambda one: (FixLink(one.link("eth0", "web").key, "mtu", "1500"),),
        lambda host: _web_link(host)["mtu"] == 1500,
    ),
    "link-master": Case(
        (("host", "ip link set v-web nomaster"),),
        lambda one: (FixLink(one.link("v-web").key, "master", "br0"),),
        lambda host: host.json("ip -j link show v-web")[0].get("master") == "br0",
    ),
    "link-address": Case(
        (("web", f"ip link set eth0 address {MAC}"),),
        lambda one: (FixLink(one.link("eth0", "web").key, "address", "02:00:00:00:00:02"),),
        lambda host: _web_link(host)["address"] == "02:00:00:00:00:02",
    ),
    "port-isolated": Case(
        (("host", "bridge link set dev v-web isolated on"),),
        lambda one: (FixPort(one.link("v-web").key, "isolated", False),),
        lambda host: _port(host, "isolated") is False,
    ),
    "port-locked": Case(
        (("host", "bridge link set dev v-web learning off locked on"),),
        lambda one: (FixPort(one.link("v-web").key, "locked", False),),
        lambda host: _port(host, "locked") is False,
    ),
    "port-state": Case(
        (("host", "bridge link set dev v-web state 0"),),
        lambda one: (FixPort(one.link("v-web").key, "state", True),),
        lambda host: _port(host, "state") == "forwarding" and _pings(host),
    ),
    "port-stp": Case(
        (
            ("host", "ip link set br0 type bridge stp_state 1 forward_delay 3000"),
            ("host", "ip link set v-web down"),
            ("host", "ip link set v-web up"),
        ),
        lambda one: (FixBridge(one.link("br0").key), FixPort(one.link("v-web").key, "state", True)),
        _pings,
    ),
    "policy-drop-nft": Case(
        (
            ("host", "nft add table inet gate"),
            ("host", "nft add chain inet gate input { type filter hook input priority 0; policy drop; }"),
            ("host", "nft add rule inet gate input udp dport 53 accept"),
            ("host", "nft add rule inet gate input ip length > 1000 drop"),
        ),
        lambda one: (_accept(one, _PING),),
        _pings_within_limit,
    ),
    "policy-drop-answers": Case(
        (
            ("host", "nft add table inet gate"),
            ("host", "nft add chain inet gate input { type filter hook input priority 0; policy drop; }"),
        ),
        lambda one: (_accept(one, replace(_PING, is_reply=True)),),
        _gets_answers_only,
    ),
    "policy-drop-iptables-nft": Case(
        (
            ("host", "iptables-nft -P INPUT DROP"),
            ("host", "iptables-nft -A INPUT -p udp -j ACCEPT"),
            ("host", "iptables-nft -A INPUT -m length --length 1000:65535 -j DROP"),
        ),
        lambda one: (_accept(one, _PING),),
        _pings_within_limit,
    ),
    "policy-drop-iptables-legacy": Case(
        (("host", "iptables-legacy -P INPUT DROP"),),
        lambda one: (
            _accept(one, replace(_PING, is_reply=True)),
            _accept(one, Packet("10.8.0.2", "10.8.0.1", "tcp", 0, 80)),
        ),
        _gets_answers_only,
    ),
    "vlan-missing": Case(
        (("host", "bridge vlan del dev v-web vid 1"),),
        lambda one: (FixVlan(one.link("v-web").key, PortVlan(1, 1, True, True), True),),
        lambda host: 1 in _vlans(host) and _pings(host),
    ),
    "vlan-other-pvid": Case(
        (("host", "bridge vlan add dev v-web vid 20 pvid untagged"),),
        lambda one: (FixVlan(one.link("v-web").key, PortVlan(1, 1, True, True), True),),
        _pings,
    ),
    "vlan-extra": Case(
        (("host", "bridge vlan add dev v-web vid 30-39"),),
        lambda one: (FixVlan(one.link("v-web").key, PortVlan(35, 35), False),),
        lambda host: 35 not in _vlans(host),
    ),
    "forwarding": Case(
        (("host", "sysctl -qw net.ipv4.ip_forward=0 net.ipv4.conf.v-web.forwarding=1"),),
        lambda one: (FixSysctl(one.host.inode, "net.ipv4.ip_forward", "1", "0"),),
        lambda host: host.run("sysctl -n net.ipv4.ip_forward").strip() == "1",
    ),
    "rp-filter": Case(
        (("web", "sysctl -qw net.ipv4.conf.eth0.rp_filter=1"),),
        lambda one: (FixSysctl(one.host.inode_of("web"), "net.ipv4.conf.eth0.rp_filter", "2", "1"),),
        lambda host: host.run("cat /proc/sys/net/ipv4/conf/eth0/rp_filter", "web").strip() == "2",
    ),
    "address-lost": Case(
        (("host", "ip addr del 10.8.0.1/24 dev br0"),),
        lambda one: (FixAddress(one.link("br0").key, Address(4, "10.8.0.1", 24), True),),
        _pings,
    ),
    "address-twice": Case(
        (
            ("web", "ip addr add 10.9.0.9/24 brd + dev eth0 label eth0:1"),
            ("web", "ip addr add 10.9.0.10/24 dev eth0"),
            ("web", "ip route add 10.99.0.0/24 via 10.8.0.1 src 10.9.0.9"),
        ),
        lambda one: (_address(one, "10.9.0.9/24", "web", "eth0"),),
        lambda host: (
            "10.9.0.9/" not in host.run("ip addr", "web") and "10.9.0.10/" in host.run("ip addr", "web")
        ),
    ),
    "route-missing": Case(
        (("web", "ip route del default"),),
        lambda one: (_default(one),),
        lambda host: _gateways(host) == ["10.8.0.1"],
    ),
    "route-wrong": Case(
        (("web", "ip route replace default via 10.8.0.250 metric 0"),),
        lambda one: (
            FixRoute(
                one.host.inode_of("web"),
                next(route for route in one.net("web").routes if route.dst == "default"),
                False,
            ),
            _default(one),
        ),
        lambda host: _gateways(host) == ["10.8.0.1"],
    ),
    "route-blackhole": Case(
        (("web", "ip route add blackhole 192.0.2.0/24 metric 7"),),
        lambda one: (_route(one, "blackhole"),),
        lambda host: "blackhole" not in host.run("ip route", "web"),
    ),
    "route-unreachable6": Case(
        (("web", "ip -6 route add unreachable 2001:db8:9::/48 table 77"),),
        lambda one: (_route(one, "unreachable"),),
        lambda host: "unreachable" not in host.run("ip -6 route show table 77", "web", check=False),
    ),
    "policy-blackhole": Case(
        (("web", "ip rule add to 10.8.0.0/24 priority 50 blackhole"),),
        lambda one: (_policy(one, 50),),
        _pings,
    ),
    "policy-selectors": Case(
        (
            (
                "web",
                "ip rule add not from 10.8.0.2/32 to 192.0.2.0/24 fwmark 0x10/0xff iif eth0 oif lo"
                " ipproto tcp dport 80-90 tos 0x10 priority 51 lookup 300 suppress_prefixlength 0"
                " protocol static",
            ),
        ),
        lambda one: (_policy(one, 51),),
        lambda host: "51:" not in host.run("ip rule", "web"),
    ),
    "policy-ipv6": Case(
        (("web", "ip -6 rule add from 2001:db8::/32 priority 52 prohibit"),),
        lambda one: (_policy(one, 52, 6),),
        lambda host: "52:" not in host.run("ip -6 rule", "web"),
    ),
    "neighbour": Case(
        (("web", f"ip neigh replace 10.8.0.1 lladdr {MAC} dev eth0 nud permanent"),),
        lambda one: (
            FixNeighbour(
                one.host.inode_of("web"),
                next(each for each in one.net("web").neighbours if each.mac == MAC),
            ),
        ),
        _pings,
    ),
    "fdb-static": Case(
        (
            ("host", "ip link add spare type veth peer name spare1"),
            ("host", "ip link set spare master br0 up"),
            ("host", "bridge fdb replace 02:00:00:00:00:02 dev spare master static sticky"),
        ),
        lambda one: (_entry(one, "02:00:00:00:00:02", "static"),),
        _pings,
    ),
    "fdb-permanent": Case(
        (("host", f"bridge fdb add {MAC} dev br0 self permanent"),),
        lambda one: (_entry(one, MAC, "permanent"),),
        lambda host: MAC not in host.run("bridge fdb show"),
    ),
    "masquerade-legacy": Case(
        (("host", "iptables-legacy -t nat -A POSTROUTING -s 10.5.0.0/24 -j MASQUERADE"),),
        lambda one: (FixMasquerade(one.host.inode, "10.8.0.0/24", "br0"),),
        lambda host: "-s 10.8.0.0/24 ! -o br0 -j MASQUERADE" in host.run("iptables-legacy-save -t nat"),
    ),
    "masquerade-iptables-nft": Case(
        (("host", "iptables-nft -t nat -A POSTROUTING -s 10.5.0.0/24 -j MASQUERADE"),),
        lambda one: (FixMasquerade(one.host.inode, "10.8.0.0/24", "br0"),),
        lambda host: "-s 10.8.0.0/24 ! -o br0 -j MASQUERADE" in host.run("iptables-nft-save -t nat"),
    ),
}
for _tool, _position in (("iptables-nft", 1), ("iptables-legacy", 2), ("ip6tables-nft", 3)):
    _v6 = _tool.startswith("ip6")
    _who = "2001:db8::7" if _v6 else "10.8.0.2"
    _rules = ["-j ACCEPT -i lo", "-j ACCEPT -i br0"]
    _rules.insert(
        _position - 1, f"-d {_who} -m comment --comment 'drop \"it\"; $(all)' -m limit --limit 3/min -j DROP"
    )
    CASES[f"rule-{_tool}"] = Case(
        tuple(("host", f"{_tool} -A FORWARD {one}") for one in _rules),
        lambda one: (one.rule("--comment"),),
        lambda host, tool=_tool: "DROP" not in host.run(f"{tool}-save"),  # type: ignore[misc]
    )


def _applied(faulty: Faulty, made: Plan | Refused) -> str:
    assert isinstance(made, Plan), made
    assert all(from_record(to_record(step)) == step for step in (*made.steps, *undo_of(made.steps)))
    outcome = run.apply(made.title, made.steps)
    assert outcome.done, outcome
    return outcome.entry_id


def _undone(entry_id: str) -> None:
    entry = journal.find(entry_id)
    assert entry
    outcome = run.undo(entry)
    assert outcome.end == "undone", outcome


def _typed(made: Plan | Refused) -> None:
    assert isinstance(made, Plan), made
    for step in made.steps:
        done = subprocess.run(["bash", "-euc", step.command()], capture_output=True, text=True, check=False)
        assert not done.returncode, f"{step.command()}: {done.stderr}"


def _cases() -> Iterator[Any]:
    """Yield the names of the cases, with what they need."""
    for name in CASES:
        needs = [pytest.mark.kernel_has("bridge_vlans")] if name.startswith("vlan-") else []
        yield pytest.param(name, marks=needs)


@pytest.mark.parametrize("name", _cases())
def test_a_fault_is_repaired_and_the_undo_restores_it(name: str, faulty: Faulty) -> None:
    case, host = CASES[name], faulty.host
    for inside, command in case.faults:
        host.run(command, inside)
    broken = faulty.state()
    assert not case.works(host)
    made = faulty.plan(*case.fix(faulty))
    entry = _applied(faulty, made)
    repaired = faulty.state()
    wait_until(lambda: case.works(host), "the repair to work")
    _undone(entry)
    eventually(lambda: not differences(broken, faulty.state()))  # states of ports with STP take a moment
    assert differences(broken, faulty.state()) == []
    _typed(made if "policy" not in name else faulty.plan(*case.fix(faulty)))
    wait_until(lambda: case.works(host), "the typed commands to work")
    assert differences(repaired, faulty.state()) == []


@pytest.mark.parametrize(
    "texts",
    [
        ["the first"],
        ["tcp dport"],
        ["ip daddr"],
        ["vmap"],
        ["last"],
        ["the first", "tcp dport"],
        ["tcp dport", "the first", "ip daddr", "last"],
    ],
    ids=lambda texts: "-".join(texts).replace(" ", "_"),
)
def test_rules_of_nft_are_restored_at_their_place(texts: list[str], faulty: Faulty) -> None:
    _nft(faulty)
    before = faulty.host.run("nft -s list ruleset")
    made = faulty.plan(*(faulty.rule(text) for text in texts))
    entry = _applied(faulty, made)
    after = faulty.host.run("nft -s list ruleset")
    assert before.count("\n") - after.count("\n") == len(texts)
    assert not any(text in after for text in texts if text != "ip daddr")
    _undone(entry)
    assert faulty.host.run("nft -s list ruleset") == before
    assert isinstance(made, Plan)
    for step in reversed(undo_of(made.steps)):
        _typed(faulty.plan(*(faulty.rule(step.text),)))  # type: ignore[attr-defined]
    assert faulty.host.run("nft -s list ruleset") == after


def test_masquerade_goes_to_a_chain_of_nft(faulty: Faulty) -> None:
    _nft(faulty)
    before = faulty.host.run("nft -s list ruleset")
    entry = _applied(faulty, faulty.plan(FixMasquerade(faulty.host.inode, "10.8.0.0/24", "br0")))
    rules = faulty.host.run("nft list chain ip natted post")
    assert 'ip saddr 10.8.0.0/24 oifname != "br0" masquerade' in rules
    assert isinstance(faulty.plan(FixMasquerade(faulty.host.inode, "10.8.0.0/24", "br0")), Refused)
    _undone(entry)
    assert faulty.host.run("nft -s list ruleset") == before


def _steps(made: Plan | Refused) -> tuple[Any, ...]:
    assert isinstance(made, Plan), made
    return made.steps


def test_a_rule_in_the_namespace_of_a_container(faulty: Faulty) -> None:
    host = faulty.host
    host.run("iptables-nft -P INPUT ACCEPT", "web")
    host.run("nft add table ip own", "web")
    host.run(["nft", "add chain ip own in { type filter hook input priority 0; }"], "web")
    host.run(["nft", "add rule ip own in ip saddr 10.8.0.1 drop"], "web")
    before = host.run("nft -s list ruleset", "web")
    firewall = faulty.topology().snapshot.firewalls[host.inode_of("web")]
    found = next(one for one in firewall.rules if "10.8.0.1" in one.text)
    assert not _pings(host)
    entry = _applied(faulty, faulty.plan(FixFirewall(host.inode_of("web"), found.rule_id)))
    assert _pings(host)
    _undone(entry)
    assert host.run("nft -s list ruleset", "web") == before


def test_a_rule_that_changed_meanwhile_is_left_alone(faulty: Faulty) -> None:
    _nft(faulty)
    step = faulty.rule("last")
    made = faulty.plan(step)
    handle = step.rule_id.rpartition("/")[2]
    faulty.host.run(["nft", f"replace rule inet guard forward handle {handle} counter accept"])
    before = faulty.host.run("nft -s list ruleset")
    outcome = run.apply("repair", _steps(made))
    assert outcome.end == "undone" and "no longer exists" in outcome.errors[0]
    assert faulty.host.run("nft -s list ruleset") == before


def test_an_undo_reports_that_the_chain_is_gone(faulty: Faulty) -> None:
    _nft(faulty)
    entry_id = _applied(faulty, faulty.plan(faulty.rule("last")))
    faulty.host.run("nft delete table inet guard")
    entry = journal.find(entry_id)
    assert entry
    outcome = run.undo(entry)
    assert outcome.end == "failed" and "forward" in outcome.errors[0]


def test_an_undo_finds_the_place_by_the_rule_that_follows(faulty: Faulty) -> None:
    _nft(faulty)
    entry = _applied(faulty, faulty.plan(faulty.rule("tcp dport")))
    handle = faulty.rule("the first").rule_id.rpartition("/")[2]
    faulty.host.run(["nft", f"delete rule inet guard forward handle {handle}"])
    _undone(entry)
    lines = faulty.host.run("nft -s list chain inet guard forward").splitlines()
    place = next(number for number, line in enumerate(lines) if "tcp dport" in line)
    assert "ip daddr" in lines[place + 1]


@pytest.mark.parametrize("tool", ["nft", "iptables-nft", "iptables-legacy"])
def test_an_interrupted_deletion_is_not_undone_twice(tool: str, faulty: Faulty) -> None:
    if tool == "nft":
        _nft(faulty)
        text = "ip daddr"
    else:
        for _ in range(2):
            faulty.host.run(f"{tool} -A FORWARD -s 192.0.2.7 -j DROP")
        text = "192.0.2.7"
    (step,) = _steps(faulty.plan(faulty.rule(text)))
    (undo,) = step.inverse()
    with Executor() as executor:
        assert not step.may_be_done(executor)  # it was killed before it began
        with pytest.raises(FileExistsError):
            undo.remaining(executor, True)
        step.execute(executor)
        assert step.may_be_done(executor)
        assert undo.remaining(executor, True) == undo
        undo.execute(executor)
        with pytest.raises(FileExistsError):
            undo.remaining(executor, True)


def test_a_connection_is_deleted_by_its_original_direction(faulty: Faulty) -> None:
    host, ends = faulty.host, "-p udp -s 203.0.113.9 -d 10.8.0.1 --sport 40000 --dport 53"
    for port in ("40000", "40001"):
        made = ends.replace("40000", port)
        host.run(f"conntrack -I {made} -t 600 -r 10.8.0.33 -q 203.0.113.9 --reply-port-src 53 "
                 f"--reply-port-dst {port}")  # fmt: skip
    table = read_snapshot((Part.CONNTRACK,)).conntracks[host.inode]
    number = next(int(one["id"]) for one in table.entries if one["orig_sport"] == 40000)
    fix = FixConnection(host.inode, "203.0.113.9", "10.8.0.1", 17, 40000, 53, number)
    _applied(faulty, faulty.plan(fix))
    left = host.run("conntrack -L -p udp")
    assert "sport=40000" not in left and "sport=40001" in left
