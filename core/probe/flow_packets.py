"""Filter the packets of a flow, and recognize each one at every link.

A packet keeps its identity (core.probe.packets) when it is forwarded or translated. Formats: RFC 791, 8200,
9293, 768, 792, 7348; filters: Documentation/networking/filter.rst.
"""

from __future__ import annotations

import ipaddress
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from core.flows import ConntrackEntry, address_text
from core.model.probe import FlowDirection, FunctionCall, PacketTuple, Role, Sighting, TracedPacket
from core.model.refs import LinkKey
from core.probe.packets import ICMP, ICMPV6, TCP, UDP, Packet, decode_packet
from core.probe.sightings import Captured, sighting

PROTOCOLS = {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMPV6: "icmp"}
MOST_TUPLES = 64
_NUMBERS = {"tcp": TCP, "udp": UDP}
_ROLES: dict[FlowDirection, Role] = {"original": "request", "reply": "answer"}
_FIN, _RST = 0x01, 0x04

# linux/bpf_common.h, filter.h
_WORD, _HALF, _BYTE, _WORD_AT_X, _HALF_AT_X, _X_HEADER = 0x20, 0x28, 0x30, 0x40, 0x48, 0xB1
_JUMP_EQUAL, _RETURN = 0x15, 0x06
_INSTRUCTION = struct.Struct("=HBBI")
_NETWORK_HEADER = -0x100000  # SKF_NET_OFF: offsets from the network header on, whatever kind of link it is
# To the inner IP header of VXLAN: IP, UDP, VXLAN and Ethernet, by the family of the outer packet.
_INNER = (0, 20 + 8 + 8 + 14, 40 + 8 + 8 + 14)
_SNAP = 256
_NEAR = 0.005  # seconds that a packet spends in the kernel before the first link and after the last one


def flow_tuples(entries: Iterable[ConntrackEntry]) -> dict[PacketTuple, FlowDirection]:
    """Return all tuples of a flow's packets: before, between and after translation."""
    found: dict[PacketTuple, FlowDirection] = {}
    for entry in entries:
        protocol = PROTOCOLS[entry.l4_proto]
        origin, seen_as = (entry.orig_src, entry.orig_sport), (entry.reply_dst, entry.reply_dport)
        asked, responder = (entry.orig_dst, entry.orig_dport), (entry.reply_src, entry.reply_sport)
        for one in (origin, seen_as):
            for other in (asked, responder):
                found |= dict(_both(protocol, one, other, (entry.orig_sport, entry.reply_sport)))
    return dict(list(found.items())[:MOST_TUPLES])


def _both(
    protocol: str, one: tuple[bytes, int], other: tuple[bytes, int], echo_ids: tuple[int, int]
) -> Iterator[tuple[PacketTuple, FlowDirection]]:
    src, dst = address_text(one[0]), address_text(other[0])
    ports = dict.fromkeys((each, 0) for each in echo_ids) if protocol == "icmp" else ((one[1], other[1]),)
    for sport, dport in ports:
        sent = PacketTuple(protocol, src, sport, dst, dport)
        yield sent, "original"
        yield sent.reverse, "reply"


def original_tuple(entry: ConntrackEntry, reply: bool = False) -> PacketTuple:
    """Return the tuple of an entry's original direction, or of its reply."""
    src, sport, dst, dport = (
        (entry.reply_src, entry.reply_sport, entry.reply_dst, entry.reply_dport)
        if reply
        else (entry.orig_src, entry.orig_sport, entry.orig_dst, entry.orig_dport)
    )
    protocol = PROTOCOLS[entry.l4_proto]
    port = 0 if protocol == "icmp" else dport  # conntrack has ICMP's type and code as port
    return PacketTuple(protocol, address_text(src), sport, address_text(dst), port)


def flow_filter(tuples: Iterable[PacketTuple]) -> bytes:
    """Build a classic BPF program that passes a flow's packets, also inside VXLAN.

    A load beyond the packet's end rejects it, so the offsets are in ascending order."""
    wanted = list(tuples)
    program = b"".join(_match(one, base) for base in _INNER for one in wanted)
    return program + _INSTRUCTION.pack(_RETURN, 0, 0, 0)


def _match(wanted: PacketTuple, base: int) -> bytes:
    """Return instructions that accept packets of one tuple, and go on with others."""
    family = ipaddress.ip_address(wanted.src).version
    steps = list(_ipv4_steps(wanted) if family == 4 else _ipv6_steps(wanted))
    code, size = [], sum(1 if value is None else 2 for _, _, value in steps)
    for load, offset, value in steps:
        code.append(_INSTRUCTION.pack(load, 0, 0, (_NETWORK_HEADER + base + offset) & 0xFFFFFFFF))
        if value is not None:
            code.append(_INSTRUCTION.pack(_JUMP_EQUAL, 0, size - len(code), value))
    return b"".join((*code, _INSTRUCTION.pack(_RETURN, 0, 0, _SNAP)))


def _ipv4_steps(wanted: PacketTuple) -> Iterator[tuple[int, int, int | None]]:
    """Yield (load, offset, expected value) of an IPv4 packet."""
    yield _BYTE, 9, _NUMBERS.get(wanted.protocol, ICMP)
    for offset, address in ((12, wanted.src), (16, wanted.dst)):
        yield _WORD, offset, int(ipaddress.ip_address(address))
    yield _X_HEADER, 0, None
    if wanted.protocol == "icmp":
        yield _HALF_AT_X, 4, wanted.sport
    else:
        yield _WORD_AT_X, 0, wanted.sport << 16 | wanted.dport


def _ipv6_steps(wanted: PacketTuple) -> Iterator[tuple[int, int, int | None]]:
    """Yield (load, offset, expected value) of IPv6 without extension headers."""
    yield _BYTE, 6, _NUMBERS.get(wanted.protocol, ICMPV6)
    for offset, address in ((8, wanted.src), (24, wanted.dst)):
        for place, word in enumerate(struct.unpack("!4I", ipaddress.ip_address(address).packed)):
            yield _WORD, offset + 4 * place, word
    if wanted.protocol == "icmp":
        yield _HALF, 44, wanted.sport
    else:
        yield _WORD, 40, wanted.sport << 16 | wanted.dport


@dataclass(slots=True)
class FlowPackets:
    """Group the captured frames of a flow by packet.

    `tuples` are those of the flow, by direction; frames of other packets are left out."""

    tuples: Mapping[PacketTuple, FlowDirection]
    closed: bool = False
    _packets: dict[FlowDirection, list[_Seen]] = field(default_factory=dict)
    _newest: dict[tuple[FlowDirection, tuple[object, ...]], _Seen] = field(default_factory=dict)

    def add(self, captured: Iterable[Captured]) -> None:
        """Add frames in the order of time."""
        for one in captured:
            packet = one.frame.packet
            direction = self.direction_of(packet)
            if direction is None:
                continue
            self.closed |= bool(packet.addresses.protocol == "tcp" and packet.flags & (_FIN | _RST))
            seen = self._newest.get((direction, packet.identity))
            if seen is None or seen.begins_again(one):
                seen = self._newest[direction, packet.identity] = _Seen()
                self._packets.setdefault(direction, []).append(seen)
            seen.frames.append(one)

    def direction_of(self, packet: Packet) -> FlowDirection | None:
        """Return the direction of a packet, None if it isn't of the flow."""
        addresses = packet.addresses
        if addresses.protocol == "icmp":
            addresses = replace(addresses, dport=0)
        return self.tuples.get(addresses) if packet.inner is None else None

    @property
    def counts(self) -> dict[FlowDirection, int]:
        """The number of packets by direction."""
        return {direction: len(packets) for direction, packets in self._packets.items()}

    def best(self, calls: Sequence[FunctionCall] = ()) -> tuple[TracedPacket, ...]:
        """Return of each direction the first packet that was seen at most places.

        `calls` are those of kernel functions with packets of the flow."""
        found = []
        for direction in _ROLES:
            if packets := self._packets.get(direction):
                best = max(packets, key=lambda one: len(one.places))
                sightings, mine = best.sightings(_ROLES[direction]), tuple(best.calls(calls))
                found.append(TracedPacket(direction, sightings, mine))
        return tuple(found)


@dataclass(slots=True)
class _Seen:
    """The frames of one packet."""

    frames: list[Captured] = field(default_factory=list)

    @property
    def places(self) -> set[tuple[LinkKey, bool]]:
        """The links and directions where it was seen."""
        return {(one.link, one.outgoing) for one in self.frames}

    def begins_again(self, one: Captured) -> bool:
        """Return whether a frame with this identity is the next packet, where paths begin."""
        first = self.frames[0]
        is_there = (first.link, first.outgoing) == (one.link, one.outgoing)
        return (
            is_there and first.frame.packet.ttl == one.frame.packet.ttl and first.frame.vni == one.frame.vni
        )

    def calls(self, calls: Iterable[FunctionCall]) -> Iterator[FunctionCall]:
        """Yield the calls with this packet: of equal headers, about the same time."""
        times = [one.at for one in self.frames]
        packet = self.frames[0].frame.packet
        for call in calls:
            if min(times) - _NEAR <= call.at <= max(times) + _NEAR:
                other = decode_packet(call.headers)
                if other is not None and packet.is_like(other):
                    yield call

    def sightings(self, role: Role) -> tuple[Sighting, ...]:
        """Return the sightings of the packet in the order of time."""
        times: Counter[tuple[LinkKey, bool]] = Counter()
        found = []
        for one in sorted(self.frames, key=lambda each: each.at):
            family = ipaddress.ip_address(one.frame.packet.addresses.src).version
            times[one.link, one.outgoing] += 1
            found.append(sighting(one, role, family, times[one.link, one.outgoing]))
        return tuple(found)
