"""EVPN by FRRouting between hosts in namespaces: configuration, undo and reading."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core import tools
from core.collect.frr import read_frr
from core.frr_config import group_for, parse_config, router_id_for
from core.model.overlay import EvpnGroup, Frr
from core.operations import ConfigureFrr, undo_of
from core.operations.executor import Executor
from core.operations.values import from_record, to_record
from tests.support.evpn import GATEWAY, GATEWAY6, GATEWAY_MAC, VNI, EvpnHost, Underlay
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.root, pytest.mark.needs("frr")]

FLOOD = "00:00:00:00:00:00"
COUNT = f"""table netdev count {{
    chain requests {{
        type filter hook ingress device vx0 priority 0
        arp daddr ip {GATEWAY} counter
        icmpv6 type nd-neighbor-solicit icmpv6 taddr {GATEWAY6} counter
        arp daddr ip 10.77.0.200 counter
    }}
}}"""


@pytest.fixture
def pair() -> Iterator[list[EvpnHost]]:
    """Yield two hosts with a network and a container `c` each."""
    with Underlay(2) as underlay:
        yield with_network(underlay)


@pytest.fixture
def three() -> Iterator[list[EvpnHost]]:
    """Yield three hosts with a network and a container `c` each."""
    with Underlay(3) as underlay:
        yield with_network(underlay)


def with_network(underlay: Underlay) -> list[EvpnHost]:
    for host in underlay.hosts:
        host.add_network()
        host.add_container("c", 10 + host.number)
    return underlay.hosts


def state(host: EvpnHost) -> Frr:
    """Return what the reader finds; there must be no problem."""
    found, problems = host.inside(read_frr)
    assert problems == ()
    return found


def operation(host: EvpnHost, peers: list[str], source: str = "", reflector: bool = False) -> ConfigureFrr:
    """Return the operation that joins a host to others."""
    found = state(host)
    group = group_for(found, source or host.address, peers, reflector=reflector)
    assert isinstance(group, EvpnGroup), group
    return ConfigureFrr(group, found.config.group)


def execute(host: EvpnHost, *operations: Any) -> None:
    """Execute operations on a host, as read back from the journal."""
    for each in operations:
        read = from_record(json.loads(json.dumps(to_record(each))))
        assert read == each
        with Executor() as executor:
            host.inside(read.execute, executor)


def join(hosts: list[EvpnHost]) -> None:
    """Join all hosts to each other and wait until each floods to all others."""
    for host in hosts:
        execute(host, operation(host, [other.address for other in hosts if other is not host]))
    for host in hosts:
        others = {other.address for other in hosts if other is not host}
        wait_until(lambda host=host, others=others: destinations(host, FLOOD) == others, "the flood list")


def destinations(host: EvpnHost, mac: str) -> set[str]:
    """Return the hosts to which the VXLAN link sends a MAC."""
    rows = host.json("bridge -j fdb show dev vx0")
    return {row["dst"] for row in rows if row["mac"] == mac and "dst" in row}


def neighbour(host: EvpnHost, address: str) -> Any:
    """Return the neighbour entry of br0 for an address, None without one."""
    return next(iter(host.json(f"ip -j neigh show {address} dev br0")), None)


def add_neighbour(host: EvpnHost, address: str, mac: str) -> None:
    """Add what lets FRR announce an address: a MAC that never expires, and its neighbour."""
    host.run(f"bridge fdb replace {mac} dev v-c master extern_learn")
    host.run(f"ip neigh replace {address} lladdr {mac} dev br0 nud permanent")


def pings(host: EvpnHost, address: str) -> bool:
    """Return whether container `c` reaches an address."""
    return "1 received" in host.run(f"ping -c1 -W1 {address}", inside="c", check=False)


def test_containers_of_three_hosts_reach_each_other_and_undo_restores_the_configuration(
    three: list[EvpnHost],
) -> None:
    before = [host.frr.running_config() for host in three]
    join(three)
    first, second, third = three
    wait_until(lambda: pings(first, "10.77.0.12") and pings(first, "10.77.0.13") and pings(third, "fd77::12"))
    rows = {row["mac"]: row for row in first.json("bridge -j fdb show br br0 dev vx0") if "dst" in row}
    assert (rows[second.mac("c")]["dst"], rows[third.mac("c")]["dst"]) == (second.address, third.address)
    assert "extern_learn" in rows[second.mac("c")]["flags"]
    for host, text in zip(three, before, strict=True):
        (undo,) = undo_of((ConfigureFrr(state(host).config.group, None),))
        execute(host, undo)
        assert host.frr.running_config() == text
    wait_until(lambda: not destinations(first, FLOOD), "withdrawn flood lists")


def test_the_reader_agrees_with_vtysh_and_the_kernel(three: list[EvpnHost]) -> None:
    first, second, _ = three
    join(three)
    mac = second.mac("c")
    add_neighbour(second, "10.77.0.12", mac)
    add_neighbour(second, "fd77::12", mac)
    wait_until(lambda: neighbour(first, "10.77.0.12") and neighbour(first, "fd77::12"))
    found = state(first)
    version = first.frr.vtysh("show version").split()[1]
    assert (found.installed, found.version, {"zebra", "bgpd"} <= {*found.daemons}) == (True, version, True)
    assert found.router_id == first.address
    printed = first.frr.json("show bgp l2vpn evpn summary")["peers"]
    peers = {peer.address: peer for peer in found.peers}
    assert {name: row["state"] for name, row in printed.items()} == {
        name: peer.state for name, peer in peers.items()
    }
    assert {peer.group for peer in found.peers} == {"vnet-tui"}
    assert peers[second.address].prefixes == printed[second.address]["pfxRcd"] == 4  # the MAC, 2 addresses
    assert peers[second.address].asn == 65000 and peers[second.address].up_since > 0
    (vni,) = found.vnis
    assert (vni.vni, vni.link, vni.bridge, vni.vtep) == (VNI, "vx0", "br0", first.address)
    assert {*vni.remotes} == destinations(first, FLOOD)
    macs = {each.mac: each for each in found.macs}
    assert {macs[mac].vtep} == destinations(first, mac) == {second.address}
    assert (macs[first.mac("c")].link, macs[first.mac("c")].vtep) == ("v-c", "")
    known = {each.address: (each.mac, each.vtep, each.active) for each in found.neighbors}
    assert known == dict.fromkeys(("10.77.0.12", "fd77::12"), (mac, second.address, True))
    (own,) = (each for each in state(second).neighbors if each.address == "fd77::12")
    assert (own.vtep, own.active) == ("", True)


def test_announced_addresses_are_answered_on_each_host(pair: list[EvpnHost]) -> None:
    first, second = pair
    join(pair)
    mac = second.mac("c")
    # Nothing has the two addresses, so only the first host itself can answer for them.
    for address in ("10.77.0.77", "fd77::77"):
        add_neighbour(second, address, mac)
        wait_until(lambda address=address: neighbour(first, address))
        entry = neighbour(first, address)
        assert (entry["lladdr"], entry["state"], "extern_learn" in entry) == (mac, ["NOARP"], True)
        first.run(f"ping -c1 -W1 {address}", inside="c", check=False)
        (answered,) = first.json(f"ip -j neigh show {address}", inside="c")
        assert answered["lladdr"] == mac
        second.run(f"ip neigh del {address} dev br0")
        wait_until(lambda address=address: not neighbour(first, address), "the withdrawal")


def test_gateways_of_all_hosts_may_be_equal(pair: list[EvpnHost]) -> None:
    first, second = pair
    join(pair)
    wait_until(lambda: pings(first, GATEWAY) and pings(first, GATEWAY6) and pings(first, "10.77.0.12"))
    for host in pair:
        assert destinations(host, GATEWAY_MAC) == set()
        assert GATEWAY_MAC not in {each.mac for each in state(host).macs}
        assert not {GATEWAY, GATEWAY6} & {each.address for each in state(host).neighbors}
    # Requests for the gateway stay on their host, those for an unknown address are sent to all.
    second.run(["nft", COUNT])
    for address in (GATEWAY, GATEWAY6, "10.77.0.200"):
        first.run("ip neigh flush all", inside="c")
        first.run(f"ping -c1 -W1 {address}", inside="c", check=False)
    rules = second.json("nft -j list table netdev count")["nftables"]
    counted = [rule["rule"]["expr"][-1]["counter"]["packets"] for rule in rules if "rule" in rule]
    assert counted[:2] == [0, 0] and counted[2] > 0


def test_entries_stay_in_the_kernel_while_zebra_is_dead(pair: list[EvpnHost]) -> None:
    first, second = pair
    join(pair)
    wait_until(lambda: pings(first, "10.77.0.12"))
    first.frr.kill("zebra")
    assert destinations(first, FLOOD) == destinations(first, second.mac("c")) == {second.address}
    assert pings(first, "10.77.0.12")


def test_a_mac_that_moves_is_found_on_its_new_host(three: list[EvpnHost]) -> None:
    first, second, third = three
    join(three)
    mac = "02:77:00:00:00:99"
    add_neighbour(first, "10.77.0.99", mac)
    wait_until(lambda: destinations(third, mac) == {first.address})
    add_neighbour(second, "10.77.0.99", mac)
    wait_until(lambda: destinations(third, mac) == {second.address} == destinations(first, mac))
    assert [(each.vtep, each.sequence) for each in state(third).macs if each.mac == mac] == [
        (second.address, 1)
    ]
    assert [(each.link, each.sequence) for each in state(second).macs if each.mac == mac] == [("v-c", 1)]


def test_a_host_whose_bgpd_is_killed_is_withdrawn_and_comes_back(pair: list[EvpnHost]) -> None:
    first, second = pair
    join(pair)
    second.frr.kill("bgpd")
    wait_until(lambda: not destinations(first, FLOOD), "the withdrawal")
    (peer,) = state(first).peers
    assert peer.state != "Established" and "closed" in peer.error
    found = state(second)
    assert (found.daemons, found.peers) == (("mgmtd", "zebra"), ())
    reason = group_for(found, second.address, [first.address])
    assert isinstance(reason, str) and "bgpd can't be reached" in reason and "--remote" in reason
    second.frr.start("bgpd")
    execute(second, operation(second, [first.address]))
    wait_until(lambda: destinations(first, FLOOD) == {second.address}, "the announcement")


def test_a_reflector_joins_hosts_that_do_not_know_each_other(three: list[EvpnHost]) -> None:
    reflector, first, second = three
    before = reflector.frr.running_config()
    execute(reflector, operation(reflector, [first.address, second.address], reflector=True))
    execute(first, operation(first, [reflector.address]))
    execute(second, operation(second, [reflector.address]))
    wait_until(lambda: destinations(first, FLOOD) == {reflector.address, second.address})
    wait_until(lambda: pings(first, "10.77.0.13"))
    assert state(reflector).config.group == EvpnGroup(
        65000, reflector.address, (first.address, second.address), True, reflector.address
    )
    plain = operation(reflector, [first.address, second.address])
    execute(reflector, plain)
    wait_until(lambda: destinations(first, FLOOD) == {reflector.address})
    execute(reflector, *plain.inverse())
    wait_until(lambda: destinations(first, FLOOD) == {reflector.address, second.address})
    execute(reflector, ConfigureFrr(None, state(reflector).config.group))
    assert reflector.frr.running_config() == before


FOREIGN = """router bgp 64999
neighbor 2001:db8::{other} remote-as 64999
neighbor 2001:db8::{other} description an old friend
neighbor fabric peer-group
neighbor fabric remote-as external
neighbor 192.0.2.200 peer-group fabric
address-family ipv4 unicast
network 198.51.100.{number}/32
exit-address-family
address-family ipv6 unicast
neighbor 2001:db8::{other} activate
exit-address-family
exit
ip prefix-list mine seq 5 permit 198.51.100.0/24 ge 32
route-map mine permit 10
match ip address prefix-list mine"""


def with_foreign_bgp(hosts: list[EvpnHost]) -> list[EvpnHost]:
    """Configure a session that isn't vnet-tui's, and wait for it."""
    for host, other in zip(hosts, reversed(hosts), strict=True):
        host.frr.configure(*FOREIGN.format(number=host.number, other=other.number).splitlines())
    for host, other in zip(hosts, reversed(hosts), strict=True):
        wait_until(lambda host=host, other=other: foreign_session(host, other)["bgpState"] == "Established")
    return hosts


def foreign_session(host: EvpnHost, other: EvpnHost) -> Any:
    return host.frr.json("show bgp neighbors")[other.address6]


def test_foreign_neighbors_keep_their_lines_and_sessions(pair: list[EvpnHost]) -> None:
    first, second = with_foreign_bgp(pair)
    before = first.frr.running_config()
    since = foreign_session(first, second)["bgpTimerUpEstablishedEpoch"]
    join(pair)
    wait_until(lambda: pings(first, "10.77.0.12"))
    after = first.frr.running_config().splitlines()
    assert [line for line in before.splitlines() if line not in after] == []
    group = state(first).config.group
    assert group == EvpnGroup(64999, first.address, (second.address,))
    execute(first, ConfigureFrr(None, group))
    assert first.frr.running_config() == before
    now = foreign_session(first, second)
    assert (now["bgpState"], now["connectionsDropped"]) == ("Established", 0)
    assert abs(now["bgpTimerUpEstablishedEpoch"] - since) <= 1  # it is computed from the clock


def test_foreign_routes_are_not_sent_to_the_hosts(pair: list[EvpnHost]) -> None:
    first, second = pair
    for host in pair:
        host.frr.configure(
            "router bgp 65000", "bgp default ipv6-unicast", "address-family ipv4 unicast",
            "network 198.51.100.0/24",
        )  # fmt: skip
    join(pair)
    row = first.frr.json("show bgp neighbors")[second.address]
    assert {*row["addressFamilyInfo"]} == {"l2VpnEvpn"}


def test_peers_are_added_and_removed_one_by_one(three: list[EvpnHost]) -> None:
    first, second, third = three
    join([first, second])
    before = first.frr.running_config()
    since = first.frr.json("show bgp neighbors")[second.address]["connectionsEstablished"]
    more = operation(first, [second.address, third.address])
    execute(third, operation(third, [first.address]))
    execute(first, more)
    wait_until(lambda: first.frr.is_established(third.address))
    execute(first, *more.inverse())
    assert first.frr.running_config() == before
    assert first.frr.json("show bgp neighbors")[second.address]["connectionsEstablished"] == since
    assert len(more.command().split("-c")) == 4  # configure terminal, router bgp, the neighbor


def test_the_printed_command_does_the_same(pair: list[EvpnHost]) -> None:
    first, second = pair
    empty = first.frr.running_config()
    typed = ["env", "VTYSH_HISTFILE=/dev/null"]
    made = operation(first, [second.address], reflector=True)
    execute(first, made)
    executed = first.frr.running_config()
    (undo,) = made.inverse()
    first.run(typed + shlex.split(undo.command()))
    assert first.frr.running_config() == empty
    first.run(typed + shlex.split(made.command()))
    assert first.frr.running_config() == executed


def test_sessions_over_ipv6_join_ipv4_tunnels(pair: list[EvpnHost]) -> None:
    first, second = pair
    for host, other in ((first, second), (second, first)):
        group = EvpnGroup(65000, host.address6, (other.address6,), router_id=router_id_for(host.address6))
        execute(host, ConfigureFrr(group, None))
        assert state(host).config.group == group
    wait_until(lambda: destinations(first, FLOOD) == {second.address})
    wait_until(lambda: pings(first, "10.77.0.12") and pings(first, "fd77::12"))


def test_ipv6_tunnels_are_refused_as_frr_ignores_them() -> None:
    with Underlay(2) as underlay:
        first, second = underlay.hosts
        first.add_network(first.address6)
        reason = group_for(state(first), first.address6, [second.address6])
        assert isinstance(reason, str) and "has no IPv6 tunnels" in reason and "--remote" in reason
        for host, other in ((first, second), (second, first)):
            group = EvpnGroup(65000, host.address6, (other.address6,), router_id=router_id_for(host.address6))
            execute(host, ConfigureFrr(group, None))
        wait_until(lambda: first.frr.is_established(second.address6))
        (vni,) = state(first).vnis
        assert vni.vtep == "0.0.0.0"  # FRR doesn't take the link's address


def test_evpn_of_others_is_refused_and_stays(pair: list[EvpnHost]) -> None:
    first, second = pair
    first.frr.configure("router bgp 65000", "address-family l2vpn evpn", "advertise-all-vni")
    before = first.frr.running_config()
    reason = group_for(state(first), first.address, [second.address])
    assert isinstance(reason, str) and "already manages EVPN" in reason and "--remote" in reason
    group = EvpnGroup(65000, first.address, (second.address,))
    with pytest.raises(OSError, match="manages EVPN"):
        execute(first, ConfigureFrr(group, None))
    assert first.frr.running_config() == before


def test_an_instance_made_meanwhile_is_not_taken_over(pair: list[EvpnHost]) -> None:
    first, second = pair
    made = operation(first, [second.address])
    first.frr.configure("router bgp 65000", "bgp router-id 198.51.100.7")
    before = first.frr.running_config()
    with pytest.raises(OSError, match="has a BGP instance"):
        execute(first, made)
    assert first.frr.running_config() == before


def test_undo_keeps_what_was_added_to_the_instance(pair: list[EvpnHost]) -> None:
    first, second = pair
    made = operation(first, [second.address])
    execute(first, made)
    first.frr.configure("router bgp 65000", "address-family ipv4 unicast", "network 198.51.100.0/24")
    execute(first, *made.inverse())
    after = parse_config(first.frr.running_config())
    assert (after.asn, after.group, after.evpn) == (65000, None, ())
    assert "network 198.51.100.0/24" in first.frr.running_config()


def test_a_refused_line_leaves_nothing(pair: list[EvpnHost]) -> None:
    first, second = with_foreign_bgp(pair)
    before = first.frr.running_config()
    group = EvpnGroup(64999, first.address, (second.address, first.address))  # itself as a neighbor
    with pytest.raises(OSError, match="vtysh: "):
        execute(first, ConfigureFrr(group, None))
    assert first.frr.running_config() == before


def test_undo_succeeds_after_frr_forgot_all(pair: list[EvpnHost]) -> None:
    first, second = pair
    made = operation(first, [second.address])
    execute(first, made)
    first.frr.kill("bgpd")
    first.frr.start("bgpd")
    before = first.frr.running_config()
    execute(first, *made.inverse())
    assert first.frr.running_config() == before


def test_frr_that_is_absent_or_stopped_is_no_problem_but_refused(
    pair: list[EvpnHost], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, second = pair
    for name in ("bgpd", "zebra", "mgmtd"):
        first.frr.kill(name)
    found = state(first)
    assert (found.installed, found.version, found.daemons) == (True, "", ())
    assert "zebra and bgpd can't be reached" in str(group_for(found, first.address, [second.address]))
    with pytest.raises(OSError, match="Try: "):
        execute(first, ConfigureFrr(EvpnGroup(65000, first.address, (second.address,)), None))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_frr() == (Frr(), ())
    assert "isn't installed" in str(group_for(Frr(), first.address, [second.address]))


def test_frr_that_hangs_is_given_up(pair: list[EvpnHost], monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = pair
    pid = first.frr.pid("bgpd")
    os.kill(pid, signal.SIGSTOP)
    try:
        with monkeypatch.context() as hurried:
            hurried.setattr(tools, "TIMEOUT", 1.0)
            found, (problem,) = first.inside(read_frr)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (found, problem.part, "didn't end" in problem.why) == (Frr(installed=True), "frr", True)
    assert state(first).daemons[-1] == "bgpd"


@pytest.mark.parametrize(
    "answer", ["", "FRRouting", "vm# show version\nno version\nvm# show daemons\n zebra bgpd"]
)
def test_garbage_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str) -> None:
    tool = tmp_path / "vtysh"
    tool.write_text(f"#!/bin/sh\ncat <<'EOF'\n{answer}\nEOF\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found, (problem,) = read_frr()
    assert (found, "unexpected output" in problem.why) == (Frr(installed=True), True)
