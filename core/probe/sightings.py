"""Capture the packets of a probe on links, with the kernel's time stamps.

It uses packet sockets: packet(7), linux/if_packet.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Self

from core.model.probe import PacketTuple, Role, Sighting
from core.model.refs import LinkKey
from core.netlink.client import set_recv_buffer
from core.probe.packets import Frame, Marker, decode_frame, decode_packet
from core.probe.sender import ICMP_NAMES

# linux/if_packet.h, if_ether.h, filter.h, socket.h, if_arp.h
_ALL, _SOL_PACKET, _AUXDATA = 3, 263, 8
_ATTACH_FILTER, _TIMESTAMPNS, _GET_INDEX = 26, 35, 0x8933
_TP_VLAN_VALID = 0x10
_AUX = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata
_TIMESPEC = struct.Struct("@ll")
_WITH_ETHERNET = (1, 772)  # ARPHRD_ETHER, ARPHRD_LOOPBACK
_BUFFER, _SNAP, _ANCILLARY = 1 << 20, 2048, 256
_IFREQ = struct.Struct("=16si20x")
_STAMP_WAIT, _STAMP_PAUSE = 0.05, 0.001  # seconds
_ECHO_NAMES = {"request": "echo request", "answer": "echo reply"}


@dataclass(frozen=True, slots=True)
class Captured:
    """A captured frame of a namespace, with the kernel's time stamp in seconds."""

    link: LinkKey
    at: float
    outgoing: bool
    vlan: int
    frame: Frame


class LinkWatch:
    """Capture packets on all links of the calling thread's namespace `ns`.

    `program` is the filter, in classic BPF. Use it as a context manager. Raises OSError, PermissionError
    without CAP_NET_RAW."""

    def __init__(self, ns: int, program: bytes) -> None:
        self._ns = ns
        self._indexes: dict[str, int] = {}
        self.captured: list[Captured] = []
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        # Packets that arrive before the filter is attached are left out later.
        self._socket = socket.socket(socket.AF_PACKET, kind, socket.htons(_ALL))
        try:
            self._attach(program)
            set_recv_buffer(self._socket, _BUFFER)
            self._socket.setsockopt(socket.SOL_SOCKET, _TIMESTAMPNS, 1)
            self._socket.setsockopt(_SOL_PACKET, _AUXDATA, 1)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor that is readable when there are packets."""
        return self._socket.fileno()

    def _attach(self, program: bytes) -> None:
        buffer = ctypes.create_string_buffer(program, len(program))
        fprog = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
        self._socket.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, fprog)

    def read(self) -> None:
        """Read the packets that have arrived; never waits."""
        while True:
            try:
                data, ancillary, _, address = self._socket.recvmsg(_SNAP, _ANCILLARY)
            except OSError:  # BlockingIOError, or ENETDOWN when a link is removed
                return
            if frame := _decode(data, address[3]):
                at, vlan = _stamped(ancillary)
                outgoing = address[2] == socket.PACKET_OUTGOING
                link = LinkKey(self._ns, self._index(address[0]))
                self.captured.append(Captured(link, at, outgoing, vlan or frame.vlan, frame))

    def _index(self, name: str) -> int:
        """Return the ifindex of a link of the socket's namespace, 0 if it is gone."""
        if name not in self._indexes:
            try:
                request = _IFREQ.pack(os.fsencode(name), 0)
                self._indexes[name] = _IFREQ.unpack(fcntl.ioctl(self._socket, _GET_INDEX, request))[1]
            except OSError:
                return 0
        return self._indexes[name]


@contextmanager
def stamping(seconds: float = 0.2) -> Iterator[bool]:
    """Let the kernel stamp packets when they arrive; yields whether it surely does.

    It begins a moment after the first socket wants it (net_enable_timestamp of net/core/dev.c). Until then a
    packet gets its stamp when it is read, and sightings would be out of order. A datagram to this process
    itself shows it; without a loopback link the wait is short."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        yield _has_stamps(sock, time.monotonic() + seconds)


def _has_stamps(sock: socket.socket, end: float) -> bool:
    """Send datagrams to a socket itself until the kernel stamps them."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, _TIMESTAMPNS, 1)
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(_STAMP_WAIT)
        while time.monotonic() < end:
            sock.sendto(b"", sock.getsockname())
            time.sleep(_STAMP_PAUSE)
            now = time.time()
            if 0 < _stamped(sock.recvmsg(1, _ANCILLARY)[1])[0] < now:
                return True
    return False


def wait_for_stamps() -> None:
    """Wait until the kernel stamps packets, while other sockets want that."""
    with stamping():
        pass


def _decode(data: bytes, hardware: int) -> Frame | None:
    """Decode what a link of this hardware type (ARPHRD_*) carried."""
    if hardware in _WITH_ETHERNET:
        return decode_frame(data)
    packet = decode_packet(data)
    return Frame(packet) if packet else None


def _stamped(ancillary: Sequence[tuple[int, int, bytes]]) -> tuple[float, int]:
    """Return the time stamp in seconds and the VLAN that the link stripped, else 0."""
    at, vlan = 0.0, 0
    for level, kind, value in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _TIMESTAMPNS):
            seconds, nanoseconds = _TIMESPEC.unpack_from(value)
            at = seconds + nanoseconds / 1e9
        elif (level, kind) == (_SOL_PACKET, _AUXDATA):
            status, _, _, _, _, tci, _ = _AUX.unpack_from(value)
            vlan = tci & 0xFFF if status & _TP_VLAN_VALID else 0
    return at, vlan


def sightings_of(captured: Iterable[Captured], marker: Marker) -> tuple[Sighting, ...]:
    """Return the sightings of a probe in the order of time, without other packets."""
    requests: set[PacketTuple] = set()
    times: Counter[tuple[LinkKey, bool, Role]] = Counter()
    found = []
    for one in sorted(captured, key=lambda each: each.at):
        role = marker.role_of(one.frame.packet, requests)
        if role == "request":
            requests.add(one.frame.packet.addresses)
        if role:
            times[one.link, one.outgoing, role] += 1
            found.append(sighting(one, role, marker.family, times[one.link, one.outgoing, role]))
    return tuple(found)


def sighting(one: Captured, role: Role, family: int, times: int) -> Sighting:
    """Return a captured frame as a sighting of `role`."""
    packet = one.frame.packet
    info = ""
    if packet.icmp:
        info = _ECHO_NAMES.get(role) or ICMP_NAMES.get((family, *packet.icmp), f"type {packet.icmp[0]}")
    return Sighting(
        one.link, one.at, "out" if one.outgoing else "in", role, packet.addresses, one.frame.src_mac,
        one.frame.dst_mac, one.vlan, one.frame.vni, packet.ttl, packet.length, packet.flag_names, info,
        times,
    )  # fmt: skip
