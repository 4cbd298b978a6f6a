"""Exchange frames on a lab's links, and build conversations packet by packet."""

from __future__ import annotations

import select
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.kernel.fastlab import BRIDGES, HOST4, HOST6, MACS, PUBLISHED, V4, V6, FastLab
from tests.support.waiting import PATIENCE

_SOL_PACKET = 263
_VNET = struct.Struct(
    "=BBHHHH"
)  # struct virtio_net_hdr: flags, GSO type, header length, GSO size, checksum start and offset
_NEEDS_CHECKSUM = 1
# While frames are sent by hand, the ends' own sockets answer none of them.
_QUIET = """table inet quiet {
  chain in {
    type filter hook input priority 0
    meta l4proto { tcp, udp } th sport 5000-5999 drop
    meta l4proto { tcp, udp } th dport 5000-5999 drop
  }
}
"""


@dataclass(frozen=True)
class Arrived:
    """Hold a received frame, and the offloads that a NIC still had to do.

    To finish its checksum, and to cut it into segments.
    """

    end: str
    frame: bytes
    unfinished: bool
    gso_size: int

    def compared(self) -> tuple[Any, ...]:
        """Return all but the IP id; its checksum, if correct, adds nothing."""
        frame = bytearray(self.frame)
        if frame[12:14] == b"\x08\0":
            assert Ether(self.frame)[IP].ihl >= 5
            right = _sum(self.frame[14 : 14 + (frame[14] & 15) * 4]) == 0xFFFF
            frame[18:20] = b"\0\0"
            frame[24:26] = b"ok" if right else b"no"
        elif frame[20] == 44:
            frame[58:62] = b"same"
        length = (
            int.from_bytes(frame[16:18]) if frame[12:14] == b"\x08\0" else 40 + int.from_bytes(frame[18:20])
        )
        del frame[14 + length :]  # padding: bridges without rules keep it
        return self.end, bytes(frame), self.unfinished, self.gso_size

    def __str__(self) -> str:
        return f"at {self.end}, unfinished {self.unfinished}, gso {self.gso_size}: {Ether(self.frame)!r}"


def _sum(data: bytes) -> int:
    """Return the folded sum of 16-bit words (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


class Wire:
    """Hold a packet socket on eth0 of each end of a lab."""

    def __init__(self, lab: FastLab) -> None:
        self.lab = lab
        self._sockets = {}
        for end in V4:
            lab.run_with("nft -f -", _QUIET, end)
            made = lab.socket(end, socket.AF_PACKET, socket.SOCK_RAW)
            made.setsockopt(_SOL_PACKET, 15, 1)  # PACKET_VNET_HDR
            made.bind(("eth0", 3))
            made.setblocking(False)
            self._sockets[end] = made

    def send(self, end: str, frame: bytes, offload: bytes = bytes(_VNET.size)) -> None:
        """Send a frame on the link of that end."""
        self._sockets[end].send(offload + frame)

    def arrivals(self) -> list[Arrived]:
        """Return what has arrived since the last call, without the links' own packets."""
        found = []
        for end, each in self._sockets.items():
            while True:
                try:
                    data, where = each.recvfrom(1 << 17)
                except BlockingIOError:
                    break
                flags, _, _, gso_size, _, _ = _VNET.unpack_from(data)
                frame = data[_VNET.size :]
                if where[2] != socket.PACKET_OUTGOING and _is_traffic(frame):
                    found.append(Arrived(end, frame, bool(flags & _NEEDS_CHECKSUM), gso_size))
        return found

    def wait_for(self, end: str, count: int, marker: bytes = b"") -> list[Arrived]:
        """Return what arrives until that end has so many frames (with the marker)."""
        found = self.arrivals()
        deadline = time.monotonic() + PATIENCE
        while (
            sum(each.end == end and marker in each.frame for each in found) < count
            and time.monotonic() < deadline
        ):
            select.select(list(self._sockets.values()), [], [], 1)
            found += self.arrivals()
        return found

    def close(self) -> None:
        """Close all sockets; the ends' own sockets receive from every port again, as NAT may choose any."""
        for end, each in self._sockets.items():
            each.close()
            self.lab.run_with("nft -f -", "delete table inet quiet", end)


def _is_traffic(frame: bytes) -> bool:
    if frame[0] & 1 or frame[12:14] not in (b"\x08\0", b"\x86\xdd"):
        return False
    return not (frame[12:14] == b"\x86\xdd" and frame[20] == 58 and frame[54] >= 128)


@dataclass(frozen=True)
class TrafficPath:
    """Describe a path through the host.

    First sender, its target, who answers, routers in between, smallest MTU.
    """

    client: str
    server: str
    target: str = ""
    routers: int = 0
    mtu: int = 1500
    port: int = 5080
    fast: bool = True


TRAFFIC_PATHS = {
    "same bridge": TrafficPath("a", "b"),
    "other bridge": TrafficPath("a", "c", routers=1, mtu=1400),
    "translated": TrafficPath("a", "far", routers=2, mtu=1400),
    "published": TrafficPath("far", "a", "host", 2, 1400, PUBLISHED),
    "published to the other network": TrafficPath("c", "a", "host", 1, 1400, PUBLISHED),
    "published to its neighbour": TrafficPath("b", "a", "host", 0, 1500, PUBLISHED),
    "published to itself": TrafficPath("a", "a", "host", 0, 1500, PUBLISHED, fast=False),
}
CLIENT, SERVER = 0, 1


@dataclass
class Conversation:
    """Build every packet of a TCP or UDP conversation.

    `log` has what arrived after each step.
    """

    wire: Wire
    path: TrafficPath
    family: int
    proto: type[Packet]
    sport: int
    log: list[tuple[str, tuple[Arrived, ...]]] = field(default_factory=list)
    seq: list[int] = field(default_factory=lambda: [1000, 900_000])
    received: list[Packet | None] = field(default_factory=lambda: [None, None])
    ident: int = 100

    @property
    def ends(self) -> tuple[str, str]:
        """Return client and server."""
        return self.path.client, self.path.server

    def frame(self, side: int, payload: bytes = b"", l3: dict[str, Any] | None = None, **l4: Any) -> Packet:
        """Build a packet of the conversation; `l3` and `l4` are fields of scapy's layers."""
        if self.proto is TCP:
            l4 = {"flags": "PA" if payload else "A", "seq": self.seq[side], "ack": self.seq[1 - side], **l4}
        sport, dport = self._ports(side)
        return self.around(side, self.proto(sport=sport, dport=dport, **l4) / payload, l3 or {})

    def around(self, side: int, inner: Packet, l3: dict[str, Any] | None = None) -> Packet:
        """Wrap a payload in the conversation's IP and Ethernet headers."""
        self.ident += 1
        source, target = self._addresses(side)
        if self.family == 4:
            ip = IP(src=source, dst=target, **{"id": self.ident, "flags": "DF", **(l3 or {})})
        else:
            ip = IPv6(src=source, dst=target, **(l3 or {}))
        return Ether(src=MACS[self.ends[side]], dst=self._hop(side)) / ip / inner

    def _addresses(self, side: int) -> tuple[str, str]:
        known = V4 if self.family == 4 else V6
        received = self.received[SERVER]
        if side == SERVER:
            assert received is not None
            ip = received.getlayer(IP) or received[IPv6]
            return ip.dst, ip.src
        if self.path.target:
            return known[self.path.client], HOST4 if self.family == 4 else HOST6
        return known[self.path.client], known[self.path.server]

    def _ports(self, side: int) -> tuple[int, int]:
        received = self.received[SERVER]
        if side == SERVER:
            assert received is not None
            return received[self.proto].dport, received[self.proto].sport
        return self.sport, self.path.port

    def _hop(self, side: int) -> str:
        if side == SERVER:
            assert self.received[SERVER] is not None
            return str(self.received[SERVER].src)
        if self.path.client in BRIDGES:  # the bridge's own, or the neighbour's
            return MACS[
                BRIDGES[self.path.client] if self.path.target or self.path.routers else self.path.server
            ]
        return MACS["router"]

    def step(
        self, name: str, side: int, frame: Packet, to: int | None = None, count: int = 1, fast: bool = False,
        offload: bytes = bytes(_VNET.size), marker: bytes = b"",
    ) -> tuple[Arrived, ...]:  # fmt: skip
        """Send, wait for `count` frames (with the marker) and log what arrived.

        They are expected at the other side, or at `to`. With `fast` it is repeated until the fast path took
        it, if there is one.
        """
        end = self.ends[1 - side if to is None else to]
        deadline = time.monotonic() + PATIENCE
        while True:
            before = self._taken()
            self.wire.send(self.ends[side], bytes(frame), offload)
            arrived = self.wire.wait_for(end, count, marker)
            if not (fast and self.path.fast) or self.wire.lab.fast is None or self._taken() > before:
                break
            assert time.monotonic() < deadline, f"{name}: never on the fast path: {self._verdicts()}"
        for each in arrived:
            if each.end == self.ends[1 - side] and self._is_own(received := Ether(each.frame)):
                self.received[1 - side] = received
        self.log.append((name, tuple(arrived)))
        return tuple(arrived)

    def _is_own(self, received: Packet) -> bool:
        """Return whether that is a whole packet of the conversation itself."""
        number = {TCP: 6, UDP: 17}[self.proto]
        if IP in received:
            return received[IP].proto == number and not received[IP].frag and "MF" not in received[IP].flags
        return bool(received[IPv6].nh == number)

    def _verdicts(self) -> Any:
        return self.wire.lab.fast.status()["verdicts"] if self.wire.lab.fast else {}

    def _taken(self) -> int:
        return self.wire.lab.fast.count("FAST") if self.wire.lab.fast else 0

    def open(self) -> None:
        """Exchange handshake and data in both directions, so that it may be accelerated."""
        if self.proto is TCP:
            self.step(
                "SYN", CLIENT, self.frame(CLIENT, flags="S", ack=0, options=[("MSS", 1460), ("WScale", 7)])
            )
            self.seq[CLIENT] += 1
            self.step(
                "SYN, ACK", SERVER, self.frame(SERVER, flags="SA", options=[("MSS", 1460), ("WScale", 7)])
            )
            self.seq[SERVER] += 1
            self.step("ACK", CLIENT, self.frame(CLIENT))
        for side in (CLIENT, SERVER) * 2:
            self.data("data", side, b"first words")

    def data(self, name: str, side: int, payload: bytes, **more: Any) -> None:
        """Build data, and advance the sequence numbers."""
        self.step(name, side, self.frame(side, payload), **more)
        self.seq[side] += len(payload)

    def error(self, side: int, too_big: bool = False) -> Packet:
        """Build an ICMP error of `side` about its last received packet."""
        received = self.received[side]
        assert received is not None
        quoted = Raw(bytes(received.getlayer(IP) or received[IPv6])[: 576 if self.family == 4 else 1000])
        if self.family == 4:
            inner = ICMP(type=3, code=4, nexthopmtu=1300) if too_big else ICMP(type=3, code=3)
        else:
            inner = ICMPv6PacketTooBig(mtu=1300) if too_big else ICMPv6DestUnreach(code=4)
        return self.around(side, inner / quoted)


def segments(frame: Packet, size: int = 0) -> tuple[bytes, bytes]:
    """Build a frame as a host gives it to a NIC, with its offload header.

    The checksum is unfinished, and with `size` it is to be cut into segments.
    """
    l4 = frame.getlayer(TCP) or frame[UDP]
    l3 = frame.getlayer(IP) or frame[IPv6]
    frame = Ether(bytes(frame))
    data = bytearray(bytes(frame))
    start = 14 + len(bytes(l3)) - len(bytes(l4))
    offset = 16 if isinstance(l4, TCP) else 6
    kind = socket.AF_INET if isinstance(l3, IP) else socket.AF_INET6
    pseudo = socket.inet_pton(kind, l3.src) + socket.inet_pton(kind, l3.dst)
    pseudo += struct.pack("!II", 6 if isinstance(l4, TCP) else 17, len(data) - start)
    data[start + offset : start + offset + 2] = struct.pack("!H", _sum(pseudo))
    gso = (1 if isinstance(l3, IP) else 4) if size else 0
    headers = start + (l4.dataofs or 5) * 4 if isinstance(l4, TCP) else start + 8
    return bytes(data), _VNET.pack(_NEEDS_CHECKSUM, gso, headers, size, start, offset)
