"""Packets that aren't plain, known or allowed go to the kernel unchanged."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest
from scapy.layers.dns import DNS
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from bpf import layout
from bpf.layout import VERDICTS
from tests.datapath.rig import CLIENT, GATEWAY, ROUTER, SERVER, TO_KERNEL, Rig, changed, plain

pytestmark = pytest.mark.root

NUMBERS = {verdict.name: verdict.number for verdict in VERDICTS}
HEAD = Ether(src=CLIENT, dst=GATEWAY)


def v4(**fields: object) -> Packet:
    """Build an IPv4 header of the usual flow."""
    return HEAD / IP(src="10.1.0.2", dst="192.0.2.9", **fields)


def v6(following: Packet | None = None) -> Packet:
    """Build an IPv6 header of the usual flow, and an extension header."""
    made = HEAD / IPv6(src="fd00:1::2", dst="2001:db8::9")
    return made if following is None else made / following


def to(mac: str) -> Packet:
    """Build the usual datagram to another MAC address."""
    return Ether(src=CLIENT, dst=mac) / v4().payload / UDP_HEADER / DATA


TCP_HEADER = TCP(sport=40000, dport=443, flags="PA")
UDP_HEADER = UDP(sport=40000, dport=443)
DATA = Raw(b"0123456789abcdef")

NOT_PLAIN: dict[str, tuple[str, Callable[[], Packet]]] = {
    "arp": ("NOT_IP", lambda: HEAD / ARP(pdst="10.1.0.1")),
    "vlan": ("VLAN", lambda: HEAD / Dot1Q(vlan=5) / IP(src="10.1.0.2", dst="192.0.2.9") / UDP_HEADER / DATA),
    "broadcast": ("MULTICAST", lambda: to("ff:ff:ff:ff:ff:ff")),
    "multicast": ("MULTICAST", lambda: to("01:00:5e:00:00:01")),
    "options": ("OPTIONS", lambda: v4(options=[IPOption_NOP()]) / UDP_HEADER / DATA),
    "first fragment": ("FRAGMENT", lambda: v4(flags="MF") / UDP_HEADER / DATA),
    "later fragment": ("FRAGMENT", lambda: v4(frag=100) / UDP_HEADER / DATA),
    "icmp": ("PROTOCOL", lambda: v4() / ICMP() / DATA),
    "sctp": ("PROTOCOL", lambda: v4() / SCTP(sport=40000, dport=443)),
    "syn": ("TCP_FLAGS", lambda: v4() / TCP(sport=40000, dport=443, flags="S")),
    "syn ack": ("TCP_FLAGS", lambda: v4() / TCP(sport=40000, dport=443, flags="SA")),
    "fin": ("TCP_FLAGS", lambda: v4() / TCP(sport=40000, dport=443, flags="FA") / DATA),
    "rst": ("TCP_FLAGS", lambda: v4() / TCP(sport=40000, dport=443, flags="R")),
    "no flags": ("TCP_FLAGS", lambda: v4() / TCP(sport=40000, dport=443, flags="") / DATA),
    "urgent only": ("TCP_FLAGS", lambda: v4() / TCP(sport=40000, dport=443, flags="U") / DATA),
    "hop by hop": ("OPTIONS", lambda: v6(IPv6ExtHdrHopByHop()) / UDP_HEADER / DATA),
    "destination options": ("OPTIONS", lambda: v6(IPv6ExtHdrDestOpt()) / UDP_HEADER / DATA),
    "routing header": ("OPTIONS", lambda: v6(IPv6ExtHdrRouting()) / UDP_HEADER / DATA),
    "fragment header": ("FRAGMENT", lambda: v6(IPv6ExtHdrFragment()) / UDP_HEADER / DATA),
    "icmp6": ("PROTOCOL", lambda: v6() / ICMPv6EchoRequest()),
    "wrong header sum": ("MALFORMED", lambda: v4(chksum=0x1234) / UDP_HEADER / DATA),
    "header too short": ("MALFORMED", lambda: v4(ihl=4) / UDP_HEADER / DATA),
    "version 5": ("MALFORMED", lambda: v4(version=5) / UDP_HEADER / DATA),
    "longer than it is": ("MALFORMED", lambda: v4(len=200) / UDP_HEADER / DATA),
    "shorter than its header": ("MALFORMED", lambda: v4(len=19) / UDP_HEADER / DATA),
    "no room for tcp": ("MALFORMED", lambda: v4(len=30) / TCP_HEADER / DATA),
    "tcp header too short": ("MALFORMED", lambda: v4() / TCP(dport=443, flags="PA", dataofs=4) / DATA),
    "tcp header too long": ("MALFORMED", lambda: v4() / TCP(sport=40000, dport=443, flags="PA", dataofs=15)),
    "udp too long": ("MALFORMED", lambda: v4() / UDP(sport=40000, dport=443, len=100) / DATA),
    "udp too short": ("MALFORMED", lambda: v4() / UDP(sport=40000, dport=443, len=7) / DATA),
    "ipv6 payload too long": ("MALFORMED", lambda: HEAD / IPv6(plen=99) / UDP_HEADER),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_not_plain(rig: Rig, name: str) -> None:
    verdict, build = NOT_PLAIN[name]
    packet = bytes(build())
    family = 6 if packet[12:14] == b"\x86\xdd" else 4
    for l4 in ("tcp", "udp"):  # a flow that would forward it, were it plain
        known = plain(l4, family)
        rig.flow(known, "p1", changed(known, eth_src=SERVER, eth_dst=ROUTER, hops=63))
    outcome = rig.run(packet, "p1")
    assert (outcome.verdict, outcome.result, outcome.packet) == (verdict, TO_KERNEL, packet)


@pytest.mark.parametrize("gso_size", [0, 1000])
@pytest.mark.parametrize(("jumbo", "verdict"), [(True, "OPTIONS"), (False, "MALFORMED")])
def test_no_frame_below_64_kb_has_a_jumbo_header(rig: Rig, jumbo: bool, verdict: str, gso_size: int) -> None:
    """The kernel drops it: only larger frames have 0 in the header's length."""
    known = plain("tcp", 6)
    rig.flow(known, "p1", changed(known, eth_src=SERVER, eth_dst=ROUTER, hops=63))
    segment = bytes(TCP_HEADER / Raw(bytes(2000)))
    header = struct.pack("!BBBBI", 6, 0, 0xC2, 4, len(segment) + 8) if jumbo else b""
    packet = bytes(HEAD / IPv6(src="fd00:1::2", dst="2001:db8::9", plen=0, nh=0 if jumbo else 6))
    packet += header + segment
    outcome = rig.run(packet, "p1", gso_size)
    assert (outcome.verdict, outcome.result, outcome.packet) == (verdict, TO_KERNEL, packet)


@pytest.mark.parametrize(
    ("verdict", "configuration", "fields"),
    [
        ("LEASE", {"deadline": 1}, {}),
        ("PAUSED", {"generation": 0, "epoch": 2}, {}),
        ("PORT", {"epoch": 2}, {}),
        ("PORT", {}, {"in_ifindex": 1}),
        ("PORT", {}, {"action": layout.ACTION_NONE}),
        ("PORT", {}, {"checked": -2000}),
        ("LOCAL", {}, {"action": layout.ACTION_KERNEL, "rewrite": NUMBERS["LOCAL"]}),
    ],
)
def test_an_invalid_flow(
    rig: Rig, verdict: str, configuration: dict[str, int], fields: dict[str, int]
) -> None:
    packet = plain("udp", 4)
    if "checked" in fields:
        fields = {"checked": rig.jiffies(ago=-fields["checked"])}
    rig.flow(packet, "p1", changed(packet, eth_src=SERVER, eth_dst=ROUTER, hops=63), **fields)
    if verdict == "PAUSED":
        rig.port("p1", layout.LINK_CONTAINER)
    rig.configure(**configuration)
    outcome = rig.run(packet, "p1")
    assert (outcome.verdict, outcome.result, outcome.packet) == (verdict, TO_KERNEL, bytes(packet))


@pytest.fixture
def tracking(rig: Rig) -> Iterator[Rig]:
    """Return the rig; conntrack is emptied afterwards."""
    yield rig
    rig.host.run("conntrack -F")


@pytest.mark.parametrize("ago", [0, 1], ids=["just asked", "asked a second ago"])
@pytest.mark.parametrize("flags", ["S", "FA", "R", "RA"])
def test_a_closing_packet_hands_both_directions_back(tracking: Rig, flags: str, ago: int) -> None:
    """It makes no difference whether conntrack has to be asked."""
    rig = tracking
    packet = plain("tcp", 4)
    there = changed(packet, src="198.51.100.7", sport=61000, eth_src=SERVER, eth_dst=ROUTER, hops=63)
    back = plain(
        "tcp", 4, src="192.0.2.9", dst="198.51.100.7", sport=443, dport=61000, eth_src=ROUTER, eth_dst=SERVER
    )
    asked = rig.jiffies(ago)
    rig.track(packet, there)
    rig.flow(packet, "p1", there, checked=asked)
    answer = changed(back, dst="10.1.0.2", dport=40000, eth_src=GATEWAY, eth_dst=CLIENT, hops=63)
    rig.flow(back, "up0", answer, checked=asked)
    packet[TCP].seq, back[TCP].ack = 1000, 1100
    assert rig.run(packet, "p1").verdict == rig.run(back, "up0").verdict == "FAST"
    closing = plain("tcp", 4, flags=flags)
    closing[TCP].seq = 1100
    assert rig.run(closing, "p1").verdict == "TCP_FLAGS"
    for each, ended in ((packet, layout.ACTION_RESET if "R" in flags else layout.ACTION_NONE), (back, 0)):
        flow = rig.flow_of(each)
        assert flow is not None
        assert flow["action"] == ended
        assert flow["packets"] == 1, "what was counted stays to be read"


# What is sent before (the number of 100 bytes in that direction, or BACK), the number of a RST in that
# direction, its verdict and the flow's action: conntrack accepts an exact one as the end, and none that
# can't be exact.
BACK = -1
_EXACT = ("TCP_FLAGS", layout.ACTION_RESET)
_PERHAPS = ("TCP_FLAGS", layout.ACTION_NONE)
_BEYOND = ("TCP_FLAGS", layout.ACTION_REDIRECT)
RESETS = {
    "where the other side's acknowledgements are": ((1000, BACK), 1100, _EXACT),
    "one before": ((1000, BACK), 1099, ("OUTSIDE", layout.ACTION_REDIRECT)),
    "one after": ((1000, BACK), 1101, _BEYOND),
    "right behind its own data": ((BACK, 1100), 1200, _EXACT),
    "behind data that was answered otherwise": ((1000, BACK, 1100, BACK), 1200, _PERHAPS),
    "in the middle of such data": ((1000, BACK, 1100, BACK), 1150, _PERHAPS),
    "behind data that never came": ((1000, BACK), 1200, _BEYOND),
}


@pytest.mark.parametrize("name", RESETS)
def test_only_an_exact_reset_ends_a_connection(tracking: Rig, name: str) -> None:
    before, number, (verdict, action) = RESETS[name]
    rig = tracking
    packets = {
        "there": plain("tcp", 4, b"x" * 100),
        "back": plain("tcp", 4, src="192.0.2.9", dst="10.1.0.2", sport=443, dport=40000),
    }
    rig.track(packets["there"], packets["there"])
    for each in packets.values():
        rig.flow(each, "p1")
    packets["back"][TCP].seq, packets["back"][TCP].ack = 5000, 1100
    for each in before:
        packets["there"][TCP].seq = each
        sent = packets["back" if each == BACK else "there"]
        assert rig.run_after_a_jiffy(sent, "p1").verdict == "FAST"
    closing = plain("tcp", 4, b"", flags="R")
    closing[TCP].seq = number
    assert rig.run(closing, "p1").verdict == verdict
    assert rig.flow_of(packets["there"])["action"] == action


@pytest.mark.parametrize("flags", ["F", "FR", "RU", "SF", "SR"])
def test_invalid_flags_end_no_connection(rig: Rig, flags: str) -> None:
    """Conntrack ignores such packets."""
    packet = plain("tcp", 4)
    rig.flow(packet, "p1", changed(packet, eth_src=SERVER, eth_dst=ROUTER, hops=63))
    assert rig.run(plain("tcp", 4, flags=flags), "p1").verdict == "TCP_FLAGS"
    assert rig.flow_of(packet)["action"] == layout.ACTION_REDIRECT


def test_another_sender_cannot_use_the_flow(rig: Rig) -> None:
    packet = plain("udp", 4)
    rig.flow(packet, "p1", changed(packet, eth_src=SERVER, eth_dst=ROUTER, hops=63))
    rig.port("p1", layout.LINK_BRIDGED | layout.LINK_CONTAINER | layout.LINK_IPTABLES, "b0")
    rig.port("p2", layout.LINK_BRIDGED | layout.LINK_CONTAINER | layout.LINK_IPTABLES, "b0")
    rig.owner("p1", "10.1.0.2", CLIENT)
    rig.owner("p2", "10.1.0.3", SERVER)
    other_mac = plain("udp", 4, eth_src=SERVER)
    assert rig.run(other_mac, "p1").verdict == "SOURCE"
    assert rig.run(packet, "p2").verdict == "SOURCE"
    assert rig.run(other_mac, "p2").verdict == "SOURCE"
    assert rig.run(packet, "p1").verdict == "FAST", "and it takes nothing from its owner"


def test_dns_packets_are_among_the_examples(rig: Rig) -> None:
    packet = Ether(bytes(v4() / UDP(sport=40000, dport=53) / DNS()))
    rig.flow(packet, "p1")
    assert rig.run(packet, "p1").verdict == "FAST"
