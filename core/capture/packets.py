"""Decode addresses, ports and a summary from captured packets."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from core.capture.pcapng import ETHERNET
from core.flows import address_text, icmp_text, protocol_name
from core.text import end_text

ICMP, TCP, UDP, ICMPV6, SCTP = 1, 6, 17, 58, 132
_WITH_PORTS = frozenset({TCP, UDP, SCTP, 33, 136})
_IPV4, _IPV6, _ARP = 0x0800, 0x86DD, 0x0806
_TAGS = frozenset({0x8100, 0x88A8})
_MAPPED = bytes(10) + b"\xff\xff"
# IPv6 extension headers whose length is in their second byte, in units of 8 bytes (RFC 8200).
_EXTENSIONS = frozenset({0, 43, 60, 135})
_FRAGMENT = 44
_ETHER_TYPES = {0x88CC: "LLDP", 0x8863: "PPPoE", 0x8864: "PPPoE", 0x8847: "MPLS", 0x888E: "EAPOL"}
_FLAG_NAMES = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
_DNS = (53, 5353)
_DNS_TYPES = {1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV"}
_STP = bytes.fromhex("0180c2000000")


class PacketTuple(NamedTuple):
    """Addresses (16 bytes, IPv4 mapped) and ports of a packet, in its direction.

    For ICMP `sport` is the echo id and `dport` the type << 8 | code, as in conntrack columns. Without ports
    (later fragments) both are 0."""

    l4_proto: int
    src: bytes
    sport: int
    dst: bytes
    dport: int


class IpHeader(NamedTuple):
    """A decoded IP header with the offset of its payload.

    `length` is the payload's in bytes, of the whole packet even if less was captured."""

    family: int
    l4_proto: int
    src: bytes
    dst: bytes
    payload: int
    is_later_fragment: bool
    length: int


def network_offset(link_type: int, data: bytes) -> tuple[int, int, tuple[int, ...]]:
    """Return EtherType, offset of the network header, and VLAN ids of a frame.

    The EtherType is 0 if there is none."""
    if link_type != ETHERNET:
        version = data[0] >> 4 if data else 0
        return {4: _IPV4, 6: _IPV6}.get(version, 0), 0, ()
    if len(data) < 14:
        return 0, len(data), ()
    kind, at, vlans = int.from_bytes(data[12:14]), 14, []
    while kind in _TAGS and len(data) >= at + 4:
        vlans.append(int.from_bytes(data[at : at + 2]) & 0xFFF)
        kind, at = int.from_bytes(data[at + 2 : at + 4]), at + 4
    return kind, at, tuple(vlans)


def ip_header(kind: int, at: int, data: bytes) -> IpHeader | None:
    """Decode an IPv4 or IPv6 header with its extensions; None for other packets."""
    if kind == _IPV4 and len(data) >= at + 20:
        fragment = int.from_bytes(data[at + 6 : at + 8]) & 0x1FFF
        src, dst = _MAPPED + data[at + 12 : at + 16], _MAPPED + data[at + 16 : at + 20]
        size, total = (data[at] & 15) * 4, int.from_bytes(data[at + 2 : at + 4])
        return IpHeader(4, data[at + 9], src, dst, at + size, fragment > 0, max(0, total - size))
    if kind == _IPV6 and len(data) >= at + 40:
        return _ipv6_header(at, data)
    return None


def _ipv6_header(at: int, data: bytes) -> IpHeader:
    proto, place, is_later = data[at + 6], at + 40, False
    while len(data) >= place + 8:
        if proto in _EXTENSIONS:
            proto, place = data[place], place + 8 + 8 * data[place + 1]
        elif proto == _FRAGMENT:
            is_later = is_later or int.from_bytes(data[place + 2 : place + 4]) > 7
            proto, place = data[place], place + 8
        else:
            break
    length = int.from_bytes(data[at + 4 : at + 6]) - (place - at - 40)
    return IpHeader(
        6, proto, data[at + 8 : at + 24], data[at + 24 : at + 40], place, is_later, max(0, length)
    )


def tuple_of(link_type: int, data: bytes) -> PacketTuple | None:
    """Return addresses and ports of a packet, None without an IP header."""
    header = ip_header(*network_offset(link_type, data)[:2], data)
    return _tuple(header, data) if header else None


def _tuple(header: IpHeader, data: bytes) -> PacketTuple:
    proto, src, dst, at = header.l4_proto, header.src, header.dst, header.payload
    if header.is_later_fragment or len(data) < at + 8:
        return PacketTuple(proto, src, 0, dst, 0)
    if proto in _WITH_PORTS:
        return PacketTuple(proto, src, _number(data, at), dst, _number(data, at + 2))
    if proto in (ICMP, ICMPV6):
        return PacketTuple(proto, src, _number(data, at + 4), dst, _number(data, at))
    return PacketTuple(proto, src, 0, dst, 0)


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2])


class Summary(NamedTuple):
    """One packet as text: both ends, protocol, and what it says; untrusted text.

    `ends` is the tuple of an IP packet, None for others."""

    source: str
    destination: str
    protocol: str
    info: str
    ends: PacketTuple | None = None


def summary(link_type: int, data: bytes, length: int) -> Summary:
    """Summarize a packet; damaged and truncated ones give what can be read."""
    kind, at, vlans = network_offset(link_type, data)
    tag = "".join(f"VLAN {vlan} " for vlan in vlans)
    header = ip_header(kind, at, data)
    if header is None:
        found = _other(link_type, kind, at, data, length)
        return found._replace(info=f"{tag}{found.info}")
    ends = _tuple(header, data)
    has_ports = header.l4_proto in _WITH_PORTS and bool(ends.sport or ends.dport)
    source, destination = (
        end_text(address_text(address), port if has_ports else None)
        for address, port in ((ends.src, ends.sport), (ends.dst, ends.dport))
    )
    protocol, info = _transport(header, ends, data)
    return Summary(source, destination, protocol, f"{tag}{info}", ends)


def _transport(header: IpHeader, ends: PacketTuple, data: bytes) -> tuple[str, str]:
    name = protocol_name(header.l4_proto).upper()
    if header.is_later_fragment:
        return name, f"fragment, Len={header.length}"
    if len(data) < header.payload + 8:
        return name, f"truncated, Len={header.length}" if header.length >= 8 else f"Len={header.length}"
    decode = _DECODERS.get(header.l4_proto)
    return decode(header, ends, data) if decode else (name, f"Len={header.length}")


def _tcp(header: IpHeader, ends: PacketTuple, data: bytes) -> tuple[str, str]:
    if len(data) < header.payload + 16:
        return "TCP", "truncated"
    seq, ack, offset, flags, window = struct.unpack_from("!IIBBH", data, header.payload + 4)
    names = ", ".join(name for bit, name in enumerate(_FLAG_NAMES) if flags >> bit & 1)
    acknowledged = f" Ack={ack}" if flags & 0x10 else ""
    length = max(0, header.length - (offset >> 4) * 4)
    return "TCP", f"[{names}] Len={length} Seq={seq}{acknowledged} Win={window}"


def _udp(header: IpHeader, ends: PacketTuple, data: bytes) -> tuple[str, str]:
    if ends.sport in _DNS or ends.dport in _DNS:
        question = _dns(data[header.payload + 8 :])
        if question:
            return "DNS", question
    return "UDP", f"Len={max(0, header.length - 8)}"


def _icmp(header: IpHeader, ends: PacketTuple, data: bytes) -> tuple[str, str]:
    text = icmp_text(header.l4_proto, ends.dport)
    is_echo = ends.dport >> 8 in ((128, 129) if header.l4_proto == ICMPV6 else (0, 8))
    sequence = int.from_bytes(data[header.payload + 6 : header.payload + 8])
    more = f" id={ends.sport} seq={sequence}" if is_echo else ""
    return "ICMPv6" if header.l4_proto == ICMPV6 else "ICMP", f"{text}{more} Len={header.length}"


_DECODERS: dict[int, Callable[[IpHeader, PacketTuple, bytes], tuple[str, str]]] = {
    TCP: _tcp, UDP: _udp, ICMP: _icmp, ICMPV6: _icmp,
}  # fmt: skip


def _dns(data: bytes) -> str:
    """Return the first question of a DNS message (RFC 1035), "" if there is none."""
    if len(data) < 17 or int.from_bytes(data[4:6]) != 1:
        return ""
    labels, at = [], 12
    while at < len(data) and 0 < data[at] < 64:
        labels.append(data[at + 1 : at + 1 + data[at]].decode("ascii", "replace"))
        at += 1 + data[at]
    if at + 3 > len(data) or data[at]:
        return ""
    kind = int.from_bytes(data[at + 1 : at + 3])
    is_answer, code = data[2] & 0x80, data[3] & 0x0F
    error = {1: " FORMERR", 2: " SERVFAIL", 3: " NXDOMAIN", 5: " REFUSED"}.get(code, "")
    what = f"answer{error}, {int.from_bytes(data[6:8])} records:" if is_answer else "query"
    return f"{what} {_DNS_TYPES.get(kind, f'TYPE{kind}')} {'.'.join(labels) or '.'}"


def _other(link_type: int, kind: int, at: int, data: bytes, length: int) -> Summary:
    """Summarize a frame without an IP header."""
    if link_type != ETHERNET or len(data) < 14:
        return Summary("", "", "?", f"Len={length}")
    source, destination = data[6:12].hex(":"), data[:6].hex(":")
    if kind == _ARP and len(data) >= at + 28:
        return _arp(source, destination, data[at : at + 28])
    if kind < 0x0600:
        name = "STP" if data[:6] == _STP else "802.3"
        return Summary(source, destination, name, f"Len={length}")
    return Summary(source, destination, _ETHER_TYPES.get(kind, f"0x{kind:04x}"), f"Len={length}")


def _arp(source: str, destination: str, arp: bytes) -> Summary:
    sender, target = (address_text(_MAPPED + arp[at : at + 4]) for at in (14, 24))
    ends = PacketTuple(0, _MAPPED + arp[14:18], 0, _MAPPED + arp[24:28], 0)
    is_request = int.from_bytes(arp[6:8]) == 1
    info = f"who has {target}? asked by {sender}" if is_request else f"{sender} is at {arp[8:14].hex(':')}"
    return Summary(source, destination, "ARP", info, ends)
