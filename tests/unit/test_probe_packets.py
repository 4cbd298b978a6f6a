"""Decode packets of probes, recognize them, and filter them as the kernel does."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Callable

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from core.model.probe import PacketTuple
from core.probe.packets import Marker, decode_frame, decode_packet, make_payload, socket_filter

A, B, A6, B6 = "10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"
MARK, SEQ = b"\xfe\xdc\xba\x98\x76\x54\x32\x10", 0xFEDCBA98
_ETHERNET = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")


def marker(protocol: str, family: int = 4) -> Marker:
    numbers = {"tcp": 6, "udp": 17, "icmp": 1 if family == 4 else 58}
    src, dst = (A, B) if family == 4 else (A6, B6)
    mark = MARK[:4] if protocol == "tcp" else MARK
    return Marker(PacketTuple(protocol, src, 5000, dst, 80), family, numbers[protocol], mark)


def _ip(family: int, back: bool = False) -> Packet:
    src, dst = ((A, B) if family == 4 else (A6, B6))[:: -1 if back else 1]
    return IP(src=src, dst=dst, ttl=60) if family == 4 else IPv6(src=src, dst=dst, hlim=60)


def _request(protocol: str, family: int) -> Packet:
    if protocol == "tcp":
        return _ip(family) / TCP(sport=5000, dport=80, seq=SEQ, flags="S")
    if protocol == "udp":
        return _ip(family) / UDP(sport=5000, dport=80) / Raw(MARK)
    echo = ICMP(type=8, id=5000, seq=80) if family == 4 else ICMPv6EchoRequest(id=5000, seq=80)
    return _ip(family) / echo / Raw(MARK)


def _answer(protocol: str, family: int) -> Packet:
    if protocol == "tcp":
        return _ip(family, True) / TCP(sport=80, dport=5000, ack=SEQ + 1, flags="SA")
    if protocol == "udp":
        return _ip(family, True) / UDP(sport=80, dport=5000) / Raw(b"something else")
    echo = ICMP(type=0, id=5000, seq=80) if family == 4 else ICMPv6EchoReply(id=5000, seq=80)
    return _ip(family, True) / echo / Raw(MARK)


def _error(protocol: str, family: int) -> Packet:
    about = Raw(bytes(_request(protocol, family)))
    message = ICMP(type=3, code=13) if family == 4 else ICMPv6DestUnreach(code=1)
    return _ip(family, True) / message / about


def _passes(program: bytes, data: bytes) -> bool:
    """Return whether the kernel's filter passes a packet: that of a Unix socket is the same."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with left, right:
        buffer = ctypes.create_string_buffer(program, len(program))
        fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
        right.setsockopt(socket.SOL_SOCKET, 26, fprog)  # SO_ATTACH_FILTER
        right.setblocking(False)
        try:
            left.send(data)
            return right.recv(65536) == data
        except OSError:
            return False


WAYS: dict[str, Callable[[Packet], bytes]] = {
    "ethernet": lambda packet: bytes(_ETHERNET / packet),
    "vxlan": lambda packet: bytes(
        _ETHERNET
        / IP(src="192.0.2.1", dst="192.0.2.2")
        / UDP(sport=1, dport=4789)
        / VXLAN(vni=77)
        / _ETHERNET
        / packet
    ),
}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp"])
@pytest.mark.parametrize("way", WAYS)
def test_roles(way: str, protocol: str, family: int) -> None:
    ours, program = marker(protocol, family), socket_filter(marker(protocol, family))
    for role, build in (("request", _request), ("answer", _answer), ("error", _error)):
        data = WAYS[way](build(protocol, family))
        frame = decode_frame(data)
        assert frame is not None and ours.role_of(frame.packet) == role, role
        assert frame.vni == (77 if way == "vxlan" else -1)
        assert _passes(program, data), role
    packet = bytes(_request(protocol, family))
    decoded = decode_packet(packet)
    assert decoded is not None and (decoded.ttl, decoded.length) == (60, len(packet))
    assert decoded.addresses == ours.addresses
    assert _passes(program, packet), "on a link without Ethernet header"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp"])
def test_other_packets(protocol: str, family: int) -> None:
    ours, program = marker(protocol, family), socket_filter(marker(protocol, family))
    others = [
        _ip(family) / TCP(sport=5000, dport=80, seq=SEQ - 1, flags="S"),
        _ip(family, True) / TCP(sport=80, dport=5001, ack=SEQ - 7, flags="SA"),
        _ip(family) / UDP(sport=5000, dport=80) / Raw(MARK[::-1]),
        _ip(family, True) / UDP(sport=80, dport=5001) / Raw(MARK[::-1]),
    ]
    for other in others:
        data = bytes(_ETHERNET / other)
        frame = decode_frame(data)
        assert frame is not None and ours.role_of(frame.packet) is None
        assert not _passes(program, data)


def test_translated_packets() -> None:
    ours = marker("tcp")
    request = decode_packet(bytes(IP(src="1.1.1.1", dst=B) / TCP(sport=9, dport=8080, seq=SEQ, flags="S")))
    assert request is not None and ours.role_of(request) == "request"
    echoed = decode_packet(bytes(IP(src=B, dst="1.1.1.1") / UDP(sport=8080, dport=9) / Raw(MARK)))
    assert echoed is not None
    udp, sent = marker("udp"), PacketTuple("udp", "1.1.1.1", 9, B, 8080)
    assert udp.role_of(echoed, [sent]) == "answer", "an echo server's payload is the request's"


def test_acknowledgement_wraps() -> None:
    ours = Marker(PacketTuple("tcp", A, 5000, B, 80), 4, 6, b"\xff\xff\xff\xff")
    answer = decode_packet(bytes(IP(src=B, dst=A) / TCP(sport=80, dport=5000, ack=0, flags="SA")))
    assert answer is not None and ours.role_of(answer) == "answer"


def test_headers() -> None:
    frame = decode_frame(bytes(_ETHERNET / Dot1Q(vlan=12) / Dot1Q(vlan=13) / _request("tcp", 4)))
    assert frame is not None and frame.vlan == 12 and frame.packet.flag_names == "SYN"
    assert (frame.src_mac, frame.dst_mac) == ("02:00:00:00:00:01", "02:00:00:00:00:02")
    extended = IPv6(src=A6, dst=B6) / IPv6ExtHdrDestOpt() / TCP(sport=5000, dport=80, seq=SEQ)
    packet = decode_packet(bytes(extended))
    assert packet is not None and packet.mark == MARK[:4]
    assert decode_frame(bytes(_ETHERNET / ARP())) is None


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp"])
def test_cut_packets(protocol: str, family: int) -> None:
    for build in (_request, _answer, _error):
        data = WAYS["vxlan"](build(protocol, family))
        for end in range(len(data)):
            frame = decode_frame(data[:end])
            assert frame is None or marker(protocol, family).role_of(frame.packet) in (
                None, "request", "answer", "error",
            )  # fmt: skip


def test_payloads() -> None:
    assert len(make_payload("udp", 80)) == 8 and len(make_payload("icmp", 0, 100)) == 100
    assert make_payload("udp", 80) != make_payload("udp", 80)
