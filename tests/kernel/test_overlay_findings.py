"""Findings about overlays: each one vanishes when the kernel's state is repaired."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kernel.test_overlay_view import FLOOD, SANDBOX, TUNNEL, VNI, entry, shown, swarm, tunnel
from tests.support.machine import Machine, link, ok
from tests.support.underlay import Underlay, addresses_of, container, reaches, underlay, wait_for_ping
from tests.support.waiting import eventually, wait_until

pytestmark = pytest.mark.root

MAC = "02:00:00:00:00:77"


@pytest.fixture(scope="module")
def hosts() -> Iterator[Underlay]:
    """Start two hosts of the overlay `blue`, each with a container."""
    with underlay(2) as found:
        found.middle.run("ip addr add 192.0.2.254/24 dev br0")  # a gateway that answers ARP
        for number, host in enumerate(found.hosts):
            ok(host, f"network join blue {found.remotes()}")
            host.run("ip route add default via 192.0.2.254")
            container(host, f"c{number}", "blue")
        wait_for_ping(found.hosts[0], "c0", addresses_of(found.hosts[1], "c1")[0])
        yield found


@pytest.fixture
def host(hosts: Underlay) -> Machine:
    """Return the first host, which has no finding."""
    found = hosts.hosts[0]
    assert about(found) == []
    return found


def about(host: Machine, words: str = "") -> list[dict[str, Any]]:
    """Return the findings of these kinds whose sentence has some words, by `doctor --json`."""
    done = host.vnet("doctor", "--json")
    kinds = ("mtu", "overlay", "neighbour", "address")
    return [
        one
        for one in json.loads(done.stdout)["findings"]
        if one["kind"] in kinds and words in one["sentence"]
    ]


def the_one(host: Machine, words: str) -> dict[str, Any]:
    """Return the only finding of these kinds, which has some words."""
    found = about(host)
    assert len(found) == 1 and words in found[0]["sentence"], found
    return found[0]


def repair(host: Machine, finding: dict[str, Any]) -> None:
    assert finding["fix"] is not None
    ok(host, f"doctor --yes --fix {finding['id']}")
    assert about(host) == []


def test_an_mtu_too_large_for_the_underlay(hosts: Underlay, host: Machine) -> None:
    address = addresses_of(hosts.hosts[1], "c1")[0]
    host.run("ip link set up0 mtu 1400")
    try:
        found = the_one(host, "headers take 50 bytes: packets larger than 1350 bytes are lost")
        assert found["severity"] == "bad" and found["evidence"] == [f"{TUNNEL}: mtu 1450", "up0: mtu 1400"]
        repair(host, found)
        assert link(host, TUNNEL)["mtu"] == link(host, "br-blue")["mtu"] == 1350
        assert link(host, "eth0", "c0")["mtu"] == 1350
        assert eventually(lambda: reaches(host, "c0", address, 1350 - 28), seconds=10)
    finally:
        host.run("ip link set up0 mtu 1500")
        ok(host, "undo")
    assert link(host, TUNNEL)["mtu"] == 1450


def test_entries_to_a_host_that_left(host: Machine) -> None:
    host.run(f"bridge fdb add {MAC} dev {TUNNEL} dst 192.0.2.9 self static")
    found = the_one(host, "lead to 192.0.2.9, which isn't in its flood list")
    assert found["severity"] == "warn"
    repair(host, found)
    assert MAC not in host.run(f"bridge fdb show dev {TUNNEL}")


def test_a_host_that_is_joined_on_one_side_only(hosts: Underlay, host: Machine) -> None:
    other = hosts.hosts[1]
    host.run(f"bridge fdb del {FLOOD} dev {TUNNEL} dst 192.0.2.2")
    host.run(f"bridge fdb append {FLOOD} dev {TUNNEL} dst 192.0.2.99")
    other.run(f"ping -c 1 -W 1 {addresses_of(host, 'c0')[0]}", "c1", check=False)
    found = about(host, "192.0.2.2 sends packets of blue, but isn't in its flood list")
    assert len(found) == 1 and found[0]["severity"] == "info"
    assert found[0]["advice"].endswith("vnet-tui network join blue --remote 192.0.2.2")
    ok(host, "network join blue --remote 192.0.2.2")
    host.run(f"bridge fdb del {FLOOD} dev {TUNNEL} dst 192.0.2.99")
    host.run("ip neigh flush to 192.0.2.99")
    assert about(host) == []


def test_a_stale_neighbour_entry_of_a_moved_container(host: Machine) -> None:
    address = addresses_of(host, "c0")[0]
    host.run(f"ip neigh replace {address} lladdr {MAC} dev br-blue nud permanent")
    found = next(one for one in about(host, "permanent neighbour entry of blue"))
    assert f"says that {address} is at {MAC}, but {address} is c0 on this host" in found["sentence"]
    ok(host, f"doctor --yes --fix {found['id']}")
    assert about(host) == [] and MAC not in host.run("ip neigh show dev br-blue")


def test_a_stale_neighbour_entry_of_a_swarm() -> None:
    """Docker left such entries behind (moby#52661)."""
    with underlay(1) as found:
        (host,) = found.hosts
        swarm(host)
        host.run("ip link set dev up0 up")
        assert about(host, "neighbour entry") == []
        host.run("bridge fdb del 02:42:0a:00:01:07 dev vxlan0 dst 192.0.2.2 self", SANDBOX)
        (one,) = about(host, "neighbour entry")
        assert "10.0.1.7 is at 02:42:0a:00:01:07, but no host has that MAC address" in one["sentence"]
        ok(host, f"doctor --yes --fix {one['id']}")
        assert about(host, "neighbour entry") == []
        assert "10.0.1.7" not in host.run("ip neigh show dev vxlan0", SANDBOX)


def test_the_same_mac_on_two_hosts(hosts: Underlay, host: Machine) -> None:
    other = hosts.hosts[1]
    before = link(other, "eth0", "c1")["address"]
    mine = link(host, "eth0", "c0")["address"]
    other.run(f"ip link set eth0 address {mine}", "c1")
    try:
        other.run("ip neigh flush dev eth0", "c1")
        other.run("arping -c 1 -w 1 -I eth0 10.9.9.9", "c1", check=False)
        other.run("ping -c 1 -W 1 -b 255.255.255.255", "c1", check=False)
        other.run("ping -c 1 -W 1 10.128.0.9", "c1", check=False)
        (found,) = about(host, f"eth0 of c0 has the MAC address {mine}, from which 192.0.2.2 has sent")
        assert found["severity"] == "warn"
    finally:
        other.run(f"ip link set eth0 address {before}", "c1")
    host.run(f"bridge fdb del {mine} dev {TUNNEL} dst 192.0.2.2", check=False)
    assert about(host) == []


def test_a_stale_forwarding_entry_of_a_moved_container(host: Machine) -> None:
    mine = link(host, "eth0", "c0")["address"]
    host.run(f"bridge fdb replace {mine} dev {TUNNEL} dst 192.0.2.2 self static")
    found = the_one(host, f"says that {mine} is behind 192.0.2.2, but eth0 of c0 has it")
    repair(host, found)


def test_the_same_address_on_two_hosts(hosts: Underlay, host: Machine) -> None:
    """A neighbour entry that was confirmed just now contradicts the container's own address."""
    other = hosts.hosts[1]
    mine = addresses_of(host, "c0")[0]
    other.run(f"ip addr add {mine}/20 dev eth0", "c1")
    try:
        container(host, "c9", "blue")
        theirs = link(other, "eth0", "c1")["address"]
        host.run(f"ip neigh replace {mine} lladdr {theirs} dev eth0 nud reachable", "c9")
        (found,) = about(host, f"The address {mine} of blue is used twice")
        assert f"{theirs} (behind 192.0.2.2)" in found["sentence"] and "(c0)" in found["sentence"]
    finally:
        other.run(f"ip addr del {mine}/20 dev eth0", "c1")
        ok(host, "container rm c9")
    assert about(host) == []


def test_equal_vnis_on_different_ports(host: Machine) -> None:
    tunnel(host, "flannel.1", VNI, 8472)
    try:
        found = the_one(host, f"have the same VNI {VNI}")
        assert found["severity"] == "info" and "flannel.1 (flannel), UDP 8472" in found["sentence"]
    finally:
        host.run("ip link del flannel.1")
    assert about(host) == []


def test_hosts_without_route_or_answer(host: Machine) -> None:
    host.run(f"bridge fdb append {FLOOD} dev {TUNNEL} dst 203.0.113.7")
    host.run("ip route del default")
    try:
        (found,) = about(host, "can't reach 203.0.113.7: this host has no route to them")
        assert found["severity"] == "bad"
        host.run("ip route add default via 192.0.2.254")
        assert about(host, "no route to them") == []
    finally:
        host.run("ip route replace default via 192.0.2.254")
        host.run(f"bridge fdb del {FLOOD} dev {TUNNEL} dst 203.0.113.7")
    host.run(f"bridge fdb append {FLOOD} dev {TUNNEL} dst 192.0.2.77")
    try:
        host.run("ping -c 1 -W 2 192.0.2.77", check=False)
        wait_until(lambda: "FAILED" in host.run("ip neigh show 192.0.2.77"), "no answer")
        assert about(host, "can't reach 192.0.2.77: they don't answer ARP")
    finally:
        host.run(f"bridge fdb del {FLOOD} dev {TUNNEL} dst 192.0.2.77")
    assert about(host) == []


def why(host: Machine, address: str) -> str:
    """Return the answer of `why` about packets of c0, on one line."""
    return " ".join(host.vnet("why", "c0", address).stdout.split())


def test_why_stops_at_a_host_without_route_or_answer(host: Machine) -> None:
    address = addresses_of(host, "c0")[0].rpartition(".")[0] + ".250"
    host.run(f"ip neigh add {address} lladdr {MAC} dev eth0 nud permanent", "c0")
    host.run("ip route del default")
    try:
        host.run(f"bridge fdb add {MAC} dev {TUNNEL} dst 203.0.113.7 self static")
        assert f"there is no route to 203.0.113.7, where the tunnel {TUNNEL} ends" in why(host, address)
        host.run(f"bridge fdb replace {MAC} dev {TUNNEL} dst 192.0.2.78 self static")
        assert f"through the tunnel {TUNNEL} to the host 192.0.2.78" in why(host, address)
        host.run("ping -c 1 -W 2 192.0.2.78", check=False)
        wait_until(lambda: "FAILED" in host.run("ip neigh show 192.0.2.78"), "no answer")
        assert f"no answer from 192.0.2.78, where the tunnel {TUNNEL} ends" in why(host, address)
    finally:
        host.run("ip route replace default via 192.0.2.254")
        host.run(f"bridge fdb del {MAC} dev {TUNNEL} dst 192.0.2.78", check=False)
        host.run(f"ip neigh del {address} dev eth0", "c0")
    assert about(host) == []


def test_why_leaves_by_the_port_that_has_the_mac(hosts: Underlay, host: Machine) -> None:
    """The bridge of an overlay has a port to the outside, too."""
    address = addresses_of(host, "c0")[0].rpartition(".")[0] + ".251"
    hosts.middle.run(f"ip link add x9 up type veth peer name up9 netns {host.pid}")
    host.run("ip link set up9 master br-blue up")
    host.run(f"bridge fdb add {MAC} dev up9 master static")
    host.run(f"ip neigh add {address} lladdr {MAC} dev eth0 nud permanent", "c0")
    try:
        host.run("nft add table bridge seen")
        host.run("nft add chain bridge seen c { type filter hook forward priority 0; }")
        host.run("nft add rule bridge seen c oifname up9 icmp type echo-request counter")
        host.run(f"ping -c 1 -W 1 {address}", "c0", check=False)
        assert "packets 1 " in host.run("nft list table bridge seen")
        host.run("nft delete table bridge seen")
        assert f"leaves this host by up9 to {address}" in why(host, address)
    finally:
        host.run(f"ip neigh del {address} dev eth0", "c0")
        host.run("ip link del up9")


@pytest.mark.parametrize("how", ["rule", "policy", "output"])
def test_a_firewall_that_drops_the_tunnel(hosts: Underlay, host: Machine, how: str) -> None:
    address = addresses_of(hosts.hosts[1], "c1")[0]
    host.run("nft add table inet guard")
    hook, policy = (
        ("output", "accept") if how == "output" else ("input", "accept" if how == "rule" else "drop")
    )
    host.run(["nft", f"add chain inet guard c {{ type filter hook {hook} priority 0; policy {policy}; }}"])
    host.run(["nft", "add rule inet guard c iifname lo accept"])
    if how != "policy":
        host.run(["nft", "add rule inet guard c udp dport 4789 drop"])
    else:
        host.run(["nft", "add rule inet guard c ct state established,related accept"])
    try:
        found = next(iter(about(host, "blue loses UDP 4789")))
        assert not reaches(host, "c0", address)
        stopped_by = found["sentence"].partition(": blue loses UDP")[0]
        assert stopped_by[1:] in why(host, address)
        ok(host, f"doctor --yes --fix {found['id']}")
        assert about(host, "blue loses UDP 4789") == []
        wait_for_ping(host, "c0", address)
    finally:
        host.run("nft delete table inet guard")
    assert about(host) == []


@pytest.mark.parametrize(
    ("extra", "leaves_by"), [("nolearning", "up1"), ("nolearning remote 192.0.2.2", "up0")]
)
def test_only_the_host_of_a_tunnel_itself_is_bound_to_its_link(extra: str, leaves_by: str) -> None:
    """Forwarding entries, as flannel and Calico add, are routed although the tunnel has `dev up0`."""
    with underlay(1) as found:
        (host,) = found.hosts
        tunnel(host, "flannel.1", 1, 8472, extra)
        host.run("ip addr add 10.244.0.0/16 dev flannel.1")
        entry(host, "flannel.1", MAC, "192.0.2.2", "10.244.1.0")
        if "remote" in extra:  # frames for unknown MACs
            host.run(f"bridge fdb del {MAC} dev flannel.1 dst 192.0.2.2")
        host.run("ip link add up1 mtu 1280 up type veth peer name far1")
        host.run("ip link set far1 up")
        host.run("ip route add 192.0.2.2/32 dev up1")
        assert shown(host)[0]["underlay"]["link"] == leaves_by
        for name in ("up0", "up1"):
            host.run("nft add table inet guard")
            host.run("nft add chain inet guard c { type filter hook output priority 0; }")
            host.run(["nft", f"add rule inet guard c oifname {name} udp dport 8472 counter drop"])
            host.run("ping -c 1 -W 1 10.244.1.0", check=False)
            is_kernels = "packets 0" not in host.run("nft list table inet guard")
            assert is_kernels == (name == leaves_by)
            assert bool(about(host, "flannel.1 loses UDP 8472")) == is_kernels
            host.run("nft delete table inet guard")
