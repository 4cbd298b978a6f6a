"""Decode captured packets, and recognize those that belong to a probe.

A probe has a mark that NAT leaves as it is: TCP's initial sequence number, or the first bytes of the payload
of UDP and ICMP echo. Its answer and ICMP errors about it contain the mark as well; only an answer by UDP is
recognized by its ports. Formats: RFC 791, 8200, 9293, 768, 792, 4443, 7348.
"""

from __future__ import annotations

import secrets
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from core.model.probe import PacketTuple, Protocol, Role

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
_NAMES = {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMPV6: "icmp"}
ECHO_REQUESTS, ECHO_REPLIES = {ICMP: 8, ICMPV6: 128}, {ICMP: 0, ICMPV6: 129}
# Types of ICMP and ICMPv6 messages that contain the packet that they are about.
_ERRORS = {ICMP: (3, 4, 5, 11, 12), ICMPV6: (1, 2, 3, 4)}
_ETHERNET_SIZE, _VLAN_TYPES = 14, (0x8100, 0x88A8)
_IPV4, _IPV6 = 0x0800, 0x86DD
_VXLAN_PORTS = (4789, 8472)
_VXLAN_SIZE = 8
# From the outer Ethernet header of VXLAN over IPv4 to the inner one: Ethernet, IPv4, UDP, VXLAN.
_VXLAN_SHIFT = 50
_EXTENSIONS = (0, 43, 44, 60)  # extension headers of IPv6 before the transport header
_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
_SYN, _RST, _ACK = 0x02, 0x04, 0x10
_DNS_PORT = 53
ICMP_ERROR_SIZE = 8  # of the ICMP header before the packet that an error is about
_PAYLOAD = 16  # bytes that distinguish packets


@dataclass(frozen=True, slots=True)
class Packet:
    """One decoded IP packet; `inner` is the one that an ICMP error is about.

    `addresses` has 0 for the ports of an ICMP error, and of a fragment. `mark` are the bytes where a probe
    has its mark, `acknowledged` TCP's acknowledgement number; `icmp` is (type, code). `number` is IPv4's
    identification, `payload` the first bytes after the transport header (of ICMP: after its identifier)."""

    addresses: PacketTuple
    ttl: int
    length: int
    flags: int = 0
    mark: bytes = b""
    acknowledged: int = 0
    icmp: tuple[int, int] | None = None
    inner: Packet | None = None
    number: int = 0
    payload: bytes = b""

    @property
    def identity(self) -> tuple[object, ...]:
        """What a packet keeps when it is routed, translated, or cut into segments."""
        mark = self.mark if self.addresses.protocol == "tcp" else b""
        return (self.addresses.protocol, self.number, mark, self.acknowledged, self.icmp, self.payload)

    def is_like(self, other: Packet) -> bool:
        """Return whether both have the same identity, as far as `other` has a payload."""
        return self.identity[:-1] == other.identity[:-1] and self.payload.startswith(other.payload)

    @property
    def flag_names(self) -> str:
        """TCP's flags as Wireshark writes them."""
        return ", ".join(name for bit, name in enumerate(_FLAGS) if self.flags & 1 << bit)


@dataclass(frozen=True, slots=True)
class Frame:
    """A packet with its link's headers; without VXLAN `vni` is -1."""

    packet: Packet
    src_mac: str = ""
    dst_mac: str = ""
    vlan: int = 0
    vni: int = -1


def decode_frame(data: bytes) -> Frame | None:
    """Decode an Ethernet frame, through VXLAN; None if it holds no IP packet."""
    if len(data) < _ETHERNET_SIZE:
        return None
    kind, at, vlan = int.from_bytes(data[12:14]), _ETHERNET_SIZE, 0
    while kind in _VLAN_TYPES and len(data) >= at + 4:
        vlan = vlan or int.from_bytes(data[at : at + 2]) & 0xFFF
        kind, at = int.from_bytes(data[at + 2 : at + 4]), at + 4
    if kind not in (_IPV4, _IPV6):
        return None
    packet = decode_packet(data[at:])
    if packet is None:
        return None
    frame = Frame(packet, data[6:12].hex(":"), data[:6].hex(":"), vlan)
    return _through_vxlan(frame, data, at) or frame


def _through_vxlan(frame: Frame, data: bytes, at: int) -> Frame | None:
    """Return the frame with the inner packet of VXLAN; None for other frames."""
    packet = frame.packet
    if packet.addresses.protocol != "udp" or packet.addresses.dport not in _VXLAN_PORTS:
        return None
    start = at + (20 if data[at] >> 4 == 4 else 40) + 8
    header = data[start : start + _VXLAN_SIZE]
    inner = decode_frame(data[start + _VXLAN_SIZE :])
    if len(header) < _VXLAN_SIZE or inner is None:
        return None
    return replace(frame, packet=inner.packet, vni=int.from_bytes(header[4:7]))


def decode_packet(data: bytes) -> Packet | None:
    """Decode an IPv4 or IPv6 packet, which may be cut off; None for anything else."""
    try:
        return _decode_ipv4(data) if data[0] >> 4 == 4 else _decode_ipv6(data) if data[0] >> 4 == 6 else None
    except (IndexError, struct.error, ValueError):
        return None


def _decode_ipv4(data: bytes) -> Packet | None:
    length, number, fragment = struct.unpack_from("!HHH", data, 2)
    src, dst = (socket.inet_ntop(socket.AF_INET, data[at : at + 4]) for at in (12, 16))
    start = (data[0] & 15) * 4
    # Short frames end in padding; BIG TCP has a length of 0.
    rest = b"" if fragment & 0x1FFF else data[start : length or None]
    packet = _decode_transport(data[9], src, dst, data[8], length, rest)
    return replace(packet, number=number) if packet else None


def _decode_ipv6(data: bytes) -> Packet | None:
    (payload,) = struct.unpack_from("!H", data, 4)
    src, dst = (socket.inet_ntop(socket.AF_INET6, data[at : at + 16]) for at in (8, 24))
    proto, start = data[6], 40
    while proto in _EXTENSIONS:
        size = 8 if proto == 44 else (data[start + 1] + 1) * 8
        proto, start = data[start], start + size
    rest = data[start : 40 + payload if payload else None]
    return _decode_transport(proto, src, dst, data[7], 40 + payload, rest)


def _decode_transport(proto: int, src: str, dst: str, ttl: int, length: int, data: bytes) -> Packet | None:
    name = _NAMES.get(proto)
    if name is None:
        return None
    ports = struct.unpack_from("!HH", data) if len(data) >= 4 and proto in (TCP, UDP) else (0, 0)
    addresses = PacketTuple(name, src, ports[0], dst, ports[1])
    packet = Packet(addresses, ttl, length)
    if proto == TCP:
        acknowledged = int.from_bytes(data[8:12]) if len(data) >= 14 else 0
        flags, start = (data[13], data[12] >> 4 << 2) if len(data) >= 14 else (0, len(data))
        payload = data[start : start + _PAYLOAD]
        return replace(packet, mark=data[4:8], acknowledged=acknowledged, flags=flags, payload=payload)
    if proto == UDP or len(data) < 2:
        return replace(packet, mark=data[8:16], payload=data[8 : 8 + _PAYLOAD])
    packet = replace(packet, icmp=(data[0], data[1]), payload=data[6 : 6 + _PAYLOAD])
    if data[0] in _ERRORS[proto]:
        return replace(packet, inner=decode_packet(data[ICMP_ERROR_SIZE:]))
    identity = struct.unpack_from("!HH", data, 4) if len(data) >= 8 else (0, 0)
    named = replace(addresses, sport=identity[0], dport=identity[1])
    return replace(packet, addresses=named, mark=data[8:16])


@dataclass(frozen=True, slots=True)
class Marker:
    """The addresses of a probe as it was sent, and its mark: 4 bytes of TCP, else 8.

    `family` is 4 or 6, `proto` the number of the transport protocol."""

    addresses: PacketTuple
    family: int
    proto: int
    mark: bytes

    @property
    def icmp(self) -> int:
        """The protocol number of ICMP errors."""
        return ICMP if self.family == 4 else ICMPV6

    @property
    def mark_offset(self) -> int:
        """Where the mark is, in bytes from the transport header on."""
        return 4 if self.proto == TCP else 8

    @property
    def acknowledgement(self) -> bytes:
        """TCP's acknowledgement number in the answer."""
        return ((int.from_bytes(self.mark) + 1) % (1 << 32)).to_bytes(4)

    def role_of(self, packet: Packet, requests: Collection[PacketTuple] = ()) -> Role | None:
        """Return what a packet is to the probe; None if it isn't part of it.

        `requests` are the probe's tuples seen so far, by which an answer by UDP is recognized."""
        if packet.inner is not None:
            return "error" if self._is_request(packet.inner) else None
        if self._is_answer(packet, requests):
            return "answer"
        return "request" if self._is_request(packet) else None

    def _is_request(self, packet: Packet) -> bool:
        if packet.addresses.protocol != self.addresses.protocol:
            return False
        if packet.icmp and packet.icmp[0] != ECHO_REQUESTS[self.icmp]:
            return False
        if not packet.mark and packet.addresses == self.addresses:
            return True  # quoted by an error without payload
        return bool(packet.mark) and self.mark.startswith(packet.mark[: len(self.mark)])

    def _is_answer(self, packet: Packet, requests: Collection[PacketTuple]) -> bool:
        addresses = packet.addresses
        if self.proto == TCP:
            acknowledged = packet.acknowledged == int.from_bytes(self.acknowledgement)
            is_first = packet.flags & (_SYN | _RST) and packet.flags & _ACK
            return addresses.protocol == "tcp" and acknowledged and bool(is_first)
        if self.proto == UDP:
            sent = (self.addresses, *requests)
            return addresses.protocol == "udp" and addresses.reverse in sent and addresses not in sent
        return bool(packet.icmp) and packet.icmp[0] == ECHO_REPLIES[self.icmp] and packet.mark == self.mark  # type: ignore[index]


def make_payload(protocol: Protocol, port: int, size: int = 8) -> bytes:
    """Return random bytes for UDP and ICMP; for port 53 a query for the root servers."""
    if protocol == "udp" and port == _DNS_PORT and size == 8:
        # RFC 1035: id, recursion desired, one question: the root, NS, IN.
        return secrets.token_bytes(2) + b"\1\0\0\1\0\0\0\0\0\0" + b"\0\0\2\0\1"
    return secrets.token_bytes(8) + bytes(max(0, size - 8))


# Classic BPF (Documentation/networking/filter.rst).
_LOAD_WORD, _LOAD_HALF, _JUMP_EQUAL, _RETURN = 0x20, 0x28, 0x15, 0x06
_INSTRUCTION = struct.Struct("=HBBI")


def socket_filter(marker: Marker) -> bytes:
    """Build a classic BPF program that passes packets which may belong to the probe.

    It compares the mark where it can be: in the packet, in one quoted by an ICMP error, both also inside
    VXLAN and on links without Ethernet header. A load beyond the packet's end rejects it, so the offsets are
    in ascending order."""
    tests = sorted({test for shift in (0, -_ETHERNET_SIZE) for test in _tests(marker, shift)})
    program, after = [], 2 * len(tests)  # instructions up to the last two, which reject and accept
    for place, (offset, load, value) in enumerate(tests):
        program.append(_INSTRUCTION.pack(load, 0, 0, offset))
        program.append(_INSTRUCTION.pack(_JUMP_EQUAL, after - 2 * place - 1, 0, value))
    program.append(_INSTRUCTION.pack(_RETURN, 0, 0, 0))
    program.append(_INSTRUCTION.pack(_RETURN, 0, 0, 0xFFFF))
    return b"".join(program)


def _tests(marker: Marker, shift: int) -> Iterator[tuple[int, int, int]]:
    """Yield (offset, load, value) of each comparison."""
    ip_size = 20 if marker.family == 4 else 40
    mark = int.from_bytes(marker.mark[:4])
    for outer in (shift, shift + _VXLAN_SHIFT):
        transport = outer + _ETHERNET_SIZE + ip_size
        quoted = transport + ICMP_ERROR_SIZE + ip_size
        yield transport + marker.mark_offset, _LOAD_WORD, mark
        yield quoted + marker.mark_offset, _LOAD_WORD, mark
        if marker.proto == TCP:
            yield transport + 8, _LOAD_WORD, int.from_bytes(marker.acknowledgement)
        if marker.proto == UDP:
            yield transport + 2, _LOAD_HALF, marker.addresses.sport
