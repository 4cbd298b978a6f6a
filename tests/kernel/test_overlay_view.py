"""What `show overlay` says, compared with bridge(8) and ip(8) on hosts with real traffic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from core.diff import changes
from core.plan.vxlan import vni_by_name
from core.serialize import unpack
from tests.support.machine import Machine, link, ok, read_json
from tests.support.underlay import Underlay, addresses_of, container, joined, underlay, wait_for_ping
from tests.support.waiting import wait_until

pytestmark = pytest.mark.root

VNI = vni_by_name("blue")
TUNNEL = f"vx{VNI}"
FLOOD = "00:00:00:00:00:00"
SOURCES = {"": "learned", "permanent": "static", "static": "static"}


@pytest.fixture(scope="module")
def three() -> Iterator[Underlay]:
    """Start three hosts of the overlay `blue`, each with a container that reached the others."""
    with joined(3) as found:
        for number, host in enumerate(found.hosts):
            container(host, f"c{number}", "blue")
        for number, host in enumerate(found.hosts):
            for other, there in enumerate(found.hosts):
                if host is not there:
                    wait_for_ping(host, f"c{number}", addresses_of(there, f"c{other}")[0])
        yield found


def shown(host: Machine) -> list[dict[str, Any]]:
    return read_json(host, "show overlay")["overlay"]


def remote_macs(overlay: dict[str, Any]) -> set[tuple[str, str, str]]:
    """Return (MAC, host, source) of each MAC behind another host."""
    return {
        (mac["mac"], host["address"], mac["source"])
        for host in overlay["hosts"] if not host["local"] for mac in host["macs"]
    }  # fmt: skip


def forwarding(host: Machine, tunnel: str) -> set[tuple[str, str, str]]:
    """Return the same of the kernel's forwarding table."""
    return {
        (one["mac"], one["dst"], SOURCES[one.get("state", "")])
        for one in host.json(f"bridge -j fdb show dev {tunnel}")
        if "dst" in one and one["mac"] != FLOOD
    }


def test_hosts_and_macs_are_those_of_the_kernel(three: Underlay) -> None:
    for host in three.hosts:
        (overlay,) = shown(host)
        # Entries may be learned between the two readings.
        wait_until(lambda h=host: remote_macs(shown(h)[0]) == forwarding(h, TUNNEL), "equal tables")
        assert (overlay["name"], overlay["vni"], overlay["owner"]) == ("blue", VNI, "vnet-tui")
        assert (overlay["port"], overlay["mtu"], overlay["local"]) == (4789, 1450, three.address(host))
        assert overlay["underlay"] == {"link": "up0", "mtu": 1500} and overlay["unreachable"] == []
        others = [one for one in overlay["hosts"] if not one["local"]]
        assert [one["address"] for one in others] == [
            three.address(one) for one in three.hosts if one is not host
        ]
        assert all((one["source"], one["flood"]) == ("static", True) for one in others)


def test_macs_have_their_addresses_and_containers(three: Underlay) -> None:
    host, other, _ = three.hosts
    wait_for_ping(host, "c0", addresses_of(other, "c1")[0])
    (overlay,) = shown(host)
    own, there = overlay["hosts"][0], overlay["hosts"][1]
    macs = {one["mac"]: one for one in own["macs"]}
    mine = macs[link(host, "eth0", "c0")["address"]]
    assert (mine["container"], mine["addresses"]) == ("netns:c0", addresses_of(host, "c0"))
    assert macs[link(host, "br-blue")["address"]]["gateway"]
    macs = {one["mac"]: one for one in there["macs"]}
    theirs = macs[link(other, "eth0", "c1")["address"]]
    assert theirs["addresses"] == addresses_of(other, "c1") and theirs["source"] == "learned"


def test_the_list_has_a_row_for_each_host(three: Underlay) -> None:
    host = three.hosts[0]
    lines = ok(host, "show overlay").splitlines()
    assert lines[0].split()[:2] == ["NETWORK", "VNI"] and len(lines) == 4
    assert [line.split()[3] for line in lines[1:]] == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]


def test_why_names_the_host_behind_the_tunnel(three: Underlay) -> None:
    host, other, _ = three.hosts
    address = addresses_of(other, "c1")[0]
    wait_for_ping(host, "c0", address)
    text = ok(host, f"why c0 {address}")
    assert f"goes through the tunnel {TUNNEL} to the host 192.0.2.2" in text
    assert f"bridge br-blue: {TUNNEL} to v-c0" in text, "the answer is bridged"
    host.run(f"ip neigh flush to {address} dev eth0", "c0")
    text = ok(host, f"why c0 {address}")
    assert f"asks for {address} through the tunnel {TUNNEL}: 192.0.2.2, 192.0.2.3" in " ".join(text.split())


# ---- tunnels of other programs


def tunnel(host: Machine, name: str, vni: int, port: int, extra: str = "nolearning") -> None:
    host.run(f"ip link add {name} type vxlan id {vni} dstport {port} local 192.0.2.1 dev up0 {extra}")
    host.run(f"ip link set {name} up")


def entry(host: Machine, name: str, mac: str, dst: str, address: str) -> None:
    """Add what flannel and Calico add for each other host."""
    host.run(f"bridge fdb add {mac} dev {name} dst {dst} self permanent")
    host.run(f"ip neigh add {address} lladdr {mac} dev {name} nud permanent")


@pytest.mark.parametrize(
    ("name", "owner", "vni", "port"),
    [("flannel.1", "flannel", 1, 8472), ("vxlan.calico", "Calico", 4096, 4789)],
)
def test_routed_overlays(name: str, owner: str, vni: int, port: int) -> None:
    with underlay(1) as found:
        (host,) = found.hosts
        tunnel(host, name, vni, port)
        host.run(f"ip addr add 10.244.0.0/32 dev {name}")
        entry(host, name, "02:00:00:00:00:02", "192.0.2.2", "10.244.1.0")
        host.run(f"ip route add 10.244.1.0/24 via 10.244.1.0 dev {name} onlink")
        (overlay,) = shown(host)
        assert (overlay["owner"], overlay["vni"], overlay["port"]) == (owner, vni, port)
        own, other = overlay["hosts"]
        assert own["macs"][0]["addresses"] == ["10.244.0.0"]
        assert (other["address"], other["source"], other["flood"]) == ("192.0.2.2", "static", None)
        assert other["prefixes"] == ["10.244.1.0/24"]
        assert remote_macs(overlay) == forwarding(host, name)
        assert other["macs"][0]["addresses"] == ["10.244.1.0"]


def test_a_tunnel_of_any_vni() -> None:
    with underlay(1) as found:
        (host,) = found.hosts
        host.run("ip link add cilium_vxlan type vxlan external dstport 8472")
        (overlay,) = shown(host)
        assert (overlay["owner"], overlay["vni"], overlay["bridge"]) == ("Cilium", None, None)
        assert " any " in ok(host, "show overlay")


def test_an_overlay_of_docker_swarm_in_its_sandbox() -> None:
    """The link was created in the host's namespace, which therefore carries it."""
    with underlay(1) as found:
        (host,) = found.hosts
        swarm(host)
        (overlay,) = shown(host)
        assert (overlay["owner"], overlay["namespace"]) == ("Docker Swarm", SANDBOX)
        assert overlay["underlay"] == {"link": "up0", "mtu": 1500}
        assert overlay["hosts"][1]["macs"][0]["addresses"] == ["10.0.1.7"]
        assert overlay["hosts"][1]["flood"] is None


SANDBOX = "1-abcdefghij"


def swarm(host: Machine) -> None:
    """Create what Docker creates for an overlay of a swarm."""
    host.run(f"ip netns add {SANDBOX}")
    host.run("ip link add vxlan0 type vxlan id 4097 dstport 4789 proxy l2miss l3miss")
    host.run(f"ip link set vxlan0 netns {SANDBOX}")
    for line in ("ip link add br0 type bridge", "ip link set vxlan0 master br0 up", "ip link set br0 up"):
        host.run(line, SANDBOX)
    host.run("bridge fdb add 02:42:0a:00:01:07 dev vxlan0 dst 192.0.2.2 self permanent", SANDBOX)
    host.run("ip neigh add 10.0.1.7 lladdr 02:42:0a:00:01:07 dev vxlan0 nud permanent", SANDBOX)


# ---- events


def events(host: Machine, before: bytes) -> list[str]:
    """Return the events between a dump and now that concern overlays."""
    now = unpack(dump(host))
    return [
        one.sentence for one in changes(unpack(before), now, 0.0)
        if "overlay" in one.sentence or "MAC" in one.sentence
    ]  # fmt: skip


def dump(host: Machine) -> bytes:
    path = host.folder / "now.vnet"
    ok(host, f"dump {path}")
    return path.read_bytes()


def test_events_of_hosts_and_moved_macs() -> None:
    with underlay(2) as found:
        host, other = found.hosts
        for one in found.hosts:
            ok(one, f"network join blue {found.remotes()}")
        address = container(host, "a", "blue")
        wait_for_ping(host, "a", container(other, "b", "blue"))
        before = dump(host)
        ok(host, "network join blue --remote 192.0.2.9")
        assert events(host, before) == ["host 192.0.2.9 was added to the overlay blue"]
        before = dump(host)
        ok(host, "network leave blue --remote 192.0.2.9")
        assert events(host, before) == ["host 192.0.2.9 was removed from the overlay blue"]

        before, mac = dump(host), link(host, "eth0", "a")["address"]
        assert events(host, before) == []
        ok(host, "container rm a")
        other.run(f"ip link set eth0 address {mac}", "b")
        other.run(f"ip addr add {address}/20 dev eth0", "b")
        wait_until(lambda: reaches_gateway_of(other), "frames of the moved container")
        other.run("ping -c 1 -W 1 255.255.255.255 -b", "b", check=False)
        wait_until(lambda: mac in host.run(f"bridge fdb show dev {TUNNEL}"), "a frame from there")
        moved = [one for one in events(host, before) if "moved" in one]
        assert moved == [f"MAC {mac} moved from this host to 192.0.2.2 in the overlay blue"]


def reaches_gateway_of(other: Machine) -> bool:
    return ", 1 received" in other.run(f"ping -c 1 -W 1 {gateway(other)}", "b", check=False)


def gateway(host: Machine) -> str:
    (route,) = host.json("ip -j route show default", "b")
    return route["gateway"]
