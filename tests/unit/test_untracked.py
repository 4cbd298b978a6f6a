"""Leaving conntrack to Docker's DNS alone: for whom it is planned, and who is refused with which reason."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.collect import iptables
from core.diff import changes
from core.model import Chain, Firewall, FirewallRule, Problem
from core.ops import Place, SetRules
from core.plan import Plan, Refused, plan, untracked
from core.plan.requests import Tune
from core.plan.tuning import tuned
from core.topology import Topology
from tests.support.docker_dns import SAVED
from tests.support.host_builder import HOST, HostBuilder

WEB, LOG, BARE = 70, 71, 72
OURS = tuple(
    FirewallRule(
        "nft", "ip", "vnet_untracked", chain, chain, "ip saddr != 127.0.0.11 ip daddr != 127.0.0.11 notrack",
        "notrack", src="!127.0.0.11", dst="!127.0.0.11",
    )
    for chain in ("prerouting", "output")
)  # fmt: skip


def dns(ns: int, more: str = "", backend: str = "iptables-nft", **changes: Any) -> Firewall:
    """The rules for Docker's DNS, with one more line of iptables-save in its table."""
    saved = iptables.parse(
        SAVED.replace("COMMIT", f"[0:0] {more}\nCOMMIT" if more else "COMMIT"), "ip", backend
    )
    return replace(Firewall(ns, saved.chains, saved.rules), **changes)


def topology(*firewalls: Firewall) -> Topology:
    """br0 with the containers web and log, both of an engine, and bare, without rules."""
    made = HostBuilder()
    bridge = made.bridge("br0", ["10.9.0.1/24"])
    for place, (ns, name) in enumerate(((WEB, "web"), (LOG, "log"), (BARE, "bare")), 2):
        made.namespace(ns, pids=(ns,))
        made.container("docker", name, ns, pid=ns)
        made.wire(ns, bridge, f"v-{name}", [f"10.9.0.{place}/24"])
    told = made.snapshot()
    others = {one.ns: one for one in firewalls} if firewalls else {WEB: dns(WEB), LOG: dns(LOG)}
    return Topology(replace(told, firewalls={**told.firewalls, BARE: Firewall(BARE), **others}))


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


@pytest.mark.parametrize("backend", ["iptables-nft", "iptables-legacy"])
def test_every_container_with_dockers_dns_alone(backend: str) -> None:
    made = done(topology(dns(WEB, backend=backend), dns(LOG)))
    places = [Place(pid=WEB, inode=WEB), Place(pid=LOG, inode=LOG)]
    assert made.steps == tuple(SetRules(untracked.ON, untracked.OFF, place) for place in places)
    assert made.title == "tune br0: Docker's DNS alone tracked in its containers"
    assert any(
        "bare has no rules for Docker's DNS" in one and "stays as it is" in one for one in made.warnings
    )
    assert any("inside web, log" in one for one in made.warnings)
    assert made.steps[0].command().startswith(f"nsenter -t {WEB} -n nft -f - <<'RULES'\ntable ip vnet_untr")


def test_one_container_by_name() -> None:
    made = done(topology(), True, "log")
    assert [step.place.pid for step in made.steps if isinstance(step, SetRules)] == [LOG]
    assert made.title == "tune br0: Docker's DNS alone tracked in log"
    assert "there is no container" in refused(topology(), True, "lost")
    assert "bare has no rules for Docker's DNS" in refused(topology(), True, "log", "bare")


def with_ours(firewall: Firewall) -> Firewall:
    return replace(firewall, rules=(*firewall.rules, *OURS))


def test_what_is_so_already_is_left_alone_and_off_takes_it_back() -> None:
    now = topology(with_ours(dns(WEB)), dns(LOG))
    assert [step.place.pid for step in done(now).steps if isinstance(step, SetRules)] == [LOG]
    (step,) = done(now, False).steps
    assert step == SetRules(untracked.OFF, untracked.ON, Place(pid=WEB, inode=WEB))
    assert step.inverse() == (SetRules(untracked.ON, untracked.OFF, Place(pid=WEB, inode=WEB)),)
    assert "so already" in refused(topology(with_ours(dns(WEB)), with_ours(dns(LOG))))
    assert "so already" in refused(topology(), False)


def test_how_it_is_now() -> None:
    def held(*firewalls: Firewall) -> bool | None:
        now = topology(*firewalls)
        return tuned(
            now, next(one for one in now.snapshot.nets[HOST].links.values() if one.name == "br0")
        ).no_track_dns

    assert held(dns(WEB), dns(LOG)) is False
    assert held(with_ours(dns(WEB)), with_ours(dns(LOG))) is True
    assert held(with_ours(dns(WEB)), dns(LOG)) is None
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
def test_any_other_rule_is_a_reason(line: str) -> None:
    now = topology(dns(WEB, line), dns(LOG))
    told = refused(now, True, "web")
    assert "web has firewall rules of its own" in told and line in told
    made = done(now)
    assert [step.place.pid for step in made.steps if isinstance(step, SetRules)] == [LOG]
    assert any(line in one for one in made.warnings)


def test_rules_that_are_not_known() -> None:
    drop = Chain("nft", "inet", "own", "in", "input", "filter", 0, "drop")
    assert "chain in drops" in refused(topology(dns(WEB, chains=(drop,))), True, "web")
    problem = Problem("nat", "iptables-save", "it is not installed", "", WEB)
    assert "it is not installed" in refused(topology(dns(WEB, problems=(problem,))), True, "web")
    assert "were not read" in refused(topology(dns(WEB)), True, "log")
    told = refused(topology(Firewall(WEB), Firewall(LOG)))
    assert told.count("no rules for Docker's DNS") == 3


def test_a_changed_table_of_that_name_is_nobody_elses_to_replace() -> None:
    other = replace(OURS[0], src="", text="ip daddr != 127.0.0.11 notrack")
    firewall = replace(dns(WEB), rules=(*dns(WEB).rules, other))
    assert "ip daddr != 127.0.0.11 notrack" in refused(topology(firewall), True, "web")


def test_what_changed_is_said_in_a_sentence() -> None:
    off, on = topology(), topology(with_ours(dns(WEB)), dns(LOG))
    assert [one.sentence for one in changes(off.snapshot, on.snapshot, 0)] == [
        "conntrack but for Docker's DNS no longer tracks connections of web"
    ]
    assert [one.sentence for one in changes(on.snapshot, off.snapshot, 0)] == [
        "conntrack again tracks all connections of web"
    ]
    assert not on.findings and not [one for one in on.nat if "notrack" in one.sentence]
