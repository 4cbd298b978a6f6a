"""Blocks, summaries, filters, targets and the buffer of captures, without packets of a kernel."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet as ScapyPacket

from core.capture import CaptureError, filter, pcapng
from core.capture.buffer import PacketBuffer
from core.capture.encoder import Encoder
from core.capture.files import PacketFile
from core.capture.filter import compile_filter
from core.capture.packets import PacketTuple, summary, tuple_of
from core.capture.pcapng import ETHERNET, OUTGOING, RAW_IP, Packet, packet, packet_of
from core.capture.targets import Target, find_target, target_of
from core.flows import address_bytes
from core.model import container_ref, link_ref
from core.topology import Topology
from tests.support.capturing import blocks, packets
from tests.support.snapshots import small_host
from tui.cli.parser import make_parser

needs_libpcap = pytest.mark.needs("tcpdump")  # which brings libpcap
_ENDS = {"src": "10.0.0.2", "dst": "10.0.0.3"}
_V4, _V6 = Ether() / IP(**_ENDS), Ether() / IPv6()
_QUESTION = DNS(qd=DNSQR(qname="web.test", qtype="AAAA"))
_ECHO = ICMPv6EchoRequest(id=4, seq=2)
_SYN = TCP(sport=1, dport=80, flags="SA", seq=5, ack=6, window=7)


def info(made: ScapyPacket, link_type: int = ETHERNET) -> tuple[str, str, str, str]:
    data = bytes(made)
    return summary(link_type, data, len(data))[:4]


def test_scapy_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "one.pcapng"
    data = bytes(Ether() / IP(**_ENDS) / UDP(dport=53))
    one = Packet(0, 1_700_000_000_123_456_789, data, len(data) + 4, "wéb1 to db", OUTGOING)
    head = pcapng.section("vnet-tui", "Linux", "a test") + pcapng.interface(
        ETHERNET, 64, "eth0", "veth", b"\2" * 6
    )
    path.write_bytes(head + packet(one) + pcapng.statistics(0, 1, 2, 5, 3, 2))
    (read,) = packets(path)
    assert bytes(read) == data and read.wirelen == len(data) + 4 and read.sniffed_on == "eth0"
    assert read.comments[0].decode() == "wéb1 to db" and str(read.time) == "1700000000.123456789"
    assert packet_of(packet(one)) == one
    assert [kind for kind, _ in blocks(path.read_bytes())] == [0x0A0D0D0A, 1, 6, 5]


def test_texts_of_any_content_are_written(tmp_path: Path) -> None:
    one = Packet(0, 1, b"x", 1, "\udcff" + "é" * 5000 + "\0")
    assert len(packet(one)) < 5000 and blocks(packet(one)) and packet_of(packet(one)).comment.startswith("?é")


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (_V4 / _SYN, ("TCP", "[SYN, ACK] Len=0 Seq=5 Ack=6 Win=7")),
        (_V4 / UDP(sport=9, dport=9) / b"abc", ("UDP", "Len=3")),
        (_V4 / UDP() / _QUESTION, ("DNS", "query AAAA web.test")),
        (_V4 / ICMP(type=3, code=1) / b"12345678", ("ICMP", "destination-unreachable code 1 Len=16")),
        (Ether() / IP(**_ENDS, frag=10) / b"12345678", ("HOPOPT", "fragment, Len=8")),
        (Ether() / Dot1Q(vlan=7) / Dot1Q(vlan=8) / IP() / UDP(dport=9), ("UDP", "VLAN 7 VLAN 8 Len=0")),
        (_V6 / IPv6ExtHdrHopByHop() / _ECHO, ("ICMPv6", "echo-request id=4 seq=2 Len=8")),
        (_V6 / IPv6ExtHdrFragment(offset=5, nh=17) / b"12345678", ("UDP", "fragment, Len=8")),
        (Ether() / ARP(psrc="10.0.0.2", pdst="10.0.0.3"), ("ARP", "who has 10.0.0.3? asked by 10.0.0.2")),
        (Ether(type=0x88CC) / b"12", ("LLDP", "Len=16")),
    ],
)  # fmt: skip
def test_summaries(made: ScapyPacket, expected: tuple[str, str]) -> None:
    assert info(made)[2:] == expected


def test_ends_have_ports_and_tunnels_have_no_ethernet() -> None:
    assert info(IP(**_ENDS) / TCP(sport=1, dport=80), RAW_IP)[:2] == ("10.0.0.2:1", "10.0.0.3:80")
    ends = tuple_of(ETHERNET, bytes(Ether() / IPv6(src="fd00::1", dst="fd00::2") / UDP(sport=5, dport=6)))
    assert ends == PacketTuple(17, address_bytes("fd00::1"), 5, address_bytes("fd00::2"), 6)


def test_no_packet_is_too_damaged_to_be_shown() -> None:
    source = random.Random(12)
    whole = [
        bytes(Ether() / Dot1Q(vlan=7) / IP(**_ENDS) / TCP()),
        bytes(_V6 / IPv6ExtHdrHopByHop() / UDP(dport=53) / DNS(qd=DNSQR(qname="web.test"))),
        bytes(Ether() / ARP()),
    ]
    for data in whole:
        for size in range(len(data) + 1):
            for link_type in (ETHERNET, RAW_IP):
                cut = bytearray(data[:size])
                assert summary(link_type, bytes(cut), len(data)).protocol
                for _ in range(3 if size else 0):
                    cut[source.randrange(size)] = source.randrange(256)
                assert summary(link_type, bytes(cut), len(data)).protocol
                tuple_of(link_type, bytes(cut))


# ---- the ring's blocks


def ring_block(frames: list[tuple[bytes, int, int]]) -> bytes:
    """Return a block as the kernel fills it: (frame, kind, VLAN tag or 0)."""
    made = b""
    for frame, kind, vlan in frames:
        size = 68 + len(frame) + -len(frame) % 8
        status = 1 | (0x50 if vlan else 0)
        head = struct.pack(
            "=6I2HIIHH8x", size, 5, 7, len(frame), len(frame), status, 68, 82, 0, vlan, 0x8100, 0
        )
        made += head + struct.pack("=HHiHBB8s", 17, 0, 3, 1, kind, 6, b"") + frame + bytes(-len(frame) % 8)
    return (
        struct.pack("=II", 1, 0) + struct.pack("=4I", 1, len(frames), 48, 48 + len(made)) + bytes(24) + made
    )


def test_packets_of_a_block_are_encoded_with_comments() -> None:
    asked: list[PacketTuple] = []

    def comment(ends: PacketTuple) -> tuple[str, bool]:
        asked.append(ends)
        return f"to port {ends.dport}", True

    one, other = (bytes(Ether() / IP(**_ENDS) / UDP(sport=5, dport=port)) for port in (80, 81))
    arp = bytes(Ether() / ARP())
    encoder = Encoder(2, ETHERNET, comment)
    records = encoder.encode(ring_block([(one, 0, 0), (other, 4, 7), (one, 0, 0), (arp, 1, 0)]))
    found = [packet_of(block) for _, block in records]
    tagged = other[:12] + bytes.fromhex("81000007") + other[12:]
    assert [each.data for each in found] == [one, tagged, one, arp]
    assert [each.comment for each in found] == ["to port 80", "to port 81", "to port 80", ""]
    assert [each.kind for each in found] == [0, 4, 0, 1] and len(asked) == 2
    assert {each.at for each in found} == {5_000_000_007} and {each.interface for each in found} == {2}


def test_unfinished_comments_are_made_again() -> None:
    answers = iter([("web", False), ("web (nginx[1])", False), ("web", True)])
    encoder = Encoder(0, ETHERNET, lambda ends: next(answers))
    block = ring_block([(bytes(Ether() / IP(**_ENDS) / UDP(sport=5, dport=6)), 0, 0)])
    said = []
    for _ in range(3):
        said.append(packet_of(encoder.encode(block)[0][1]).comment)
        encoder.renew()
    assert said == ["web", "web (nginx[1])", "web (nginx[1])"], "the socket has been closed"


def test_loopback_shows_each_packet_once() -> None:
    frame = bytes(Ether() / IP() / UDP())
    encoder = Encoder(0, ETHERNET, None, only_incoming=True)
    assert len(encoder.encode(ring_block([(frame, OUTGOING, 0), (frame, 0, 0)]))) == 1


# ---- memory and files


def test_the_buffer_forgets_the_oldest() -> None:
    buffer = PacketBuffer(most_packets=10, most_bytes=500)
    buffer.add([(at, bytes(10)) for at in range(8)])
    assert buffer.span == (0, 8)
    buffer.add([(at, bytes(10)) for at in range(8, 20)])
    assert buffer.span == (10, 20) and [at for at, _ in buffer.records(12, 14)] == [12, 13]
    buffer.add([(20, bytes(480))])
    assert buffer.span == (18, 21) and buffer.records(0, 5) == []


def test_a_ring_does_not_remove_a_file_that_is_not_its_own(tmp_path: Path) -> None:
    made = PacketFile(tmp_path / "a.pcapng", b"head", lambda: b"tail", 20, ring=1)
    first = tmp_path / "a-00001.pcapng"
    first.unlink()
    first.write_text("another program's")
    assert made.add([(0, b"12345678"), (1, b"12345678")]) == ""
    made.close()
    assert first.read_text() == "another program's"
    assert (tmp_path / "a-00002.pcapng").read_bytes() == b"head12345678tail"


# ---- filters


@needs_libpcap
def test_filters_are_compiled_by_libpcap() -> None:
    data = bytes(Ether() / IP(**_ENDS) / UDP(sport=5, dport=53))
    one = compile_filter("udp port 53", ETHERNET, 1000)
    assert one.in_kernel and one.accepts(data, len(data))
    assert not compile_filter("tcp", ETHERNET, 1000).accepts(data, len(data))
    assert not compile_filter("vlan 7", ETHERNET, 1000).in_kernel
    with pytest.raises(CaptureError, match=r"can't compile the filter 'port': .*syntax.*Try: man"):
        compile_filter("port", ETHERNET, 1000)


@pytest.fixture
def no_libpcap(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(filter, "_LIBRARIES", ("libpcap.so.missing",))
    filter._libpcap.cache_clear()
    yield
    filter._libpcap.cache_clear()


def test_without_libpcap_only_filters_are_refused(no_libpcap: None) -> None:
    with pytest.raises(CaptureError) as found:
        compile_filter("tcp", ETHERNET, 1000)
    assert str(found.value) == (
        "can't compile the filter: libpcap is not installed. Try: apt-get install libpcap0.8"
    )
    assert compile_filter("", ETHERNET, 1000).in_kernel


# ---- targets


def names(target: Target) -> set[str]:
    return {link.name for link in target.links}


def test_targets_of_names_and_refs() -> None:
    topology = Topology(small_host())
    web = next(one for one in topology.containers.values() if one.name == "web1")
    assert names(find_target(topology, "web1")) == {"web1/eth0"}
    assert names(target_of(topology, container_ref(web.runtime, web.id))) == {"web1/eth0"}
    assert names(find_target(topology, "web1/eth0")) == {"web1/eth0"}
    network = next(one for one in topology.networks if topology.members(one))
    bridge = topology.bridge_link(network)
    assert bridge is not None and names(find_target(topology, network.name)) == {bridge.name}
    ports = {port.name for port in topology.ports_of(bridge.key)}
    assert names(find_target(topology, network.name, ports=True)) == ports
    link = find_target(topology, bridge.name)
    assert names(link) == {bridge.name} and names(target_of(topology, link_ref(bridge.key))) == {bridge.name}


@pytest.mark.parametrize("text", ["web1x", "10.0.0.2:1-10.0.0.3:2", "[fd00::1]:5->[fd00::2]:80", "\x1b[2J"])
def test_unknown_targets(text: str) -> None:
    with pytest.raises(CaptureError) as found:
        find_target(Topology(small_host()), text)
    assert str(found.value).startswith("can't capture ") and "Try: " in str(found.value)
    assert str(found.value).isprintable()


@pytest.mark.parametrize("words", ["-c 0", "-c x", "--ring -1", "--for 25h", "--max-size 3G", "-s 0"])
def test_options_have_limits(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        make_parser().parse_args(["capture", "web1", *words.split()])
    assert ended.value.code == 2 and "Traceback" not in capsys.readouterr().err


def test_a_filter_may_follow_options() -> None:
    options = make_parser().parse_args(["capture", "-w", "a.pcapng", "web1", "tcp", "port", "80"])
    assert (options.what, options.filter, options.file) == ("web1", ["tcp", "port", "80"], "a.pcapng")
