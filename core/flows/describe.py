"""Format conntrack values: addresses, protocols, ICMP types, states, status bits."""

from __future__ import annotations

import ipaddress
from typing import Any

import numpy as np

from core.model.conntrack import IPS_ASSURED, IPS_SEEN_REPLY, TCP_STATES

ICMP, TCP, UDP, DCCP, ICMPV6, SCTP, UDPLITE = 1, 6, 17, 33, 58, 132, 136
WITH_PORTS = frozenset({TCP, UDP, DCCP, SCTP, UDPLITE})

_IPV4_MAPPED = bytes(10) + b"\xff\xff"

# IANA's protocol numbers, the common ones.
_PROTOCOLS = {
    0: "hopopt", ICMP: "icmp", 2: "igmp", 4: "ipip", TCP: "tcp", UDP: "udp", DCCP: "dccp", 41: "ipv6",
    47: "gre", 50: "esp", 51: "ah", ICMPV6: "icmpv6", 88: "eigrp", 89: "ospf", 94: "ipip", 103: "pim",
    112: "vrrp", 115: "l2tp", SCTP: "sctp", UDPLITE: "udplite", 137: "mpls",
}  # fmt: skip
PROTOCOLS = tuple(_PROTOCOLS.get(number, f"proto {number}") for number in range(256))

_ICMP_TYPES = {
    0: "echo-reply", 3: "destination-unreachable", 4: "source-quench", 5: "redirect", 8: "echo-request",
    9: "router-advertisement", 10: "router-solicitation", 11: "time-exceeded", 12: "parameter-problem",
    13: "timestamp-request", 14: "timestamp-reply", 15: "info-request", 16: "info-reply",
    17: "address-mask-request", 18: "address-mask-reply", 42: "extended-echo-request",
    43: "extended-echo-reply",
}  # fmt: skip
_ICMPV6_TYPES = {
    1: "destination-unreachable", 2: "packet-too-big", 3: "time-exceeded", 4: "parameter-problem",
    128: "echo-request", 129: "echo-reply", 130: "mld-query", 131: "mld-report", 132: "mld-done",
    133: "router-solicitation", 134: "router-advertisement", 135: "neighbour-solicitation",
    136: "neighbour-advertisement", 137: "redirect", 139: "node-info-query", 140: "node-info-reply",
}  # fmt: skip

# The states that `state_code` numbers: TCP's, then those of other protocols.
_UNREPLIED = len(TCP_STATES)
STATES = (*TCP_STATES, "UNREPLIED", "REPLIED", "ASSURED")

# By "source translated" + 2 x "destination translated".
TRANSLATIONS = ("", "SNAT", "DNAT", "DNAT SNAT")

# IPS_* of linux/netfilter/nf_conntrack_common.h, by bit number, without the kernel's own bookkeeping.
_STATUS_WORDS = {
    0: "expected by another connection",
    1: "replied",
    2: "assured",
    3: "confirmed",
    4: "source translated",
    5: "destination translated",
    6: "sequence numbers adjusted",
    9: "dying",
    10: "fixed timeout",
    11: "template",
    13: "helper attached",
    14: "offloaded",
    15: "offloaded to hardware",
}


def address_text(raw: bytes) -> str:
    """Format an address of 16 bytes; an IPv4-mapped one as IPv4."""
    if raw[:12] == _IPV4_MAPPED:
        return f"{raw[12]}.{raw[13]}.{raw[14]}.{raw[15]}"
    return str(ipaddress.IPv6Address(raw))


def address_texts(addresses: np.ndarray[Any, Any]) -> list[str]:
    """Format many addresses, given as two numbers each, the upper and lower half."""
    texts = [""] * len(addresses)
    mapped = (addresses[:, 0] == 0) & (addresses[:, 1] >> np.uint64(32) == 0xFFFF)
    octets = addresses[:, 1].astype(">u8").view(np.uint8).reshape(-1, 8)[:, 4:]
    for row, (one, two, three, four) in zip(
        np.flatnonzero(mapped).tolist(), octets[mapped].tolist(), strict=True
    ):
        texts[row] = f"{one}.{two}.{three}.{four}"
    for row in np.flatnonzero(~mapped).tolist():
        texts[row] = address_text(addresses[row].astype(">u8").tobytes())
    return texts


def address_bytes(text: str) -> bytes:
    """Parse an address to its 16 bytes in conntrack columns. Raises ValueError."""
    packed = ipaddress.ip_address(text.partition("%")[0]).packed
    return packed if len(packed) == 16 else _IPV4_MAPPED + packed


def protocol_name(l4_proto: int) -> str:
    """Return a protocol's name, "proto N" for an uncommon one."""
    return PROTOCOLS[l4_proto]


def icmp_text(l4_proto: int, type_and_code: int) -> str:
    """Format an ICMP or ICMPv6 type, and its code if it isn't 0.

    `type_and_code` is as in a dport column: type << 8 | code."""
    kind, code = type_and_code >> 8, type_and_code & 0xFF
    types = _ICMPV6_TYPES if l4_proto == ICMPV6 else _ICMP_TYPES
    name = types.get(kind, f"type {kind}")
    return f"{name} code {code}" if code else name


def state_code(l4_proto: int, tcp_state: int, status: int) -> int:
    """Return the index in STATES: TCP's state, or whether there was a reply."""
    if l4_proto == TCP:
        return min(tcp_state, _UNREPLIED - 1)
    if status & IPS_ASSURED:
        return _UNREPLIED + 2
    return _UNREPLIED + bool(status & IPS_SEEN_REPLY)


def state_text(l4_proto: int, tcp_state: int, status: int) -> str:
    """Return an entry's state as the kernel names it."""
    return STATES[state_code(l4_proto, tcp_state, status)]


def status_words(status: int) -> tuple[str, ...]:
    """Return descriptions of the status bits, "unreplied" without a reply."""
    words = [word for bit, word in _STATUS_WORDS.items() if status >> bit & 1]
    return tuple(words) if status & IPS_SEEN_REPLY else ("unreplied", *words)
