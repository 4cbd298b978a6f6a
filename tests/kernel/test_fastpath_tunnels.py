"""The fast path remembers the outer headers of tunnels, and the kernel decides about them."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from bpf import syscall
from core.netlink.clsact import LinkFilter
from core.netlink.netns import entered
from tests.kernel.test_fastpath_overlay import TUNNEL, Talk, accelerated, ends, is_fast
from tests.support.machine import Machine, ok
from tests.support.underlay import Underlay, joined, underlay
from tests.support.waiting import scaled, wait_until

pytestmark = [pytest.mark.root, pytest.mark.needs("fastpath")]

MESSAGES = 500
SO_NO_CHECK = 11  # asm-generic/socket.h: without a UDP checksum
ROLES = {("v-a", "container"), (TUNNEL, "tunnel"), ("up0", "uplink")}
KINDS = {"SOCK_STREAM": socket.IPPROTO_TCP, "SOCK_DGRAM": socket.IPPROTO_UDP}


@pytest.fixture
def pair() -> Iterator[Underlay]:
    """Start two hosts with the static overlay `blue`."""
    with joined(options="--ipv6") as under:
        yield under


def passed(host: Machine) -> dict[str, int]:
    """Return how many packets the kernel sent ("tx") and received ("rx") by the tunnel."""
    (found,) = host.json(f"ip -j -s link show {TUNNEL}")
    return {way: found["stats64"][way]["packets"] for way in ("tx", "rx")}


def by_kernel(talk: Talk, host: Machine, count: int = MESSAGES) -> dict[str, float]:
    """Exchange messages; return the part of packets that took the kernel's tunnel, by direction."""
    before = passed(host)
    assert talk.say(count) == "equal"
    return {way: (packets - before[way]) / count for way, packets in passed(host).items()}


def bypasses_tunnel(talk: Talk, host: Machine) -> bool:
    """Return whether nearly all packets pass a host without its tunnel's link."""
    return max(by_kernel(talk, host).values()) < 0.1


def takes_tunnel(talk: Talk, host: Machine) -> bool:
    """Return whether each message takes the kernel's tunnel, in both directions."""
    return min(by_kernel(talk, host).values()) >= 1


def is_stopped(talk: Talk) -> bool:
    """Return whether nothing arrives, long before the remembered headers would end by themselves."""
    time.sleep(scaled(0.2))
    return talk.say() == "silent"


def tunnel_reason(host: Machine) -> str:
    """Return why each packet of a host's tunnel passes the kernel, or ""."""
    return str(json.loads(ok(host, "fastpath status --json"))["tunnels"][TUNNEL])


@dataclass(frozen=True)
class Outer:
    """What the headers of a captured VXLAN packet say; `inner` is the packet inside."""

    macs: bytes
    tos: int
    fragment: int
    ttl: int
    addresses: bytes
    port: int
    vxlan: bytes
    inner: bytes


def parsed(frame: bytes) -> Outer:
    """Parse an IPv4 VXLAN packet, and check its lengths and header checksum."""
    ip, udp = frame[14:34], frame[34:42]
    total, _, fragment = struct.unpack_from(">HHH", ip, 2)
    assert ip[0] == 0x45 and total == len(frame) - 14
    words = sum(struct.unpack(">10H", ip))
    assert (words & 0xFFFF) + (words >> 16) == 0xFFFF
    source, _, length, check = struct.unpack(">4H", udp)
    assert (length, check) == (total - 20, 0)
    return Outer(frame[:12], ip[1], fragment, ip[8], ip[12:20], source, frame[42:50], frame[50:])


def is_vxlan(frame: bytes) -> bool:
    """Return whether a frame is a VXLAN packet with TCP or UDP over IPv4 inside."""
    return (
        frame[12:14] == b"\x08\0" and frame[23] == 17 and frame[36:38] == b"\x12\xb5" and frame[73] in (6, 17)
    )


@contextmanager
def captured(host: Machine, link: str = "up0") -> Iterator[Callable[[], list[Outer]]]:
    """Capture what a host sends by a link; the function returns the VXLAN packets so far."""
    with entered(f"/proc/{host.pid}/ns/net"):
        listening = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        listening.bind((link, 3))
    listening.setblocking(False)

    def read() -> list[Outer]:
        found = []
        while True:
            try:
                frame, (_, _, kind, *_) = listening.recvfrom(65536)
            except BlockingIOError:
                return found
            if kind == socket.PACKET_OUTGOING and is_vxlan(frame):
                found.append(parsed(frame))

    with listening:
        yield read


def sample(talk: Talk, host: Machine) -> Outer:
    """Exchange messages; return a packet that the host sent."""
    with captured(host) as sent:
        assert talk.say(10) == "equal"
        return sent()[-1]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_packets_pass_without_the_tunnels_link(pair: Underlay, kind: str, family: int) -> None:
    one, other = pair.hosts
    address = next(each for each in ends(pair) if (":" in each) == (family == 6))
    with Talk(one, "a", other, "b", address, kind) as talk:
        assert takes_tunnel(talk, one) and takes_tunnel(talk, other)
        with accelerated(pair):
            for host in pair.hosts:
                wait_until(lambda host=host: bypasses_tunnel(talk, host), "the remembered headers")  # type: ignore[misc]
            links = json.loads(ok(one, "fastpath status --json"))["links"]
            assert {link["name"]: link["role"] for link in links}.items() >= ROLES
            assert talk.say(3000) == "equal"
        wait_until(lambda: takes_tunnel(talk, one), "the kernel's tunnel")


@pytest.mark.needs("ethtool")
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("offload", ["on", "off"])
def test_bulk_arrives_unchanged(pair: Underlay, offload: str, family: int) -> None:
    """The uplink segments large frames, or the kernel does so before it."""
    one, other = pair.hosts
    for host in pair.hosts:
        features = ("tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation")
        host.run(f"ethtool -K up0 {' '.join(f'{each} {offload}' for each in features)}")
    address = next(each for each in ends(pair) if (":" in each) == (family == 6))
    with accelerated(pair), Talk(one, "a", other, "b", address, "SOCK_STREAM", largest=100_000) as talk:
        wait_until(lambda: by_kernel(talk, one)["tx"] < 0.1, "the remembered headers")
        sent = sent_bytes(one)
        assert by_kernel(talk, one, 2000)["tx"] < 0.1
        assert sent_bytes(one) - sent > 2000 * 40_000


def sent_bytes(host: Machine) -> int:
    """Return how many bytes have left a host by its uplink."""
    (found,) = host.json("ip -j -s link show up0")
    return int(found["stats64"]["tx"]["bytes"])


def test_the_headers_are_those_of_the_kernel(pair: Underlay) -> None:
    """Compare everything except length, identification and checksum, which parsed() checks.

    The types of service are none, and those with ECN: capable, and congestion experienced (RFC 6040).
    """
    one, other = pair.hosts
    address, services = ends(pair)[0], (0, 0x28, 0x02, 0x29, 0x03)
    with Talk(one, "a", other, "b", address, "SOCK_DGRAM", services) as talk:
        with captured(one) as sent:
            assert talk.say(250) == "equal"
            by_kernel = headers(sent())
        with accelerated(pair), captured(one) as sent:
            wait_until(lambda: bypasses_tunnel(talk, one), "the remembered headers")
            sent()
            assert talk.say(250) == "equal"
            assert headers(sent()) == by_kernel
    # Linux 6.12 sends 0x29 and 0x03 of a socket as 0x28 and 0x02.
    assert by_kernel.keys() >= {0, 0x28, 0x02}


def headers(packets: list[Outer]) -> dict[int, set[tuple[object, ...]]]:
    """Return what the outer headers say, by the inner type of service."""
    found: dict[int, set[tuple[object, ...]]] = {}
    for each in packets:
        words = (each.macs, each.tos, each.fragment, each.ttl, each.addresses, each.port, each.vxlan)
        found.setdefault(each.inner[15], set()).add(words)
    return found


@pytest.mark.parametrize(("hook", "at"), [("output", 0), ("input", 1), ("prerouting", 1), ("postrouting", 0)])
def test_a_rule_about_the_tunnels_packets_stops_them(pair: Underlay, hook: str, at: int) -> None:
    one, other = pair.hosts
    address = ends(pair)[0]
    host = pair.hosts[at]
    with accelerated(pair), Talk(one, "a", other, "b", address, "SOCK_DGRAM") as talk:
        wait_until(lambda: bypasses_tunnel(talk, host), "the remembered headers")
        host.run("nft add table inet mine")
        host.run(f"nft add chain inet mine c {{ type filter hook {hook} priority 0; }}")
        host.run("nft add rule inet mine c udp dport 4789 drop")
        assert is_stopped(talk)
        host.run("nft delete table inet mine")
        wait_until(lambda: talk.say() == "equal", "the connection")
        wait_until(lambda: bypasses_tunnel(talk, host), "the remembered headers")


def test_an_element_of_a_set_stops_them_within_a_second(pair: Underlay) -> None:
    one, other = pair.hosts
    address = ends(pair)[0]
    other.run("nft add table inet mine")
    other.run("nft add set inet mine blocked { type ipv4_addr; }")
    other.run("nft add chain inet mine c { type filter hook input priority 0; }")
    other.run("nft add rule inet mine c udp dport 4789 ip saddr @blocked drop")
    with accelerated(pair), Talk(one, "a", other, "b", address, "SOCK_DGRAM") as talk:
        wait_until(lambda: bypasses_tunnel(talk, other), "the remembered headers")
        other.run(f"nft add element inet mine blocked {{ {pair.address(one)} }}")
        wait_until(lambda: talk.say() == "silent", "the rule")


@pytest.mark.parametrize(
    ("hook", "rule", "kept"),
    [
        ("input", "udp dport 4789 limit rate 1000000/second accept", False),
        ("output", "meta mark set 7", False),
        ("input", "tcp dport 22 limit rate 3/minute accept", True),
        ("input", 'iifname "other" limit rate 3/minute accept', True),
        ("input", "udp dport 4789 counter accept", True),
    ],
)
def test_rules_that_match_single_packets_see_each(pair: Underlay, hook: str, rule: str, kept: bool) -> None:
    one, other = pair.hosts
    address = ends(pair)[0]
    one.run("nft add table inet mine")
    one.run(f"nft add chain inet mine c {{ type filter hook {hook} priority 0; }}")
    one.run(["nft", f"add rule inet mine c {rule}"])
    with accelerated(pair), Talk(one, "a", other, "b", address, "SOCK_DGRAM") as talk:
        wait_until(lambda: is_fast(talk, one, "v-a"), "the fast path")
        assert (tunnel_reason(one) == "") == kept
        if kept:
            wait_until(lambda: bypasses_tunnel(talk, one), "the remembered headers")
        else:
            assert takes_tunnel(talk, one)
            one.run("nft delete table inet mine")
            wait_until(lambda: bypasses_tunnel(talk, one), "the remembered headers")


def test_a_mac_behind_another_host_is_followed_at_once(pair: Underlay) -> None:
    one, other = pair.hosts
    address = ends(pair)[0]
    (inner,) = other.json("ip -j link show eth0", "b")
    with accelerated(pair), Talk(one, "a", other, "b", address, "SOCK_DGRAM") as talk:
        wait_until(lambda: bypasses_tunnel(talk, one), "the remembered headers")
        one.run(f"ip link set {TUNNEL} type vxlan nolearning")
        one.run(f"bridge fdb replace {inner['address']} dev {TUNNEL} dst 192.0.2.99 self")
        assert is_stopped(talk)
        one.run(f"bridge fdb replace {inner['address']} dev {TUNNEL} dst {pair.address(other)} self")
        wait_until(lambda: talk.say() == "equal", "the connection")
        wait_until(lambda: bypasses_tunnel(talk, one), "the remembered headers")


def test_a_mac_at_a_group_of_hosts_is_left_to_the_kernel(pair: Underlay) -> None:
    """An EVPN engine names several hosts for a MAC as a group of next hops; each packet may go to another."""
    one, other = pair.hosts
    address = ends(pair)[0]
    (inner,) = other.json("ip -j link show eth0", "b")
    entry = f"{inner['address']} dev {TUNNEL}"
    with accelerated(pair), Talk(one, "a", other, "b", address, "SOCK_DGRAM") as talk:
        wait_until(lambda: bypasses_tunnel(talk, one), "the remembered headers")
        one.run(f"ip link set {TUNNEL} type vxlan nolearning")
        one.run(f"ip nexthop add id 1 via {pair.address(other)} fdb")
        one.run("ip nexthop add id 2 group 1 fdb")
        one.run(f"bridge fdb del {entry} dst {pair.address(other)} self")
        one.run(f"bridge fdb add {entry} nhid 2 self")
        wait_until(lambda: by_kernel(talk, one)["tx"] >= 1, "the kernel's tunnel")
        one.run(f"bridge fdb del {entry} nhid 2 self")
        one.run(f"bridge fdb add {entry} dst {pair.address(other)} self")
        wait_until(lambda: bypasses_tunnel(talk, one), "the remembered headers")


def test_a_changed_route_is_followed(pair: Underlay) -> None:
    one, other = pair.hosts
    address = ends(pair)[0]
    with accelerated(pair), Talk(one, "a", other, "b", address, "SOCK_DGRAM") as talk:
        wait_until(lambda: bypasses_tunnel(talk, one), "the remembered headers")
        one.run(f"ip route add blackhole {pair.address(other)}")
        assert is_stopped(talk)
        one.run(f"ip route del blackhole {pair.address(other)}")
        wait_until(lambda: talk.say() == "equal", "the connection")


def test_another_sender_of_a_flows_packets_needs_the_kernels_consent() -> None:
    """A host of the underlay that a rule excludes can't send into a connection between two other hosts."""
    with underlay(3) as under:
        one, other, third = under.hosts
        for host in (one, other):
            ok(host, f"network join blue --remote {under.address(one)} --remote {under.address(other)}")
        address = ends(under)[0]
        other.run("nft add table inet mine")
        other.run("nft add chain inet mine c { type filter hook input priority 0; }")
        other.run(f"nft add rule inet mine c udp dport 4789 ip saddr {under.address(third)} drop")
        del under.hosts[2]
        with accelerated(under), Talk(one, "a", other, "b", address, "SOCK_DGRAM") as talk:
            wait_until(lambda: bypasses_tunnel(talk, other), "the remembered headers")
            payload = sample(talk, one)
            # The container leaves its checksum to the NIC, and zero stands for none (RFC 768).
            spoofed = payload.vxlan + payload.inner[:40] + bytes(2) + payload.inner[42:]
            with (
                entered(f"/proc/{third.pid}/ns/net"),
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
            ):
                sender.bind(("", payload.port))

                def arrive() -> bool:
                    before = received(other)
                    for _ in range(100):
                        sender.sendto(spoofed, (under.address(other), 4789))
                    return received(other) > before

                assert not arrive()
                other.run("nft delete table inet mine")
                wait_until(lambda: bypasses_tunnel(talk, other), "the remembered headers")
                wait_until(arrive, "the same packets without the rule")


def test_users_of_the_host_cant_send_a_flow_elsewhere(pair: Underlay) -> None:
    """A datagram that looks like the tunnel's, but isn't, has no effect on the packets after it."""
    one, other = pair.hosts
    address = ends(pair)[0]
    with accelerated(pair), Talk(one, "a", other, "b", address, "SOCK_DGRAM") as talk:
        wait_until(lambda: bypasses_tunnel(talk, one), "the remembered headers")
        payload = sample(talk, one)
        one.run("ip neigh add 192.0.2.99 lladdr 02:00:00:00:00:99 dev up0")
        with entered(f"/proc/{one.pid}/ns/net"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
            for _ in range(30):
                sender.sendto(payload.vxlan + payload.inner, ("192.0.2.99", 4789))
                assert talk.say(50) == "equal"
        assert bypasses_tunnel(talk, one)


def received(host: Machine, counter: str = "InDatagrams") -> int:
    """Return how many datagrams container b has received, or another of its counters."""
    lines = [
        line.split() for line in host.run("cat /proc/net/snmp", "b").splitlines() if line.startswith("Udp:")
    ]
    return int(dict(zip(*lines, strict=True))[counter])


def test_a_damaged_packet_is_noticed(pair: Underlay) -> None:
    """A NIC that doesn't know VXLAN says that the checksum is correct: that is about the outer one."""
    one, other = pair.hosts
    address = ends(pair)[0]
    with accelerated(pair), Talk(one, "a", other, "b", address, "SOCK_DGRAM") as talk:
        wait_until(lambda: bypasses_tunnel(talk, other), "the remembered headers")
        payload = sample(talk, one)
        damaged = payload.vxlan + payload.inner[:40] + b"\x12\x34" + payload.inner[42:]
        frame = headers_of(other, payload, len(damaged)) + damaged
        program = syscall.load_program(syscall.PROG_SCHED_CLS, CORRECT, "correct")
        with entered(f"/proc/{one.pid}/ns/net"):
            sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            sender.bind(("up0", 0))
            LinkFilter("nic", 1).attach(program, socket.if_nametoindex("up0"), egress=True)
        os.close(program)
        with sender:
            before = received(other), received(other, "InCsumErrors"), passed(other)["rx"]
            for _ in range(100):
                sender.send(frame)
            wait_until(lambda: received(other, "InCsumErrors") >= before[1] + 100, "the errors")
        assert received(other) == before[0] and passed(other)["rx"] < before[2] + 10


# bpf_csum_level(skb, BPF_CSUM_LEVEL_INC), as a driver reports one correct checksum; return TC_ACT_UNSPEC.
CORRECT = bytes.fromhex("b702000001000000 8500000087000000 b7000000ffffffff 9500000000000000")


def headers_of(host: Machine, packet: Outer, size: int) -> bytes:
    """Return outer headers of a packet with so many bytes after UDP's, as the kernel writes them."""
    ip = struct.pack(
        ">BBHHHBBH8s", 0x45, packet.tos, size + 28, 0, packet.fragment, packet.ttl, 17, 0, packet.addresses
    )
    words = sum(struct.unpack(">10H", ip))
    check = ~((words & 0xFFFF) + (words >> 16)) & 0xFFFF
    udp = struct.pack(">4H", packet.port, 4789, size + 8, 0)
    return packet.macs + b"\x08\0" + ip[:10] + check.to_bytes(2) + ip[12:] + udp


def test_tunnels_with_checksums_are_left_to_the_kernel(pair: Underlay) -> None:
    for host, far in zip(pair.hosts, reversed(pair.hosts), strict=True):
        (link,) = host.json(f"ip -j -d link show {TUNNEL}")
        assert link["linkinfo"]["info_data"]["udp_csum"] is False
        vni, own = link["linkinfo"]["info_data"]["id"], pair.address(host)
        host.run(f"ip link del {TUNNEL}")
        host.run(f"ip link add {TUNNEL} mtu 1450 type vxlan id {vni} local {own} dstport 4789 udpcsum")
        host.run(f"ip link set {TUNNEL} master {link['master']} up")
        host.run(f"bridge fdb append 00:00:00:00:00:00 dev {TUNNEL} dst {pair.address(far)}")
    one, other = pair.hosts
    address = ends(pair)[0]
    with accelerated(pair), Talk(one, "a", other, "b", address, "SOCK_STREAM") as talk:
        wait_until(lambda: is_fast(talk, one, "v-a", TUNNEL), "the fast path")
        assert talk.say(1000) == "equal"
        assert takes_tunnel(talk, one)
