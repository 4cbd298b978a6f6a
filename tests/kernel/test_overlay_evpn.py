"""Check overlays of hosts that find each other by BGP EVPN of FRRouting."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from core.plan.vxlan import container_mac, vni_by_name
from tests.support.machine import Machine, link, machine_state, ok, refused
from tests.support.underlay import (
    FrrDaemons,
    Underlay,
    addresses_of,
    agent,
    connect_containers,
    container,
    destinations,
    flood_list,
    underlay,
    wait_for_ping,
)
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.root, pytest.mark.needs("frr")]

VNI = vni_by_name("blue")
TUNNEL = f"vx{VNI}"


class Fabric:
    """Hosts with FRRouting on one underlay."""

    def __init__(self, under: Underlay) -> None:
        self.under, self.hosts = under, under.hosts
        self.frr = {host: FrrDaemons(host) for host in under.hosts}

    def config(self, host: Machine) -> str:
        """Return the running configuration without the kernel's settings in it."""
        lines = self.frr[host].vtysh("show running-config").splitlines()
        return "\n".join(line for line in lines if not line.endswith("forwarding"))

    def join(self, options: str = "") -> None:
        """Join the overlay `blue` on all hosts, and wait until each floods to all others."""
        for host in self.hosts:
            ok(host, f"network join blue {self.under.peers()} {options}")
        for host in self.hosts:
            others = {self.under.address(one) for one in self.hosts if one is not host}
            wait_until(lambda host=host, others=others: flood_list(host, TUNNEL) == others, "the flood list")  # type: ignore[misc]


def neighbour(host: Machine, address: str) -> Any:
    """Return the bridge's neighbour entry of an address, None without one."""
    return next(iter(host.json(f"ip -j neigh show {address} dev br-blue")), None)


def known(host: Machine) -> list[str]:
    """Return the forwarding entry and neighbours that FRRouting announces."""
    entries = host.run("bridge fdb show dev v-a").splitlines()
    return [one for one in entries if "extern_learn" in one] + host.run(
        "ip neigh show nud permanent"
    ).splitlines()


@pytest.fixture
def three() -> Iterator[Fabric]:
    with underlay(3) as under:
        yield Fabric(under)


@pytest.fixture
def pair() -> Iterator[Fabric]:
    with underlay(2) as under:
        yield Fabric(under)


def test_containers_of_three_hosts_reach_each_other(three: Fabric) -> None:
    three.join("--ipv6")
    connect_containers(three.hosts, "blue")
    for host in three.hosts:
        info = link(host, TUNNEL)["linkinfo"]
        assert info["info_data"]["learning"] is False
        assert (info["info_slave_data"]["learning"], info["info_slave_data"]["neigh_suppress"]) == (
            False,
            True,
        )


def test_a_container_is_announced_before_it_sends_anything(pair: Fabric) -> None:
    pair.join()
    one, other = pair.hosts
    ok(other, "container create b")
    other.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1", "b")
    ok(other, "attach b blue")
    (address,) = addresses_of(other, "b")
    mac = container_mac([address])
    assert link(other, "eth0", "b")["address"] == mac
    wait_until(lambda: neighbour(one, address))
    entry = neighbour(one, address)
    assert (entry["lladdr"], entry["state"]) == (mac, ["NOARP"])
    assert destinations(one, TUNNEL, mac) == {pair.under.address(other)}
    ok(other, "detach b blue")
    wait_until(lambda: not neighbour(one, address) and not destinations(one, TUNNEL, mac), "the withdrawal")
    ok(other, "undo")
    wait_until(lambda: neighbour(one, address) and destinations(one, TUNNEL, mac), "the announcement")


def test_requests_for_known_containers_do_not_cross(pair: Fabric) -> None:
    """The host answers requests for its own containers, and for those of other hosts."""
    pair.join()
    one, other = pair.hosts
    container(one, "a", "blue")
    near = container(one, "c", "blue")
    far = container(other, "b", "blue")
    wait_until(lambda: neighbour(one, far))
    other.run("nft add table netdev watched")
    hook = f"type filter hook ingress device {TUNNEL} priority 0"
    other.run(["nft", f"add chain netdev watched crossed {{ {hook}; }}"])
    other.run("nft add rule netdev watched crossed ether type arp counter drop")
    for address in (near, far):
        wait_for_ping(one, "a", address)
    assert "counter packets 0 bytes 0" in other.run("nft list chain netdev watched crossed")


@pytest.mark.parametrize(
    "command", ["network leave blue", "network rm blue", "network leave blue --peer 192.0.2.3"]
)
def test_undo_restores_everything(three: Fabric, command: str) -> None:
    host = three.hosts[0]
    untouched, config = machine_state(host), three.config(host)
    three.join("--ipv6")
    container(host, "a", "blue")
    before, joined = machine_state(host), three.config(host)
    tables = known(host)
    ok(host, command)
    assert three.config(host) != joined
    ok(host, "undo")
    assert (machine_state(host), three.config(host)) == (before, joined)
    assert known(host) == tables
    ok(host, "container rm a")
    ok(host, "network leave blue")
    assert three.config(host) == config
    assert machine_state(host)["rules"] == untouched["rules"]


def test_the_last_network_that_is_left_ends_the_sessions(pair: Fabric) -> None:
    one = pair.hosts[0]
    pair.join()
    ok(one, f"network join green {pair.under.peers()}")
    ok(one, "network leave blue")
    assert "neighbor vnet-tui peer-group" in pair.config(one)
    ok(one, "network leave green")
    assert "router bgp" not in pair.config(one)


def test_static_overlays_and_evpn_are_kept_apart(pair: Fabric) -> None:
    """FRRouting manages the tables of every tunnel, so no host can have both kinds."""
    one = pair.hosts[0]
    pair.join()
    error = refused(one, "network", "join", "green", "--remote", "192.0.2.2")
    assert "FRRouting manages all overlays of this host. Try: --peer" in error
    ok(one, "network leave blue")
    ok(one, "network join green --remote 192.0.2.2")
    error = refused(one, "network", "join", "blue", "--peer", "192.0.2.2")
    assert "FRRouting would manage green too" in error
    assert "vnet-tui" not in pair.config(one)


def test_a_reflector_joins_hosts_that_do_not_know_each_other(three: Fabric) -> None:
    reflector, one, other = three.hosts
    address = three.under.address
    ok(reflector, f"network join blue --reflector --peer {address(one)} --peer {address(other)}")
    for host in (one, other):
        ok(host, f"network join blue --peer {address(reflector)}")
    container(one, "a", "blue")
    wait_for_ping(one, "a", container(other, "b", "blue"))


def test_export_and_apply_agree(pair: Fabric) -> None:
    one = pair.hosts[0]
    pair.join()
    container(one, "a", "blue")
    file, before = ok(one, "export"), machine_state(one)
    config = pair.config(one)
    ok(one, "network rm blue")
    ok(one, "apply - --yes", text=file)
    assert (machine_state(one), pair.config(one)) == (before, config)


def test_without_frr_static_tunnels_are_offered() -> None:
    with underlay(1) as under:
        (host,) = under.hosts
        before = machine_state(host)
        error = refused(host, "network", "join", "blue", "--peer", "192.0.2.2")
        assert "FRRouting" in error and "--remote" in error
        assert machine_state(host) == before


def lost(host: Machine, name: str, address: str, act: Callable[[], object]) -> int:
    """Return how many of the pings that are sent while `act` runs are lost.

    The last one isn't counted: it may still be under way.
    """
    words = host.words("ping", "-i", "0.02", "-W", "1", address, inside=name)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as pings:
        assert pings.stdout is not None
        shown = [pings.stdout.readline(), pings.stdout.readline()]
        act()
        host.run("pkill -INT -x ping")
        shown += pings.stdout.readlines()
    answered = {int(number) for number in re.findall(r"icmp_seq=(\d+) ttl=", "".join(shown))}
    sent = int(re.findall(r"(\d+) packets transmitted", "".join(shown))[0])
    return len(set(range(1, sent)) - answered)


def test_traffic_goes_on_without_zebra_and_without_vnet_tui(pair: Fabric) -> None:
    one, other = pair.hosts
    pair.join()
    container(one, "a", "blue")
    address = container(other, "b", "blue")
    wait_for_ping(one, "a", address)

    def kill() -> None:
        with agent(one) as started:
            started.kill()
        for host in pair.hosts:
            pair.frr[host].kill("zebra")
            assert flood_list(host, TUNNEL)

    assert lost(one, "a", address, kill) == 0


def test_the_agent_configures_frr_again_after_a_restart(pair: Fabric) -> None:
    """Killed daemons forget what isn't in their files."""
    one, other = pair.hosts
    pair.join()
    container(one, "a", "blue")
    address = container(other, "b", "blue")
    wait_for_ping(one, "a", address)
    config = pair.config(one)
    with agent(one):
        pair.frr[one].kill("bgpd", "zebra")
        pair.frr[one].start("zebra", "bgpd")
        wait_until(lambda: pair.config(one) == config, "the configuration")
        wait_for_ping(one, "a", address)
        ok(one, "network leave blue")
        pair.frr[one].kill("bgpd")
        pair.frr[one].start("bgpd")
        assert not saved(one)


def saved(host: Machine) -> object:
    """Return the peer group that the agent would configure again."""
    return json.loads((Path(host.environment["VNET_STATE"]) / "frr.json").read_text())["group"]


def test_only_plans_of_networks_read_frr(tmp_path: Path) -> None:
    """FRRouting that is slow or hangs delays nothing else."""
    asked, vtysh = tmp_path / "asked", tmp_path / "vtysh"
    vtysh.write_text(f"#!/bin/sh\ntouch {asked}\nexit 1\n")
    vtysh.chmod(0o755)
    with closing(Machine(VNET_ENGINES="frr", PATH=f"{tmp_path}:{os.environ['PATH']}")) as host:
        ok(host, "network create shop")
        assert asked.exists()
        asked.unlink()
        for words in ("container create web", "attach web shop", "publish web 8080:80", "detach web shop"):
            ok(host, words)
        assert not asked.exists()
