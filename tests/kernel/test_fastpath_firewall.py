"""Firewall, routes and bridges affect running flows as without the fast path."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.kernel.fastlab import HOST4, MACS, PUBLISHED, V4, V6, FastLab
from tests.kernel.streams import Stream, is_fast
from tests.support.fastpath import Guard
from tests.support.waiting import eventually, scaled

pytestmark = pytest.mark.root
# Seconds after which a change must be in force: it takes effect within one second, and the lease of a
# daemon that gets no event expires after two; the rest is for a busy machine.
GRACE = scaled(10.0)


@pytest.fixture(scope="module")
def lab() -> Iterator[FastLab]:
    with FastLab() as made:
        made.accelerate()
        yield made


@pytest.fixture
def fresh() -> Iterator[FastLab]:
    """A lab that the test may break."""
    with FastLab() as made:
        made.accelerate()
        yield made


def test_the_guard_detects_leaks() -> None:
    with FastLab() as lab:
        frame = bytes.fromhex(MACS["world"].replace(":", "") + MACS["up0"].replace(":", "") + "0800")
        frame += bytes(12) + socket.inet_aton(V4["a"]) + socket.inet_aton(V4["far"])
        with lab.socket("host", socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("up0", 3))
            raw.send(frame)
        assert eventually(lab.leaked)
        lab.run("ping -c1 -W20 198.51.100.2", inside="a")
        assert lab.leaked() == []


def test_unrelated_rules_lose_no_packet(lab: FastLab) -> None:
    with (
        Stream(lab, "a", "far", V4["far"]) as out,
        Stream(lab, "far", "a", HOST4, port=80, to=PUBLISHED) as published,
        Stream(lab, "a", "b", V4["b"], port=6002) as bridged,
        Stream(lab, "c", "far", V6["far"], port=6003, family=6) as six,
    ):
        streams = (out, published, bridged, six)
        assert is_fast(lab, "v-a", "v-b", "v-c", "up0")
        lab.run("iptables -I DOCKER-USER -s 198.18.0.0/15 -j DROP")
        assert all(stream.flows() for stream in streams)
        lab.run("nft add table ip other { chain forward { type filter hook forward priority 10 ; } ; }")
        lab.run("nft add rule ip other forward ip saddr 198.18.0.9 drop")
        assert all(stream.flows() for stream in streams)
        lab.run("ip6tables -t nat -A DOCKER -p tcp --dport 81 -j DNAT --to-destination [fd17::3]:81")
        assert all(stream.flows() for stream in streams)
        assert is_fast(lab, "v-a", "v-b", "v-c", "up0")
        for stream in streams:
            stream.stop()
            assert (stream.lost(), stream.there.damaged, stream.back.damaged) == ([], 0, 0)


@dataclass(frozen=True)
class Stop:
    """What stops a stream, what lets it continue, and whether only the replies stop."""

    put: str
    take: str
    path: str = "out"
    answers_only: bool = False


_NFT = (
    "nft -f - <<< 'table {0} stop {{ chain it {{ type filter hook {1}; }}; }}; insert rule {0} stop it {2}'"
)
STOPS = {
    "iptables by address": Stop("iptables -I DOCKER-USER -s 172.17.0.2 -j DROP", "iptables -D DOCKER-USER 1"),
    "iptables by port": Stop(
        "iptables -I DOCKER-USER -p udp --dport 6000 -j DROP", "iptables -D DOCKER-USER 1"
    ),
    "iptables one way": Stop(
        "iptables -I DOCKER-USER -d 172.17.0.2 -j DROP", "iptables -D DOCKER-USER 1", answers_only=True
    ),
    "iptables reject": Stop("iptables -I FORWARD -s 172.17.0.2 -j REJECT", "iptables -D FORWARD 1"),
    "iptables raw": Stop("iptables -t raw -I PREROUTING -s 172.17.0.2 -j DROP", "iptables -t raw -F"),
    "iptables mangle, published": Stop(
        "iptables -t mangle -I POSTROUTING -d 172.17.0.2 -j DROP", "iptables -t mangle -F", "published"
    ),
    "ip6tables": Stop("ip6tables -I DOCKER-USER -s fd17::2 -j DROP", "ip6tables -D DOCKER-USER 1", "six"),
    "nft": Stop(
        _NFT.format("inet", "forward priority 0", "ip saddr 172.17.0.2 drop"), "nft delete table inet stop"
    ),
    "nft by port, same bridge": Stop(
        _NFT.format("inet", "forward priority 0", "udp dport 6000 drop"), "nft delete table inet stop",
        "bridged",
    ),
    "nft prerouting, answers": Stop(
        _NFT.format("ip", "prerouting priority -300", "udp sport 6000 drop"), "nft delete table ip stop",
        answers_only=True,
    ),
    # Where br_netfilter asks iptables, Linux 6.1 passes over chains of the bridge family up to priority 0.
    "nft bridge": Stop(
        _NFT.format("bridge", "forward priority 10", "ip daddr 172.17.0.3 drop"),
        "nft delete table bridge stop", "bridged",
    ),
    "nft ingress": Stop(
        _NFT.format("netdev", "ingress device v-a priority 0", "ip saddr 172.17.0.2 drop"),
        "nft delete table netdev stop",
    ),
    "nft egress": Stop(
        _NFT.format("netdev", "egress device up0 priority 0", "udp dport 6000 drop"),
        "nft delete table netdev stop",
    ),
    "a set": Stop(
        "nft -f - <<< 'table ip stop { set s { type ipv4_addr; }; "
        "chain it { type filter hook forward priority 0; ip saddr @s drop; }; }' "
        "&& nft add element ip stop s { 172.17.0.2 }",
        "nft delete table ip stop",
    ),
    "nft egress, by policy": Stop(
        "nft -f - <<< 'table netdev stop { chain it { "
        "type filter hook egress device up0 priority 0; policy drop; }; }'",
        "nft delete table netdev stop",
    ),
    "nft bridge, what was routed": Stop(
        _NFT.format("bridge", "output priority 10", "ip daddr 172.17.0.2 drop"),
        "nft delete table bridge stop", "published",
    ),
    "a route": Stop("ip route add blackhole 198.51.100.0/24", "ip route del blackhole 198.51.100.0/24"),
    "a policy rule": Stop("ip rule add from 172.17.0.2 prohibit", "ip rule del from 172.17.0.2 prohibit"),
    "forwarding off": Stop("sysctl -qw net.ipv4.ip_forward=0", "sysctl -qw net.ipv4.ip_forward=1"),
    "link down": Stop("ip link set v-b down", "ip link set v-b up", "bridged"),
    "isolated ports": Stop(
        "ip link set v-a type bridge_slave isolated on && ip link set v-b type bridge_slave isolated on",
        "ip link set v-a type bridge_slave isolated off", "bridged",
    ),
    "isolated ports, published": Stop(
        "ip link set v-a type bridge_slave isolated on && ip link set v-b type bridge_slave isolated on",
        "ip link set v-a type bridge_slave isolated off", "to a neighbour",
    ),
    "hairpin mode off": Stop(
        "ip link set v-a type bridge_slave hairpin off",
        "ip link set v-a type bridge_slave hairpin on",
        "to itself",
    ),
    "locked port": Stop(
        "bridge link set dev v-a locked on && bridge fdb del 02:00:00:00:17:02 dev v-a master",
        "bridge link set dev v-a locked off", "bridged",
    ),
    "out of the bridge": Stop("ip link set v-b nomaster", "ip link set v-b master docker0", "bridged"),
    "iptables-legacy": Stop("iptables-legacy -I FORWARD -s 172.17.0.2 -j DROP", "iptables-legacy -F FORWARD"),
    "iptables-legacy by port": Stop(
        "iptables-legacy -I FORWARD -p udp --dport 6000 -j DROP", "iptables-legacy -F FORWARD"
    ),
    "iptables-legacy one way": Stop(
        "iptables-legacy -I FORWARD -d 172.17.0.2 -j DROP", "iptables-legacy -F FORWARD", answers_only=True
    ),
    "ip6tables-legacy": Stop(
        "ip6tables-legacy -I FORWARD -s fd17::2 -j DROP", "ip6tables-legacy -F FORWARD", "six"
    ),
    "iptables-legacy, same bridge": Stop(
        "iptables-legacy -I FORWARD -d 172.17.0.3 -j DROP", "iptables-legacy -F FORWARD", "bridged"
    ),
}  # fmt: skip


def _stream(lab: FastLab, path: str) -> Stream:
    match path:
        case "published":
            return Stream(lab, "far", "a", HOST4, port=80, to=PUBLISHED)
        case "bridged":
            return Stream(lab, "a", "b", V4["b"])
        case "to a neighbour":
            return Stream(lab, "b", "a", HOST4, port=80, to=PUBLISHED)
        case "to itself":
            return Stream(lab, "a", "a", HOST4, port=80, to=PUBLISHED)
        case "six":
            return Stream(lab, "a", "far", V6["far"], family=6)
    return Stream(lab, "a", "far", V4["far"])


@pytest.mark.parametrize("name", STOPS)
def test_changes_that_stop_a_flow_stop_it_soon(lab: FastLab, name: str) -> None:
    stop = STOPS[name]
    with _stream(lab, stop.path) as stream:
        assert stream.flows() and (stop.path == "to itself" or is_fast(lab, "v-a"))
        lab.run(["bash", "-c", stop.put])
        try:
            in_force = time.monotonic() + GRACE
            received = stream.back if stop.answers_only else stream.there
            assert stream.is_cut(received)
            assert received.latest <= in_force, (
                f"sent {received.latest - in_force + GRACE:.2f} s after the change"
            )
        finally:  # others use the lab too
            lab.run(["bash", "-c", stop.take])
        assert stream.flows(), "it does not go on"
        assert stop.path == "to itself" or is_fast(lab, "v-a"), lab.fast and lab.fast.status()


@pytest.mark.parametrize("forget", ["-D -p udp", "-F"])
def test_deleted_connections_pass_the_current_rules(fresh: FastLab, forget: str) -> None:
    lab = fresh
    lab.run("ip addr add 192.0.2.77/24 dev up0")
    with Stream(lab, "a", "far", V4["far"]) as out:
        assert is_fast(lab, "v-a")
        lab.run("iptables -t nat -I POSTROUTING -s 172.17.0.2 -o up0 -j SNAT --to-source 192.0.2.77")
        assert out.flows()
        assert {address for address, _ in out.there.sources} == {HOST4}, "connections keep their translation"
        assert is_fast(lab, "v-a")
        lab.run(f"conntrack {forget}")
        assert eventually(lambda: out.there.sources[-1][0] == "192.0.2.77")
        assert is_fast(lab, "v-a")
        assert lab.conntrack("udp", "dst=192.0.2.77")


def test_all_rules_flushed(fresh: FastLab) -> None:
    """Nothing is translated then, so only traffic inside the host must continue."""
    lab = fresh
    with (
        Stream(lab, "a", "b", V4["b"], port=6001) as bridged,
        Stream(lab, "c", "b", V4["b"], port=6002, answered=False) as other,
    ):
        assert is_fast(lab, "v-a", "v-b")
        lab.run("nft flush ruleset")
        assert "vnet_fastpath" in lab.run("nft list tables")
        assert bridged.flows() and other.flows()
        assert is_fast(lab, "v-a", "v-b")
        bridged.stop()
        assert bridged.lost() == []


def test_br_netfilter_is_turned_on_and_off_under_load(fresh: FastLab) -> None:
    """br_netfilter off: a DROP has no effect; on: it stops the stream."""
    lab = fresh
    sysctls = "net.bridge.bridge-nf-call-iptables={0} net.bridge.bridge-nf-call-ip6tables={0}"
    with Stream(lab, "a", "b", V4["b"]) as stream:
        assert is_fast(lab, "v-a", "v-b")
        lab.run("sysctl -qw " + sysctls.format(0))
        assert stream.flows() and is_fast(lab, "v-a", "v-b")
        lab.run("iptables -I FORWARD -s 172.17.0.2 -d 172.17.0.3 -j DROP")
        assert stream.flows() and is_fast(lab, "v-a", "v-b")
        lab.run("sysctl -qw " + sysctls.format(1))
        in_force = time.monotonic() + GRACE  # the sysctl sends no event: it is read with each renewal
        assert stream.is_cut(stream.there)
        assert stream.there.latest <= in_force
        lab.run("iptables -D FORWARD 1")
        assert stream.flows() and is_fast(lab, "v-a", "v-b")


def test_the_guard_of_the_second_uplink_detects_leaks() -> None:
    with FastLab() as lab:
        guard = Guard(lab.host, "world", "eth1")
        lab.run("ip route replace 198.51.100.0/24 via 203.0.113.2")
        lab.run("iptables -t nat -F POSTROUTING")
        lab.run("ping -c1 -W1 198.51.100.2", inside="a", check=False)
        assert eventually(guard.leaked)
        guard.close()
        assert lab.leaked()
