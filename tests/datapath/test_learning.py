"""Packets of unknown flows: conntrack and routes decide.

Whole packets and flows are compared.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from scapy.layers.inet import TCP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from bpf import connections, layout, syscall
from bpf.syscall import RingBuffer
from core.netlink.client import NETFILTER, Netlink, attribute
from core.netlink.nfnetlink import header, nest
from tests.datapath.rig import REDIRECT, TO_KERNEL, Outcome, Rig, changed, flow_key, plain
from tests.support.host import ThrowawayHost

pytestmark = pytest.mark.root

ASKS = layout.LINK_IPTABLES | layout.LINK_IP6TABLES
CONTAINER = layout.LINK_BRIDGED | layout.LINK_CONTAINER | layout.LINK_PEER | ASKS
MACS = {"c1": "02:00:00:00:01:01", "c2": "02:00:00:00:01:02", "w": "02:00:00:00:02:01"}
BRIDGE, UPLINK = "02:00:00:00:0b:01", "02:00:00:00:0b:02"
ADDRESSES = {
    4: {"c1": "10.1.0.2", "c2": "10.1.0.3", "host": "192.0.2.1", "w": "192.0.2.9", "far": "203.0.113.5"},
    6: {
        "c1": "fd00:1::2",
        "c2": "fd00:1::3",
        "host": "2001:db8::1",
        "w": "2001:db8::9",
        "far": "2001:db8:f::5",
    },
}
PASSED = 0x11000000  # both directions, generation 1


class Lab:
    """A bridge with ports of two containers, an uplink, static neighbours and routes."""

    def __init__(self, host: ThrowawayHost) -> None:
        self.host = host
        run = host.run
        run(f"ip link add b0 address {BRIDGE} type bridge")
        for name in ("p1", "p2", "up0"):
            run(f"ip link add {name} type veth peer name far-{name}")
            run(f"ip link set far-{name} up")
        run(f"ip link set up0 address {UPLINK}")
        for name in ("p1", "p2"):
            run(f"ip link set {name} master b0 up")
        run("ip link set b0 up")
        run("ip link set up0 up")
        run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
        for family, bridge, up in ((4, "10.1.0.1/24", "192.0.2.1/24"), (6, "fd00:1::1/64", "2001:db8::1/64")):
            run(f"ip -{family} addr add {bridge} dev b0" + " nodad" * (family == 6))
            run(f"ip -{family} addr add {up} dev up0" + " nodad" * (family == 6))
            addresses = ADDRESSES[family]
            for name, link in (("c1", "b0"), ("c2", "b0"), ("w", "up0")):
                run(f"ip neigh add {addresses[name]} lladdr {MACS[name]} dev {link} nud permanent")
            run(f"ip -{family} route add default via {addresses['w']}")
        self.rig = Rig(host)
        for port, name in (("p1", "c1"), ("p2", "c2")):
            self.rig.port(port, CONTAINER, "b0", BRIDGE)
            self.rig.behind("b0", MACS[name], port)
            for family in (4, 6):
                self.rig.owner(port, ADDRESSES[family][name], MACS[name])
        self.rig.port("up0", 0, "up0", UPLINK, mtu=0)

    def track(self, packet: Packet, reply: tuple[str, str, int, int], **words: str) -> None:
        """Create an entry for a packet in original direction with this reply tuple."""
        net = packet.payload
        l4 = "tcp" if net.payload.name == "TCP" else "udp"
        given = {"mark": str(PASSED), "status": "ASSURED,SEEN_REPLY", "state": "ESTABLISHED"} | words
        command = [
            "conntrack", "-I", "-p", l4, "-s", net.src, "-d", net.dst, "-r", reply[0], "-q", reply[1],
            "--sport", str(net.sport), "--dport", str(net.dport), "--reply-port-src", str(reply[2]),
            "--reply-port-dst", str(reply[3]), "-t", "100", "-m", given["mark"], "-u", given["status"],
        ]  # fmt: skip
        self.host.run(command + (["--state", given["state"]] if l4 == "tcp" else []))
        if l4 == "tcp":
            assert connections.set_liberal(want_row(packet)) == 1


def want_row(packet: Packet) -> np.ndarray:
    """Return the row of layout.WANT that the program would write for a packet."""
    row, key = np.zeros(1, layout.WANT), flow_key(packet)[0]
    row["family"] = socket.AF_INET6 if IPv6 in packet else socket.AF_INET
    for name in ("src", "dst"):
        row[name][0][: len(key[name])] = key[name]
    for name in ("sport", "dport", "l4_proto"):
        row[name] = key[name]
    return row


@pytest.fixture
def lab(inside_host: ThrowawayHost) -> Iterator[Lab]:
    made = Lab(inside_host)
    yield made
    made.rig.close()


def outgoing(l4: str, family: int, to: str = "far", payload: bytes = b"hello") -> Packet:
    """Return a packet from the container to an address behind the gateway."""
    addresses = ADDRESSES[family]
    return plain(
        l4, family, payload, src=addresses["c1"], dst=addresses[to], eth_src=MACS["c1"], eth_dst=BRIDGE
    )


BOTH = pytest.mark.parametrize("family", [4, 6])
L4 = pytest.mark.parametrize("l4", ["tcp", "udp"])


def masquerade(lab: Lab, l4: str, family: int, **words: str) -> Packet:
    addresses = ADDRESSES[family]
    packet = outgoing(l4, family)
    lab.track(packet, (addresses["far"], addresses["host"], 443, 61000), **words)
    return packet


@L4
@BOTH
def test_masqueraded_out_and_back(lab: Lab, l4: str, family: int) -> None:
    addresses = ADDRESSES[family]
    packet = masquerade(lab, l4, family)
    expected = changed(packet, src=addresses["host"], sport=61000, eth_src=UPLINK, eth_dst=MACS["w"], hops=63)
    outcome = lab.rig.learn(packet, "p1")
    assert (outcome.verdict, outcome.result) == ("FAST", REDIRECT)
    assert outcome.packet == bytes(expected)
    flow = lab.rig.flow_of(packet)
    assert flow is not None
    assert (flow["out_ifindex"], flow["action"]) == (lab.rig.links["up0"], layout.ACTION_REDIRECT)
    answer = plain(
        l4,
        family,
        src=addresses["far"],
        dst=addresses["host"],
        sport=443,
        dport=61000,
        eth_src=MACS["w"],
        eth_dst=UPLINK,
    )
    known = lab.rig.flow_of(answer)
    assert known is not None, "the way back was learned with the way out"
    assert (known["out_ifindex"], known["action"]) == (lab.rig.links["p1"], layout.ACTION_PEER)
    back = lab.rig.run(answer, "up0")
    assert back.verdict == "FAST"
    assert back.packet == bytes(
        changed(answer, dst=addresses["c1"], dport=40000, eth_src=BRIDGE, eth_dst=MACS["c1"], hops=63)
    )


@L4
@BOTH
def test_published_port_from_outside(lab: Lab, l4: str, family: int) -> None:
    addresses = ADDRESSES[family]
    packet = plain(
        l4,
        family,
        src=addresses["far"],
        dst=addresses["host"],
        sport=5555,
        dport=8080,
        eth_src=MACS["w"],
        eth_dst=UPLINK,
    )
    lab.track(packet, (addresses["c1"], addresses["far"], 80, 5555))
    outcome = lab.rig.learn(packet, "up0")
    assert outcome.packet == bytes(
        changed(packet, dst=addresses["c1"], dport=80, eth_src=BRIDGE, eth_dst=MACS["c1"], hops=63)
    )
    answer = plain(
        l4,
        family,
        src=addresses["c1"],
        dst=addresses["far"],
        sport=80,
        dport=5555,
        eth_src=MACS["c1"],
        eth_dst=BRIDGE,
    )
    back = lab.rig.run(answer, "p1")
    assert back.packet == bytes(
        changed(answer, src=addresses["host"], sport=8080, eth_src=UPLINK, eth_dst=MACS["w"], hops=63)
    )


@L4
@BOTH
def test_same_bridge_is_switched_not_routed(lab: Lab, l4: str, family: int) -> None:
    addresses = ADDRESSES[family]
    packet = plain(
        l4, family, src=addresses["c1"], dst=addresses["c2"], eth_src=MACS["c1"], eth_dst=MACS["c2"], hops=1
    )
    lab.track(packet, (addresses["c2"], addresses["c1"], 443, 40000))
    outcome = lab.rig.learn(packet, "p1")
    assert (outcome.verdict, outcome.packet) == ("FAST", bytes(packet))
    flow = lab.rig.flow_of(packet)
    assert flow is not None
    assert (flow["out_ifindex"], flow["action"]) == (lab.rig.links["p2"], layout.ACTION_PEER)


@BOTH
def test_same_bridge_without_br_netfilter_needs_no_conntrack(lab: Lab, family: int) -> None:
    addresses = ADDRESSES[family]
    packet = plain(
        "udp", family, src=addresses["c1"], dst=addresses["c2"], eth_src=MACS["c1"], eth_dst=MACS["c2"]
    )
    assert lab.rig.run(packet, "p1").verdict == "NO_CONNTRACK"
    flags = layout.LINK_BRIDGED | layout.LINK_CONTAINER | layout.LINK_L2
    lab.rig.port("p1", flags, "b0", BRIDGE)
    assert lab.rig.run(packet, "p1").verdict == "FAST"
    lab.rig.port("p1", flags | layout.LINK_ISOLATED, "b0", BRIDGE)
    lab.rig.behind("b0", MACS["c2"], "p2", layout.MAC_PEER | layout.MAC_ISOLATED)
    lab.rig.configure(epoch=2)
    assert lab.rig.run(packet, "p1").verdict == "ISOLATED"


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("GENERATION", {"mark": "0"}),
        ("GENERATION", {"mark": str(0x22000000)}),
        ("GENERATION", {"mark": str(0x10000000)}),  # only answers passed
        ("NOT_ASSURED", {"status": "SEEN_REPLY"}),
        ("CLOSING", {"state": "FIN_WAIT"}),
        ("CLOSING", {"state": "TIME_WAIT"}),
        ("HELPER", {"status": "ASSURED,SEEN_REPLY,FIXED_TIMEOUT"}),
    ],
)
def test_packets_that_conntrack_does_not_confirm(lab: Lab, verdict: str, words: dict[str, str]) -> None:
    packet = masquerade(lab, "tcp", 4, **words)
    outcome = lab.rig.learn(packet, "p1")
    assert (outcome.verdict, outcome.result, outcome.packet) == (verdict, TO_KERNEL, bytes(packet))


def test_one_direction_does_not_admit_the_other(lab: Lab) -> None:
    packet = masquerade(lab, "tcp", 4, mark=str(0x01000000))
    assert lab.rig.learn(packet, "p1").verdict == "FAST"
    addresses = ADDRESSES[4]
    answer = plain("tcp", 4, src=addresses["far"], dst=addresses["host"], sport=443, dport=61000,
                   eth_src=MACS["w"], eth_dst=UPLINK)  # fmt: skip
    assert lab.rig.flow_of(answer) is None
    assert lab.rig.learn(answer, "up0").verdict == "GENERATION"


def test_without_an_entry_there_is_no_flow(lab: Lab) -> None:
    assert lab.rig.run(outgoing("udp", 4), "p1").verdict == "NO_CONNTRACK"


@BOTH
def test_spoofed_sources_are_not_cached(lab: Lab, family: int) -> None:
    """A container that sends from any address would replace the flows of all others."""
    flows = lab.rig.loaded.maps["flows4" if family == 4 else "flows6"]
    size = (layout.KEY4 if family == 4 else layout.KEY6).itemsize
    before = len(syscall.keys(flows, size))
    for number in range(100):
        source = f"10.77.0.{number}" if family == 4 else f"fd77::{number:x}"
        spoofed = plain(
            "udp",
            family,
            b"hello",
            src=source,
            dst=ADDRESSES[family]["far"],
            eth_src=MACS["c1"],
            eth_dst=BRIDGE,
        )
        assert lab.rig.run(spoofed, "p1").verdict == "SOURCE"
    assert len(syscall.keys(flows, size)) == before


@BOTH
def test_a_spoofed_source_gains_nothing(lab: Lab, family: int) -> None:
    addresses = ADDRESSES[family]
    packet = masquerade(lab, "tcp", family)
    for fields in ({"eth_src": MACS["c2"]}, {"eth_src": MACS["c1"]}):
        spoofed = plain(
            "tcp", family, b"hello", src=addresses["c1"], dst=addresses["far"], eth_dst=BRIDGE, **fields
        )
        lab.rig.run(spoofed, "p2")
        outcome = lab.rig.run_after_a_jiffy(spoofed, "p2")
        assert outcome.verdict == "SOURCE", "another container's address"
    wrong_mac = plain(
        "tcp", family, b"hello", src=addresses["c1"], dst=addresses["far"], eth_src=MACS["c2"], eth_dst=BRIDGE
    )
    assert lab.rig.run_after_a_jiffy(wrong_mac, "p1").verdict == "SOURCE"
    assert lab.rig.learn(packet, "p1").verdict == "FAST"


@BOTH
def test_packets_from_an_uplink_that_replies_would_not_use(lab: Lab, family: int) -> None:
    addresses = ADDRESSES[family]
    packet = plain("udp", family, src=addresses["c2"], dst=addresses["host"], sport=5555, dport=8080,
                   eth_src=MACS["w"], eth_dst=UPLINK)  # fmt: skip
    lab.track(packet, (addresses["c1"], addresses["c2"], 80, 5555))
    assert lab.rig.run(packet, "up0").verdict == "REVERSE_PATH"


def test_verdicts_of_routes_and_neighbours(lab: Lab) -> None:
    packet = masquerade(lab, "udp", 4)

    def verdict() -> str:
        lab.rig.configure(epoch=int(lab.rig.config["epoch"][0]) + 1)
        return lab.rig.run(packet, "p1").verdict

    for kind in ("blackhole", "unreachable", "prohibit"):
        lab.host.run(f"ip route replace {kind} default")
        assert verdict() == kind.upper()
    lab.host.run("ip route del default")
    assert verdict() == "LOCAL"
    lab.host.run("ip route add default via 192.0.2.77")
    assert verdict() == "NO_NEIGHBOUR"
    lab.host.run("ip route replace local 203.0.113.5 dev lo")
    assert verdict() == "LOCAL"
    lab.host.run("ip route del local 203.0.113.5 dev lo")
    lab.host.run("ip route replace default via 192.0.2.9")
    assert verdict() == "FAST"
    lab.rig.configure(route_mtu=1280)
    assert verdict() == "FAST"
    assert lab.rig.flow_of(packet)["mtu"] == 1280
    lab.host.run("sysctl -qw net.ipv4.conf.b0.forwarding=0")
    assert verdict() == "FORWARDING_OFF"


@BOTH
def test_several_next_hops_matter_only_for_outgoing_packets(lab: Lab, family: int) -> None:
    packet = masquerade(lab, "udp", family)
    lab.rig.configure(flags=layout.HAS_MULTIPATH)
    outcome = lab.rig.run(packet, "p1")
    assert (outcome.verdict, outcome.packet) == ("MULTIPATH", bytes(packet))
    addresses = ADDRESSES[family]
    answer = plain("udp", family, src=addresses["far"], dst=addresses["host"], sport=443, dport=61000,
                   eth_src=MACS["w"], eth_dst=UPLINK)  # fmt: skip
    assert lab.rig.run(answer, "up0").verdict == "FAST"


@BOTH
def test_verdicts_of_frames_and_ports(lab: Lab, family: int) -> None:
    """Frames for another host, an unknown port, the port they came from, a tunnel."""
    rig, addresses = lab.rig, ADDRESSES[family]
    aside = plain("udp", family, eth_src=MACS["w"], eth_dst=MACS["c2"], src=addresses["far"])
    assert rig.run(aside, "up0").verdict == "OTHER_HOST"
    unknown = plain("udp", family, src=addresses["c1"], dst=addresses["far"], eth_src=MACS["c1"],
                    eth_dst="02:00:00:00:09:09")  # fmt: skip
    lab.track(unknown, (addresses["far"], addresses["c1"], 443, 40000))
    outcome = rig.run(unknown, "p1")
    assert (outcome.verdict, outcome.packet) == ("NO_PORT", bytes(unknown))
    own = plain("udp", family, src=addresses["c1"], dst=addresses["host"], sport=5000, dport=8080,
                eth_src=MACS["c1"], eth_dst=BRIDGE)  # fmt: skip
    lab.track(own, (addresses["c1"], addresses["host"], 80, 5000))
    assert rig.run(own, "p1").verdict == "BRIDGED_DNAT"


def test_a_route_with_encapsulation_is_left_to_the_kernel(lab: Lab) -> None:
    packet = masquerade(lab, "udp", 4)
    lab.host.run("ip route replace default encap ip id 5 dst 192.0.2.9 via 192.0.2.9 dev up0")
    assert lab.rig.run(packet, "p1").verdict == "TUNNEL"


def test_a_captured_address(lab: Lab) -> None:
    packet = masquerade(lab, "udp", 4)
    assert lab.rig.run(packet, "p1").verdict == "FAST"
    lab.rig.capture(ADDRESSES[4]["far"])
    lab.rig.configure(epoch=2)
    assert lab.rig.run(packet, "p1").verdict == "CAPTURED"


def test_a_route_that_moves_a_translated_flow_asks_the_kernel_first(lab: Lab) -> None:
    host = lab.host
    host.run("ip link add up1 type veth peer name far-up1")
    host.run("ip link set far-up1 up")
    host.run("ip link set up1 up")
    host.run("ip addr add 198.51.100.1/24 dev up1")
    host.run("ip neigh add 198.51.100.9 lladdr 02:00:00:00:03:01 dev up1 nud permanent")
    lab.rig.read_links()
    lab.rig.port("up1", layout.LINK_OUT, "up1", UPLINK)
    packet = masquerade(lab, "udp", 4)
    assert lab.rig.run(packet, "p1").verdict == "FAST"
    host.run("ip route replace default via 198.51.100.9")
    lab.rig.configure(epoch=2)
    assert lab.rig.run(packet, "p1").verdict == "ROUTE_CHANGED"


def test_young_udp_flows_pass_the_kernel_periodically(lab: Lab) -> None:
    packet = masquerade(lab, "udp", 4, status="SEEN_REPLY")
    assert lab.rig.run(packet, "p1").verdict == "FAST"
    assert lab.rig.run(packet, "p1").verdict == "FAST"
    lab.rig.configure(recheck=0)
    assert lab.rig.run(packet, "p1").verdict == "NOT_ASSURED"
    lab.rig.configure(recheck=1000 * lab.rig.clock.hz)
    assert lab.rig.run(packet, "p1").verdict == "FAST"


def test_a_young_udp_flow_that_was_handed_back_becomes_fast_again(lab: Lab) -> None:
    """A new flow reuses the former memory, here that of the other direction."""
    packet = masquerade(lab, "udp", 4, status="SEEN_REPLY")
    lab.rig.flow(packet, "p1", action=layout.ACTION_NONE)
    assert lab.rig.run(packet, "p1").verdict == "FAST"


def remaining(lab: Lab, l4: str) -> int:
    """Return the remaining seconds of conntrack's only entry."""
    return int(lab.host.run(f"conntrack -L -p {l4}").split()[2])


def test_asking_conntrack_renews_the_entrys_timer(lab: Lab) -> None:
    packet = masquerade(lab, "udp", 4)
    assert remaining(lab, "udp") <= 100
    lab.rig.configure(udp_timeout=500_000, recheck=0)
    assert lab.rig.run(packet, "p1").verdict == "FAST"
    assert 400 < remaining(lab, "udp") <= 500


def test_a_deleted_entry_ends_the_flow(lab: Lab) -> None:
    packet = masquerade(lab, "tcp", 4)
    assert lab.rig.learn(packet, "p1").verdict == "FAST"
    lab.host.run("conntrack -D -p tcp")
    assert lab.rig.run(packet, "p1").verdict == "FAST", "until it is asked again"
    lab.rig.configure(recheck=0)
    assert lab.rig.run(packet, "p1").verdict == "NO_CONNTRACK"


def test_an_acknowledgement_does_not_ask_conntrack(lab: Lab) -> None:
    masquerade(lab, "tcp", 4)
    assert lab.rig.run(outgoing("tcp", 4, payload=b""), "p1").verdict == "NO_DATA"


def to_the_host(l4: str, family: int, payload: bytes = b"hello") -> Packet:
    """Return a packet from a container to the host, as to a proxy of published ports."""
    addresses = ADDRESSES[family]
    return plain(l4, family, payload, src=addresses["c1"], dst=addresses["host"], sport=5555, dport=8080,
                 eth_src=MACS["c1"], eth_dst=BRIDGE)  # fmt: skip


@L4
@BOTH
def test_packets_to_the_host_need_no_generation(lab: Lab, l4: str, family: int) -> None:
    addresses, packet = ADDRESSES[family], to_the_host(l4, family)
    lab.track(packet, (addresses["host"], addresses["c1"], 8080, 5555), mark="0")
    assert lab.rig.learn(packet, "p1").verdict == "LOCAL"
    flow = lab.rig.flow_of(packet)
    assert flow is not None and flow["action"] == layout.ACTION_KERNEL
    assert lab.rig.run(to_the_host(l4, family, b""), "p1").verdict == "LOCAL", "it need not ask again"


@BOTH
def test_acknowledgements_of_the_hosts_own_data(lab: Lab, family: int) -> None:
    addresses, request = ADDRESSES[family], to_the_host("tcp", family)
    answered = to_the_host("tcp", family, b"")
    lab.track(request, (addresses["host"], addresses["c1"], 8080, 5555), mark="0")
    assert lab.rig.run(request, "p1").verdict == "YOUNG"
    assert lab.rig.run(answered, "p1").verdict == "NO_DATA", "most have an answer by then"
    lab.rig.configure(recheck=16)
    began = lab.rig.clock.now()
    while lab.rig.clock.now() - began < 3:
        pass
    assert lab.rig.run(answered, "p1").verdict == "LOCAL"


@L4
@BOTH
def test_a_port_published_to_a_neighbour_is_switched_and_translated(lab: Lab, l4: str, family: int) -> None:
    addresses = ADDRESSES[family]
    packet = plain(
        l4,
        family,
        src=addresses["c1"],
        dst=addresses["host"],
        dport=8080,
        eth_src=MACS["c1"],
        eth_dst=BRIDGE,
        hops=1,
    )
    lab.track(packet, (addresses["c2"], addresses["c1"], 80, 40000))
    outcome = lab.rig.learn(packet, "p1")
    assert outcome.packet == bytes(changed(packet, dst=addresses["c2"], dport=80, eth_dst=MACS["c2"]))
    answer = plain(
        l4,
        family,
        src=addresses["c2"],
        dst=addresses["c1"],
        sport=80,
        dport=40000,
        eth_src=MACS["c2"],
        eth_dst=MACS["c1"],
    )
    back = lab.rig.learn(answer, "p2")
    assert back.packet == bytes(changed(answer, src=addresses["host"], sport=8080))


def answer_to(packet: Packet, family: int, l4: str = "tcp", **fields: str | int) -> Packet:
    """Return the reply to a masqueraded packet."""
    addresses = ADDRESSES[family]
    given = {"src": addresses["far"], "dst": addresses["host"], "sport": 443, "dport": 61000}
    return plain(l4, family, eth_src=MACS["w"], eth_dst=UPLINK, **(given | fields))


@BOTH
def test_first_data_is_left_to_the_kernel_and_the_next_asks_conntrack(lab: Lab, family: int) -> None:
    packet = masquerade(lab, "tcp", family)
    assert lab.rig.run(packet, "p1").verdict == "YOUNG"
    assert lab.rig.flow_of(packet) is None
    assert lab.rig.run(packet, "p1").verdict == "FAST"


@BOTH
def test_conntrack_has_to_be_liberal_first(lab: Lab, family: int) -> None:
    """Until then the kernel forwards the connection, and the daemon gets a request."""
    packet = masquerade(lab, "tcp", family)
    strict = bytes([0, 8])  # conntrack(8) makes entries that are liberal
    with Netlink(NETFILTER) as kernel:
        body = header(int(want_row(packet)["family"][0])) + connections.tuple_of(want_row(packet)[0])
        kernel.batch([(0x100, body + nest(4, nest(1, attribute(4, strict), attribute(5, strict))))])
    ring = RingBuffer(lab.rig.loaded.maps["wanted"], layout.WANTED_BYTES)
    ring.read()
    assert lab.rig.learn(packet, "p1").verdict == "YOUNG"
    (said,) = ring.read()
    expected = want_row(packet)
    expected["what"] = layout.WANT_LIBERAL
    assert np.frombuffer(said, layout.WANT) == expected
    assert connections.set_liberal(np.frombuffer(said, layout.WANT)) == 1
    assert lab.rig.run_after_a_jiffy(packet, "p1").verdict == "FAST"
    ring.close()


def test_only_acknowledged_data_extends_the_entry(lab: Lab) -> None:
    """Repeated data to a peer that disappeared gets the short timeout."""
    packet = masquerade(lab, "tcp", 4)
    answer = answer_to(packet, 4)
    lab.rig.configure(tcp_timeout=500_000, tcp_unanswered=300_000)
    assert lab.rig.learn(packet, "p1").verdict == "FAST"
    assert 400 < remaining(lab, "tcp") <= 500
    lab.rig.configure(recheck=0)
    for _ in range(2):  # the first has both numbers
        assert lab.rig.run(packet, "p1").verdict == "FAST"
    assert 200 < remaining(lab, "tcp") <= 300
    lab.rig.configure(recheck=1000 * lab.rig.clock.hz)
    answer[TCP].ack = packet[TCP].seq + len(packet[TCP].payload)
    assert lab.rig.run(answer, "up0").verdict == "FAST"  # asks at once
    assert 400 < remaining(lab, "tcp") <= 500


def test_a_keepalive_without_data_in_flight_extends_the_entry(lab: Lab) -> None:
    packet = masquerade(lab, "tcp", 4)
    answer = answer_to(packet, 4)
    lab.rig.configure(tcp_timeout=500_000, tcp_unanswered=300_000)
    assert lab.rig.learn(packet, "p1").verdict == "FAST"
    answer[TCP].ack = packet[TCP].seq + len(packet[TCP].payload)
    assert lab.rig.run(answer, "up0").verdict == "FAST"
    probe = outgoing("tcp", 4, payload=b"")
    probe[TCP].seq = answer[TCP].ack - 1
    lab.host.run("conntrack -U -p tcp --timeout 100")
    lab.rig.configure(recheck=0)
    for _ in range(3):
        assert lab.rig.run(probe, "p1").verdict == "FAST"
        assert 400 < remaining(lab, "tcp") <= 500


def test_a_ct_mark_that_no_rule_reads_may_change(lab: Lab) -> None:
    packet = masquerade(lab, "udp", 4)
    lab.rig.configure(recheck=0)
    assert lab.rig.run(packet, "p1").verdict == "FAST"
    with daemon_requests(lab) as asked_for:
        lab.host.run(f"conntrack -U -p udp --mark {PASSED | 1}/0xffffffff")
        assert lab.rig.run(packet, "p1").verdict == "FAST"
        assert asked_for() == set()


@pytest.mark.parametrize("known", [True, False], ids=["a known flow", "an unknown one"])
def test_rules_that_read_the_ct_mark_must_have_seen_it(lab: Lab, known: bool) -> None:
    """A connection whose mark changes after its admission passes the rules again."""

    def set_mark(mark: int) -> None:
        lab.host.run(f"conntrack -U -p udp --mark {mark}/0xffffffff")

    def verdict() -> str:
        return lab.rig.run(packet, "p1").verdict

    packet = masquerade(lab, "udp", 4)
    lab.rig.configure(recheck=0)
    if known:
        assert verdict() == "FAST"
    lab.rig.configure(flags=layout.READS_CT_MARKS)
    with daemon_requests(lab) as asked_for:
        set_mark(PASSED | 1)
        assert (verdict(), asked_for()) == ("GENERATION", {layout.WANT_RULES})
        assert (verdict(), asked_for()) == ("GENERATION", {layout.WANT_RULES}), "not cleared yet"
        set_mark(1)  # what the daemon does
        assert (verdict(), asked_for()) == ("GENERATION", set())
        set_mark(PASSED | 2)  # the rules accept it, but the mark changed before
        assert (verdict(), asked_for()) == ("GENERATION", {layout.WANT_RULES})
        set_mark(2)
        assert verdict() == "GENERATION"
        set_mark(PASSED | 2)
        assert (verdict(), asked_for()) == ("FAST", set())
        set_mark(2 * PASSED | 2)
        lab.rig.configure(generation=2)
        assert (verdict(), asked_for()) == ("FAST", set())


@contextmanager
def daemon_requests(lab: Lab) -> Iterator[Callable[[], set[int]]]:
    """Return the program's requests since the last call."""
    ring = RingBuffer(lab.rig.loaded.maps["wanted"], layout.WANTED_BYTES)
    ring.read()
    yield lambda: set(np.frombuffer(b"".join(ring.read()), layout.WANT)["what"].tolist())
    ring.close()


_POLICY = """table ip t {
    ct timeout long { protocol udp; policy = { replied : 999 }; }
    chain out { type filter hook output priority 0; ct timeout set "long"; }
}"""


def test_a_timeout_policy_is_left_to_the_kernel(lab: Lab) -> None:
    """Only an extension of the entry shows it, no status bit."""
    host = lab.host
    host.run(["nft", _POLICY])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (ADDRESSES[4]["w"], 443))
        port = sender.getsockname()[1]
    host.run(f"conntrack -U -p udp --orig-port-src {port} --mark {PASSED} -u SEEN_REPLY,ASSURED")
    host.run("ip addr del 192.0.2.1/24 dev up0")
    host.run("ip addr add 192.0.2.2/24 dev up0")
    lab.rig.owner("p1", "192.0.2.1", MACS["c1"])
    packet = plain("udp", 4, src="192.0.2.1", dst=ADDRESSES[4]["w"], sport=port, dport=443,
                   eth_src=MACS["c1"], eth_dst=BRIDGE)  # fmt: skip
    assert lab.rig.run(packet, "p1").verdict == "HELPER"


@pytest.mark.parametrize("flags", ["FA", "R"])
def test_a_fin_or_reset_far_from_the_acknowledged_number_is_dropped(lab: Lab, flags: str) -> None:
    """By any link; the kernel forwards one that is near."""
    packet = masquerade(lab, "tcp", 4)
    assert lab.rig.learn(packet, "p1").verdict == "FAST"
    assert lab.rig.run(answer_to(packet, 4), "up0").verdict == "FAST"  # acknowledges up to 2

    def ending(seq: int, **fields: str | int) -> Outcome:
        closing = plain("tcp", 4, b"", src=ADDRESSES[4]["c1"], dst=ADDRESSES[4]["far"], flags=flags,
                        eth_src=MACS["c1"], eth_dst=BRIDGE, **fields)  # fmt: skip
        closing[TCP].seq = seq % 2**32
        return lab.rig.run(changed(closing), "p1")

    for seq in (2**31, 3_000_000, -100_000):
        outcome = ending(seq)
        assert (outcome.verdict, outcome.result) == ("OUTSIDE", 2)
    assert lab.rig.run(packet, "p1").verdict == "FAST"
    outcome = ending(20)
    assert (outcome.verdict, outcome.result) == ("TCP_FLAGS", TO_KERNEL)


@BOTH
def test_flows_translated_to_a_captured_address_are_left_to_the_kernel(lab: Lab, family: int) -> None:
    addresses = ADDRESSES[family]
    packet = masquerade(lab, "udp", family)
    lab.rig.capture(addresses["c1"])
    answer = plain("udp", family, src=addresses["far"], dst=addresses["host"], sport=443, dport=61000,
                   eth_src=MACS["w"], eth_dst=UPLINK)  # fmt: skip
    for _ in range(2):
        assert lab.rig.run(answer, "up0").verdict == "CAPTURED"
        assert lab.rig.run(packet, "p1").verdict == "CAPTURED"
