"""Packets of unknown flows: conntrack says whether and how, the routes say where; whole packets and flows
compared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.packet import Packet

from bpf import layout
from tests.datapath.rig import REDIRECT, TO_KERNEL, Rig, changed, plain
from tests.support.host import ThrowawayHost

pytestmark = pytest.mark.root

CONTAINER = layout.PORT_BRIDGED | layout.PORT_CONTAINER | layout.PORT_IPTABLES | layout.PORT_PEER
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
    """A bridge with two containers' ports and an uplink, neighbours and routes set by hand."""

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
        """An entry for a packet in original direction; the reply's source, destination and ports are
        given."""
        net = packet.payload
        l4 = "tcp" if net.payload.name == "TCP" else "udp"
        given = {"mark": str(PASSED), "status": "ASSURED,SEEN_REPLY", "state": "ESTABLISHED"} | words
        command = [
            "conntrack", "-I", "-p", l4, "-s", net.src, "-d", net.dst, "-r", reply[0], "-q", reply[1],
            "--sport", str(net.sport), "--dport", str(net.dport), "--reply-port-src", str(reply[2]),
            "--reply-port-dst", str(reply[3]), "-t", "100", "-m", given["mark"], "-u", given["status"],
        ]  # fmt: skip
        self.host.run(command + (["--state", given["state"]] if l4 == "tcp" else []))


@pytest.fixture
def lab(inside_host: ThrowawayHost) -> Iterator[Lab]:
    made = Lab(inside_host)
    yield made
    made.rig.close()


def out(l4: str, family: int, to: str = "far", payload: bytes = b"hello") -> Packet:
    """From the container to somewhere behind the gateway."""
    addresses = ADDRESSES[family]
    return plain(
        l4, family, payload, src=addresses["c1"], dst=addresses[to], eth_src=MACS["c1"], eth_dst=BRIDGE
    )


BOTH = pytest.mark.parametrize("family", [4, 6])
L4 = pytest.mark.parametrize("l4", ["tcp", "udp"])


def masquerade(lab: Lab, l4: str, family: int, **words: str) -> Packet:
    addresses = ADDRESSES[family]
    packet = out(l4, family)
    lab.track(packet, (addresses["far"], addresses["host"], 443, 61000), **words)
    return packet


@L4
@BOTH
def test_masqueraded_out_and_back(lab: Lab, l4: str, family: int) -> None:
    addresses = ADDRESSES[family]
    packet = masquerade(lab, l4, family)
    expected = changed(packet, src=addresses["host"], sport=61000, eth_src=UPLINK, eth_dst=MACS["w"], hops=63)
    outcome = lab.rig.run(packet, "p1")
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
    outcome = lab.rig.run(packet, "up0")
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
    outcome = lab.rig.run(packet, "p1")
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
    flags = layout.PORT_BRIDGED | layout.PORT_CONTAINER | layout.PORT_L2
    lab.rig.port("p1", flags, "b0", BRIDGE)
    assert lab.rig.run(packet, "p1").verdict == "FAST"
    lab.rig.port("p1", flags | layout.PORT_ISOLATED, "b0", BRIDGE)
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
def test_what_conntrack_does_not_vouch_for(lab: Lab, verdict: str, words: dict[str, str]) -> None:
    packet = masquerade(lab, "tcp", 4, **words)
    outcome = lab.rig.run(packet, "p1")
    assert (outcome.verdict, outcome.result, outcome.packet) == (verdict, TO_KERNEL, bytes(packet))


def test_one_direction_alone_is_no_leave_for_the_other(lab: Lab) -> None:
    packet = masquerade(lab, "tcp", 4, mark=str(0x01000000))
    assert lab.rig.run(packet, "p1").verdict == "FAST"
    addresses = ADDRESSES[4]
    answer = plain("tcp", 4, src=addresses["far"], dst=addresses["host"], sport=443, dport=61000,
                   eth_src=MACS["w"], eth_dst=UPLINK)  # fmt: skip
    assert lab.rig.flow_of(answer) is None
    assert lab.rig.run(answer, "up0").verdict == "GENERATION"


def test_no_entry_no_flow(lab: Lab) -> None:
    assert lab.rig.run(out("udp", 4), "p1").verdict == "NO_CONNTRACK"


@BOTH
def test_a_spoofed_source_gains_nothing(lab: Lab, family: int) -> None:
    addresses = ADDRESSES[family]
    packet = masquerade(lab, "tcp", family)
    for fields in ({"eth_src": MACS["c2"]}, {"eth_src": MACS["c1"]}):
        spoofed = plain(
            "tcp", family, b"hello", src=addresses["c1"], dst=addresses["far"], eth_dst=BRIDGE, **fields
        )
        assert lab.rig.run(spoofed, "p2").verdict == "SOURCE", "another container's address"
    wrong_mac = plain(
        "tcp", family, b"hello", src=addresses["c1"], dst=addresses["far"], eth_src=MACS["c2"], eth_dst=BRIDGE
    )
    assert lab.rig.run(wrong_mac, "p1").verdict == "SOURCE"
    assert lab.rig.run(packet, "p1").verdict == "FAST"


@BOTH
def test_an_uplink_that_answers_would_not_leave_by(lab: Lab, family: int) -> None:
    addresses = ADDRESSES[family]
    packet = plain("udp", family, src=addresses["c2"], dst=addresses["host"], sport=5555, dport=8080,
                   eth_src=MACS["w"], eth_dst=UPLINK)  # fmt: skip
    lab.track(packet, (addresses["c1"], addresses["c2"], 80, 5555))
    assert lab.rig.run(packet, "up0").verdict == "SOURCE"


def test_reasons_of_the_way_out(lab: Lab) -> None:
    packet = masquerade(lab, "udp", 4)

    def verdict() -> str:
        lab.rig.configure(epoch=int(lab.rig.config["epoch"][0]) + 1)
        return lab.rig.run(packet, "p1").verdict

    lab.host.run("ip route replace unreachable default")
    assert verdict() == "NO_ROUTE"
    lab.host.run("ip route del unreachable default")
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
def test_several_next_hops_choose_for_what_leaves_the_host_alone(lab: Lab, family: int) -> None:
    packet = masquerade(lab, "udp", family)
    lab.rig.configure(flags=layout.HAS_MULTIPATH)
    outcome = lab.rig.run(packet, "p1")
    assert (outcome.verdict, outcome.packet) == ("MULTIPATH", bytes(packet))
    addresses = ADDRESSES[family]
    answer = plain("udp", family, src=addresses["far"], dst=addresses["host"], sport=443, dport=61000,
                   eth_src=MACS["w"], eth_dst=UPLINK)  # fmt: skip
    assert lab.rig.run(answer, "up0").verdict == "FAST"


@BOTH
def test_reasons_of_frames_and_ports(lab: Lab, family: int) -> None:
    """Not for this host, behind no port that is known, back to the port it came in by, into a tunnel."""
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


def test_a_route_with_an_encapsulation_is_the_kernels(lab: Lab) -> None:
    packet = masquerade(lab, "udp", 4)
    lab.host.run("ip route replace default encap ip id 5 dst 192.0.2.9 via 192.0.2.9 dev up0")
    assert lab.rig.run(packet, "p1").verdict == "TUNNEL"


def test_an_address_kept_for_capture(lab: Lab) -> None:
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
    packet = masquerade(lab, "udp", 4)
    assert lab.rig.run(packet, "p1").verdict == "FAST"
    host.run("ip route replace default via 198.51.100.9")
    lab.rig.configure(epoch=2)
    assert lab.rig.run(packet, "p1").verdict == "ROUTE_CHANGED"


def test_young_udp_is_shown_to_the_kernel_now_and_then(lab: Lab) -> None:
    packet = masquerade(lab, "udp", 4, status="SEEN_REPLY")
    assert lab.rig.run(packet, "p1").verdict == "FAST"
    assert lab.rig.run(packet, "p1").verdict == "FAST"
    lab.rig.configure(recheck=0)
    assert lab.rig.run(packet, "p1").verdict == "NOT_ASSURED"
    lab.rig.configure(recheck=1000 * lab.rig.clock.hz)
    assert lab.rig.run(packet, "p1").verdict == "FAST"


def test_asking_renews_the_entrys_timer(lab: Lab) -> None:
    packet = masquerade(lab, "udp", 4)
    lab.rig.configure(udp_timeout=500_000)
    assert lab.rig.run(packet, "p1").verdict == "FAST"
    line = lab.host.run("conntrack -L -p udp")
    assert 400 < int(line.split()[2]) <= 500


def test_an_entry_deleted_is_a_flow_ended(lab: Lab) -> None:
    packet = masquerade(lab, "tcp", 4)
    assert lab.rig.run(packet, "p1").verdict == "FAST"
    lab.host.run("conntrack -D -p tcp")
    assert lab.rig.run(packet, "p1").verdict == "FAST", "until it is asked again"
    lab.rig.configure(recheck=0)
    assert lab.rig.run(packet, "p1").verdict == "NO_CONNTRACK"


def test_an_acknowledgement_alone_does_not_ask(lab: Lab) -> None:
    masquerade(lab, "tcp", 4)
    assert lab.rig.run(out("tcp", 4, payload=b""), "p1").verdict == "NO_DATA"


@L4
@BOTH
def test_published_to_a_neighbour_is_switched_although_translated(lab: Lab, l4: str, family: int) -> None:
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
    outcome = lab.rig.run(packet, "p1")
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
    back = lab.rig.run(answer, "p2")
    assert back.packet == bytes(changed(answer, src=addresses["host"], sport=8080))
