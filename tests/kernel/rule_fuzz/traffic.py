"""Create every packet of connections, and recognise it where it arrives."""

from __future__ import annotations

import select
import socket
import struct
import time
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import NamedTuple

from tests.kernel.fastlab import BRIDGES, HOST4, HOST6, MACS, PUBLISHED, V4, V6, FastLab

OTHER_MAC = "02:00:00:00:17:99"  # the port of container a
SPOOFER = "c"  # the container that sends with a's addresses, in some cases
_MARKER = struct.Struct("!4sHBI")  # connection, side and number
_MAGIC = b"fuZz"
_SERVICE = 5080
_BEHIND = 80  # the target of the published port
_SOL_PACKET, _IGNORE_OUTGOING, _RCVBUFFORCE = 263, 23, 33
_TIMESTAMPS = b"\x01\x01\x08\x0a" + struct.pack("!II", 7, 9)
_OPENING = b"\x02\x04\x05\xb4\x01\x03\x03\x07"  # MSS 1460, window scale 7
CLIENT, SERVER, INTRUDER = 0, 1, 2
_OPENS = 0xFFFF0000  # from this number on, packets open connections; their marker doesn't count as data
TCP, UDP = 6, 17
# The ends' own stacks stay silent, whatever the ports are: the kernel gives a connection a random port if an
# entry made by its server's packet has its port. A RST for that would delete the new entry, the next packet
# would get another random port, and so on: the two hosts would be the same only by chance.
_QUIET = """table inet quiet {
  chain in {
    type filter hook input priority 0
    meta l4proto { tcp, udp } drop
  }
}
"""
# Where packets are received: the uplink by which they reach the world matters too.
_RECEIVED_AT = (*((end, "eth0") for end in V4), ("world", "eth1"))


@dataclass(frozen=True, slots=True)
class Shape:
    """Describe what may differ between two packets of a connection."""

    ttl: int = 64
    tos: int = 0
    size: int = 60
    flags: int = 0x18
    window: int = 30000
    stamps: bool = False
    ident: int = 7
    df: bool = True
    label: int = 0
    probe: int = 0
    checksum: bool = True


PLAIN = Shape()
# How packets of one connection vary, by name: every other packet has this shape.
VARIATIONS = {
    "ttl": Shape(ttl=30), "tos": Shape(tos=0xB8), "ecn": Shape(tos=1), "length": Shape(size=900),
    "flags": Shape(flags=0x10), "urgent": Shape(flags=0x38), "window": Shape(window=500),
    "options": Shape(stamps=True), "ident": Shape(ident=4242), "df": Shape(df=False),
    "label": Shape(label=0xABCDE), "payload": Shape(probe=0x42), "checksum": Shape(checksum=False),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Facts:
    """Describe all packets for a while.

    How they vary, whether container a has another MAC, whether another container sends with its addresses.
    """

    varies: tuple[str, ...] = ()
    other_mac: bool = False
    spoofs: bool = False

    def shape(self, number: int) -> Shape:
        """Return the shape of the packets with that number."""
        turn = number % (len(self.varies) + 1)
        return VARIATIONS[self.varies[turn - 1]] if turn else PLAIN

    def __or__(self, other: Facts) -> Facts:
        varies = tuple(dict.fromkeys((*self.varies, *other.varies)))
        return Facts(varies, self.other_mac or other.other_mac, self.spoofs or other.spoofs)


@dataclass(frozen=True, slots=True)
class TrafficPath:
    """Say who opens the connection and who answers.

    Also whether by a published port, and whether the host routes it.
    """

    client: str
    server: str
    published: bool = False
    routed: bool = True


TRAFFIC_PATHS = {
    "same bridge": TrafficPath("a", "b", routed=False),
    "other bridge": TrafficPath("a", "c"),
    "out": TrafficPath("a", "far"),
    "out from the other bridge": TrafficPath("c", "far"),
    "published": TrafficPath("far", "a", published=True),
    "published to its neighbour": TrafficPath("b", "a", published=True),
}


@dataclass(frozen=True, slots=True)
class Flow:
    """Describe a connection, the same in both labs."""

    index: int
    path: str
    family: int
    proto: int
    port: int

    def __str__(self) -> str:
        return f"{'TCP' if self.proto == TCP else 'UDP'}v{self.family} {self.path}"


class Arrival(NamedTuple):
    """Hold one of our packets where it arrived.

    `content` is everything except checksums (see `is_right`), acknowledgements, which may be late, and ports
    that the kernel chose at random (0 there).
    """

    place: str
    macs: bytes
    content: bytes
    is_right: bool

    @property
    def chosen(self) -> list[int]:
        """Return the offsets of the ports that the kernel chose at random."""
        start = self._l4
        return [at for at in (start, start + 2) if self.content[at : at + 2] == bytes(2)]

    @property
    def _l4(self) -> int:
        return (self.content[0] & 15) * 4 if self.content[0] >> 4 == 4 else 40

    def without(self, ports: set[int]) -> Arrival:
        """Return the same without the ports at these offsets."""
        content = bytearray(self.content)
        for at in ports:
            content[at : at + 2] = bytes(2)
        return self._replace(content=bytes(content))

    def __str__(self) -> str:
        data = self.content
        v4 = data[0] >> 4 == 4
        ends = (data[12:16], data[16:20]) if v4 else (data[8:24], data[24:40])
        ports = struct.unpack_from("!HH", data, self._l4)
        source, target = (f"{ip_address(end)}#{port}" for end, port in zip(ends, ports, strict=True))
        wrong = "" if self.is_right else " WRONG CHECKSUM"
        hops, tos = data[8 if v4 else 7], data[1] if v4 else int.from_bytes(data[:2]) >> 4 & 0xFF
        return f"at {self.place} {source} > {target} ttl {hops} tos {tos} size {len(data)}{wrong}"


@dataclass(slots=True)
class _State:
    """Hold what one lab has seen of a connection.

    `seen` is the client's packet as the server received it.
    """

    is_open: bool
    seq: list[int] = field(default_factory=lambda: [1001, 900_001])
    ack: list[int] = field(default_factory=lambda: [0, 0])
    seen: tuple[bytes, bytes, bytes, int, int] | None = None  # MAC, addresses and ports for the answer


Arrivals = dict[tuple[int, int, int], list[Arrival]]


class Traffic:
    """Send all connections of one lab, and collect what arrives.

    Arrivals are kept by connection, side and number.
    """

    def __init__(self, lab: FastLab) -> None:
        self.arrivals: Arrivals = {}
        self._states: dict[int, _State] = {}
        self._flows: dict[int, Flow] = {}
        self._sockets: dict[tuple[str, str], socket.socket] = {}
        self._poll = select.poll()
        for end in V4:
            lab.run_with("nft -f -", _QUIET, end)
        for end, link in _RECEIVED_AT:
            made = lab.socket(end, socket.AF_PACKET, socket.SOCK_RAW)
            made.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
            made.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 8 << 20)
            made.bind((link, 3))
            made.setblocking(False)
            self._sockets[end, link] = made
            self._poll.register(made, select.POLLIN)

    def begin(self, flows: list[Flow]) -> None:
        """Forget all connections, and use these."""
        self.take()
        self.arrivals = {}
        self._states = {flow.index: _State(flow.proto != TCP) for flow in flows}
        self._flows = {flow.index: flow for flow in flows}

    def open(self) -> set[int]:
        """Try to open TCP connections; return those that are still not open."""
        for step, (side, flags) in enumerate(((CLIENT, 0x02), (SERVER, 0x12), (CLIENT, 0x10))):
            opened = [flow for flow in self._flows.values() if not self._states[flow.index].is_open]
            for flow in opened:
                shape = replace(PLAIN, flags=flags, size=_MARKER.size)
                if side == CLIENT and flags & 0x10 and not self._states[flow.index].ack[CLIENT]:
                    continue  # no answer came
                self._send(flow, side, _OPENS + step, shape, Facts())
            self.wait(len(opened), 0.05)
        return {index for index, state in self._states.items() if not state.is_open}

    def leave_out(self, flows: set[int]) -> None:
        """Send nothing on these."""
        self._flows = {index: flow for index, flow in self._flows.items() if index not in flows}

    def send(self, side: int, number: int, facts: Facts) -> None:
        """Send one packet per connection from that side."""
        for flow in self._flows.values():
            self._send(flow, side, number, facts.shape(number), facts)
        if side == CLIENT and facts.spoofs:
            for flow in self._flows.values():
                if TRAFFIC_PATHS[flow.path].client == "a" and TRAFFIC_PATHS[flow.path].routed:
                    self._send(flow, INTRUDER, number, facts.shape(number), facts)

    def wait(self, count: int, seconds: float = 0.02) -> int:
        """Receive until there is that much, or for that long; return how much it was."""
        deadline = time.monotonic() + seconds
        found = self.take()
        while found < count and (left := deadline - time.monotonic()) > 0:
            if self._poll.poll(max(1, left * 1000)):
                found += self.take()
        return found

    def take(self) -> int:
        """Receive what has arrived; return how much of it was ours."""
        found = 0
        for (end, link), each in self._sockets.items():
            while True:
                try:
                    frame, where = each.recvfrom(2048)
                except BlockingIOError:
                    break
                except OSError:  # the link went down
                    continue
                if where[2] == socket.PACKET_HOST:
                    found += self._take(end if link == "eth0" else f"{end} by {link}", frame)
        return found

    def _take(self, place: str, frame: bytes) -> int:
        """Note a frame if it is ours; return 1 if it arrived at its end."""
        at = frame.find(_MAGIC, 42)
        kinds = {b"\x08\x00": 23, b"\x86\xdd": 20}  # the protocol's offset
        if at < 0 or frame[kinds.get(frame[12:14], 0)] not in (TCP, UDP):
            return 0  # ICMP errors quote our packets
        _, index, side, number = _MARKER.unpack_from(frame, at)
        arrival, addresses, l4 = _read(place, frame, (index, PUBLISHED, _SERVICE, _BEHIND))
        self.arrivals.setdefault((index, side, number), []).append(arrival)
        flow, state = self._flows.get(index), self._states.get(index)
        if flow is None or state is None or side == INTRUDER:
            return 0
        path = TRAFFIC_PATHS[flow.path]
        if place != (path.server if side == CLIENT else path.client):
            return 0
        sport, dport = struct.unpack_from("!HH", l4)
        if flow.proto == TCP:
            length = len(l4) - (l4[12] >> 4) * 4 + (l4[13] & 3 > 0)
            end = int.from_bytes(l4[4:8]) + (length if number < _OPENS else l4[13] >> 1 & 1)
            state.ack[1 - side] = max(state.ack[1 - side], end)
            state.is_open |= number == _OPENS + 2
        if side == CLIENT:
            half = len(addresses) // 2
            state.seen = frame[6:12], addresses[half:], addresses[:half], dport, sport
        return 1

    def _send(self, flow: Flow, side: int, number: int, shape: Shape, facts: Facts) -> None:
        path, state = TRAFFIC_PATHS[flow.path], self._states[flow.index]
        end = (path.client, path.server, SPOOFER)[side]
        if side == SERVER:
            if state.seen is None:
                return
            hop, source, target, sport, dport = state.seen
        else:
            hop, source, target, sport, dport = _begun(flow, path, side)
        mac = OTHER_MAC if facts.other_mac and end == "a" else MACS[end]
        payload = _MARKER.pack(_MAGIC, flow.index, side, number)
        opens = number >= _OPENS
        if not opens:
            payload = (payload + bytes(4) + bytes([shape.probe])).ljust(shape.size, b".")
        if flow.proto == TCP:
            l4 = _tcp(sport, dport, state, side, shape, opens)
            if not opens and side != INTRUDER:
                state.seq[side] += len(payload)
        else:
            l4 = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0)
        frame = _framed(flow, shape, source, target, l4 + payload)
        link = self._sockets[end, "eth0"]
        try:
            link.send(hop + _mac(mac) + frame)
        except OSError:  # the link is down
            return

    def close(self) -> None:
        """Close all sockets."""
        for each in self._sockets.values():
            each.close()


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _packed(text: str) -> bytes:
    return ip_address(text).packed


def _begun(flow: Flow, path: TrafficPath, side: int) -> tuple[bytes, bytes, bytes, int, int]:
    """Return next hop's MAC, addresses and ports of what the client sends."""
    known = V4 if flow.family == 4 else V6
    host = HOST4 if flow.family == 4 else HOST6
    sender = SPOOFER if side == INTRUDER else path.client
    if sender not in BRIDGES:
        hop = MACS["router"]
    else:
        hop = MACS[BRIDGES[sender] if path.routed or path.published else path.server]
    source, target = known[path.client], host if path.published else known[path.server]
    dport = PUBLISHED if path.published else _SERVICE
    return _mac(hop), _packed(source), _packed(target), flow.port, dport


def _tcp(sport: int, dport: int, state: _State, side: int, shape: Shape, opens: bool) -> bytes:
    options = _OPENING if opens and shape.flags & 2 else _TIMESTAMPS if shape.stamps else b""
    side = CLIENT if side == INTRUDER else side
    ack = state.ack[side] if shape.flags & 0x10 else 0
    seq = state.seq[side] - (shape.flags >> 1 & 1 if opens else 0)
    urgent = 3 if shape.flags & 0x20 else 0
    words = (5 + len(options) // 4) << 4
    head = (sport, dport, seq, ack, words, shape.flags, shape.window, 0, urgent)
    return struct.pack("!HHIIBBHHH", *head) + options


def _framed(flow: Flow, shape: Shape, source: bytes, target: bytes, l4: bytes) -> bytes:
    """Build the frame from the Ethernet type on, with correct checksums."""
    at = 16 if flow.proto == TCP else 6
    if shape.checksum or flow.proto == TCP or flow.family == 6:
        total = _residue(source + target + struct.pack("!II", flow.proto, len(l4)) + l4)
        l4 = l4[:at] + struct.pack("!H", 0xFFFF - total or 0xFFFF) + l4[at + 2 :]
    if flow.family == 6:
        head = struct.pack("!IHBB", 6 << 28 | shape.tos << 20 | shape.label, len(l4), flow.proto, shape.ttl)
        return b"\x86\xdd" + head + source + target + l4
    head = struct.pack(
        "!BBHHHBBH", 0x45, shape.tos, 20 + len(l4), shape.ident, 0x4000 * shape.df, shape.ttl, flow.proto, 0
    )
    checksum = 0xFFFF - _residue(head + source + target)
    return b"\x08\x00" + head[:10] + struct.pack("!H", checksum) + source + target + l4


def _residue(data: bytes) -> int:
    """Return the ones' complement sum of 16-bit words (RFC 1071), 0 also for 0xffff."""
    return int.from_bytes(data + b"\0" * (len(data) % 2)) % 0xFFFF


def _read(place: str, frame: bytes, ports: tuple[int, ...]) -> tuple[Arrival, bytes, bytes]:
    """Return a frame as it is compared, its addresses, and its transport layer.

    `ports` are the connection's own.
    """
    packet = bytearray(frame[14:])
    is_right = True
    if packet[0] >> 4 == 4:
        start = (packet[0] & 15) * 4
        is_right = _residue(bytes(packet[:start])) == 0
        del packet[int.from_bytes(packet[2:4]) :]  # padding
        addresses, proto = bytes(packet[12:20]), packet[9]
        packet[10:12] = b"\0\0"
    else:
        start = 40
        del packet[40 + int.from_bytes(packet[4:6]) :]
        addresses, proto = bytes(packet[8:40]), packet[6]
    l4 = bytes(packet[start:])
    at = start + (16 if proto == TCP else 6)
    if proto == TCP or packet[at : at + 2] != b"\0\0":
        is_right &= _residue(addresses + struct.pack("!II", proto, len(l4)) + l4) == 0
        packet[at : at + 2] = b"ok"
    if proto == TCP:
        packet[start + 8 : start + 12] = b"\0\0\0\0"
    for at in (start, start + 2):
        if int.from_bytes(packet[at : at + 2]) not in ports:
            packet[at : at + 2] = b"\0\0"
    return Arrival(place, frame[:12], bytes(packet), is_right), addresses, l4


def compared(*sides: list[Arrival]) -> list[list[Arrival]]:
    """Return what is compared of each host's copies of a packet: all, in any order.

    A port that one host's kernel chose at random is left out of both: it depends on chance whether it had to
    choose one (a port is free again once its connection is forgotten), also without the fast path.
    """
    chosen = {at for side in sides for each in side for at in each.chosen}
    return [sorted(each.without(chosen) for each in side) for side in sides]
