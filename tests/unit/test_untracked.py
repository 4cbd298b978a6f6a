"""Docker's DNS without conntrack: plans and refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.collect import iptables
from core.diagnose import findings
from core.diff import changes
from core.model import Chain, Firewall, FirewallRule, Problem
from core.operations import NetnsTarget, SetDockerDns, SetRules
from core.operations.values import from_record, to_record
from core.plan import Plan, Refused, plan, untracked
from core.plan.requests import Tune
from core.plan.tuning import tuned
from core.topology import Topology
from tests.support.docker_dns import SAVED, TCP, UDP
from tests.support.host_builder import HOST, HostBuilder

WEB, LOG, BARE = 70, 71, 72
PORTS = untracked.ResolverPorts(str(TCP), str(UDP))


def vnet_rules(ports: untracked.ResolverPorts = PORTS) -> tuple[FirewallRule, ...]:
    """Return the rules of vnet's table."""
    lines = untracked.rules(ports).split("\n\t\t")[2:]
    texts = [line.split("\n")[0] for line in lines]
    return tuple(_vnet_rule(text) for text in texts)


def _vnet_rule(text: str) -> FirewallRule:
    _, side, address, protocol, end, port, *_ = text.split()
    matches = {"src" if side == "saddr" else "dst": address, end: port, "l4_proto": protocol}
    return FirewallRule("nft", "netdev", "vnet_untracked", "lo", text, text, **matches)


def dns(ns: int, more: str = "", backend: str = "iptables-nft", **changes: Any) -> Firewall:
    """Return Docker's DNS rules, and one more line of iptables-save in their table."""
    saved = iptables.parse(
        SAVED.replace("COMMIT", f"[0:0] {more}\nCOMMIT" if more else "COMMIT"), "ip", backend
    )
    return replace(Firewall(ns, saved.chains, saved.rules), **changes)


def topology(*firewalls: Firewall) -> Topology:
    """Return br0 with the containers web and log of an engine, and bare without rules."""
    made = HostBuilder()
    bridge = made.bridge("br0", ["10.9.0.1/24"])
    for place, (ns, name) in enumerate(((WEB, "web"), (LOG, "log"), (BARE, "bare")), 2):
        made.namespace(ns, pids=(ns,))
        made.container("docker", name, ns, pid=ns)
        made.wire(ns, bridge, f"v-{name}", [f"10.9.0.{place}/24"])
    snapshot = made.snapshot()
    others = {one.ns: one for one in firewalls} if firewalls else {WEB: dns(WEB), LOG: dns(LOG)}
    return Topology(replace(snapshot, firewalls={**snapshot.firewalls, BARE: Firewall(BARE), **others}))


def planned(now: Topology, on: bool = True, *only: str) -> Plan | Refused:
    bridge = next(one for one in now.snapshot.nets[HOST].links.values() if one.name == "br0")
    return plan(Tune(bridge.key, no_track_dns=on, only=only), now)


def done(now: Topology, on: bool = True, *only: str) -> Plan:
    made = planned(now, on, *only)
    assert isinstance(made, Plan), made
    return made


def refused(now: Topology, on: bool = True, *only: str) -> str:
    made = planned(now, on, *only)
    assert isinstance(made, Refused), made
    return "; ".join(made.reasons)


def test_every_container_with_dockers_dns_alone() -> None:
    made = done(topology())
    places = [NetnsTarget(pid=WEB, inode=WEB), NetnsTarget(pid=LOG, inode=LOG)]
    assert made.steps == tuple(
        step
        for place in places
        for step in (
            SetRules(untracked.rules(PORTS), untracked.OFF, place),
            SetDockerDns(untracked.saved(PORTS), False, place),
        )
    )
    assert made.title == "tune br0: Docker's DNS without conntrack in its containers"
    assert any(
        "bare has no rules for Docker's DNS" in one and "isn't changed" in one for one in made.warnings
    )
    assert any("replace Docker's DNS rules in web, log" in one for one in made.warnings)
    assert (
        made.steps[0].command().startswith(f"nsenter -t {WEB} -n nft -f - <<'RULES'\ntable netdev vnet_untr")
    )
    assert made.steps[1].command().startswith(f"nsenter -t {WEB} -n nft delete table ip nat\n")


def test_one_container_by_name() -> None:
    made = done(topology(), True, "log")
    assert tuned_in(made) == [LOG]
    assert made.title == "tune br0: Docker's DNS without conntrack in log"
    assert "there is no container" in refused(topology(), True, "lost")
    assert "bare has no rules for Docker's DNS" in refused(topology(), True, "log", "bare")


def tuned_in(made: Plan) -> list[int | None]:
    """Return the pids of the containers whose rules are replaced."""
    return [step.place.pid for step in made.steps if isinstance(step, SetRules)]


def replaced(ns: int) -> Firewall:
    """Return vnet's rules instead of Docker's."""
    return Firewall(ns, rules=vnet_rules())


def both(ns: int) -> Firewall:
    """Return vnet's rules, and new rules of Docker for a resolver at other ports."""
    docker = dns(ns)
    return replace(docker, rules=(*docker.rules, *vnet_rules(OLD)))


OLD = untracked.ResolverPorts("1001", "1002")


def test_repeating_changes_nothing_and_off_restores() -> None:
    now, place = topology(replaced(WEB), dns(LOG)), NetnsTarget(pid=WEB, inode=WEB)
    assert tuned_in(done(now)) == [LOG]
    restore, remove = done(now, False).steps
    assert restore == SetDockerDns(untracked.saved(PORTS), True, place)
    assert remove == SetRules(untracked.OFF, untracked.rules(PORTS), place)
    assert restore.inverse() == (SetDockerDns(untracked.saved(PORTS), False, place),)
    assert from_record(to_record(restore)) == restore
    assert "already have these settings" in refused(topology(replaced(WEB), replaced(LOG)))
    assert "already have these settings" in refused(topology(), False)


def test_docker_added_its_rules_again() -> None:
    now, place = topology(both(WEB), replaced(LOG)), NetnsTarget(pid=WEB, inode=WEB)
    assert done(now).steps == (
        SetRules(untracked.rules(PORTS), untracked.rules(OLD), place),
        SetDockerDns(untracked.saved(PORTS), False, place),
    )
    assert done(now, False, "web").steps == (SetRules(untracked.OFF, untracked.rules(OLD), place),)


def test_current_state() -> None:
    def held(*firewalls: Firewall) -> bool | None:
        now = topology(*firewalls)
        return tuned(
            now, next(one for one in now.snapshot.nets[HOST].links.values() if one.name == "br0")
        ).no_track_dns

    assert held(dns(WEB), dns(LOG)) is False
    assert held(replaced(WEB), replaced(LOG)) is True
    assert held(replaced(WEB), dns(LOG)) is None
    assert held(both(WEB), dns(LOG)) is False
    assert held(Firewall(WEB)) is None


@pytest.mark.parametrize(
    "line",
    [
        "-A OUTPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A PREROUTING -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080",
        "-A POSTROUTING -o tun0 -j MASQUERADE",
        "-A OUTPUT -d 127.0.0.11/32 -m connmark --mark 0x1 -j DOCKER_OUTPUT",
        "-A OUTPUT -d 127.0.0.11/32 -j MARK --set-xmark 0x1/0xffffffff",
        "-A DOCKER_OUTPUT -d 127.0.0.11/32 -p udp -m udp --dport 53 -j DNAT --to-destination 10.0.0.1:53",
        "-A DOCKER_POSTROUTING -s 127.0.0.11/32 -o eth0 -p udp -m udp --sport 9 -j SNAT --to-source :53",
    ],
)  # fmt: skip
def test_other_rules_are_a_reason_to_refuse(line: str) -> None:
    now = topology(dns(WEB, line), dns(LOG))
    reason = refused(now, True, "web")
    assert "web has other firewall rules" in reason and line in reason
    made = done(now)
    assert tuned_in(made) == [LOG]
    assert any(line in one for one in made.warnings)


def test_unknown_rules() -> None:
    drop = Chain("nft", "inet", "own", "in", "input", "filter", 0, "drop")
    assert "chain in of table own" in refused(topology(dns(WEB, chains=(drop,))), True, "web")
    policy = Chain("iptables-nft", "ip", "nat", "OUTPUT", "output", "nat", -100, "drop")
    assert "chain OUTPUT of table nat" in refused(topology(dns(WEB, chains=(policy,))), True, "web")
    legacy = dns(WEB, backend="iptables-legacy")
    assert "iptables-legacy, which pass packets to conntrack" in refused(topology(legacy), True, "web")
    problem = Problem("nat", "iptables-save", "it is not installed", "", WEB)
    assert "it is not installed" in refused(topology(dns(WEB, problems=(problem,))), True, "web")
    assert "weren't read" in refused(topology(dns(WEB)), True, "log")
    reason = refused(topology(Firewall(WEB), Firewall(LOG)))
    assert reason.count("no rules for Docker's DNS") == 3


@pytest.mark.parametrize("place", range(4))
def test_a_changed_table_is_not_replaced(place: int) -> None:
    changed = [
        replace(rule, text=f"{rule.text} counter") if n == place else rule
        for n, rule in enumerate(vnet_rules())
    ]
    assert f"{vnet_rules()[place].text} counter" in refused(
        topology(Firewall(WEB, rules=tuple(changed))), True, "web"
    )


def test_the_error_names_the_change() -> None:
    off, on = topology(), topology(replaced(WEB), dns(LOG))
    assert [one.sentence for one in changes(off.snapshot, on.snapshot, 0)] == [
        "conntrack no longer tracks connections of web"
    ]
    assert [one.sentence for one in changes(on.snapshot, off.snapshot, 0)] == [
        "conntrack tracks connections of web again"
    ]
    again = changes(on.snapshot, topology(both(WEB), dns(LOG)).snapshot, 0)
    assert any("DOCKER_OUTPUT" in one.sentence and "added" in one.sentence for one in again)
    assert not findings(on)
