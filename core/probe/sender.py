"""Send the packet of a probe, and read its answer or ICMP error.

Errors come from the socket's error queue (IP_RECVERR of ip(7)), which names their sender.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from core.model.probe import IcmpError, PacketTuple, Protocol
from core.probe.packets import (
    ECHO_REPLIES,
    ECHO_REQUESTS,
    ICMP,
    ICMPV6,
    TCP,
    UDP,
    Marker,
    make_payload,
)

# linux/in.h, in6.h, tcp.h, errqueue.h
_RECVERR, _MTU_DISCOVER, _PROBE = (11, 25), (10, 23), 3  # of IPv4 and IPv6; IP_PMTUDISC_PROBE
_IPV6_DONTFRAG = 62
HEADERS = {4: 28, 6: 48}  # bytes of IP and UDP or ICMP echo
_TTL = (socket.IP_TTL, socket.IPV6_UNICAST_HOPS)
_LEVEL = (socket.IPPROTO_IP, socket.IPPROTO_IPV6)
_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ = 19, 20, 21
_REPAIR_ON, _REPAIR_OFF, _SEND_QUEUE = 1, -1, 2
_EXTENDED_ERROR = struct.Struct("=IBBBxII")  # errno, origin, type, code, info, data
_FROM_ICMP = (2, 3)  # SO_EE_ORIGIN_ICMP, _ICMP6
_ERROR_SPACE = 512
_DISCARD_PORT = 9  # for the choice of a source address, which sends nothing

ICMP_NAMES = {
    (4, 3, 0): "network unreachable", (4, 3, 1): "host unreachable", (4, 3, 2): "protocol unreachable",
    (4, 3, 3): "port unreachable", (4, 3, 4): "fragmentation needed", (4, 3, 5): "source route failed",
    (4, 3, 9): "network administratively prohibited", (4, 3, 10): "host administratively prohibited",
    (4, 3, 13): "communication administratively prohibited", (4, 11, 0): "time to live exceeded",
    (6, 1, 0): "no route to destination", (6, 1, 1): "communication administratively prohibited",
    (6, 1, 2): "beyond scope of source address", (6, 1, 3): "address unreachable",
    (6, 1, 4): "port unreachable", (6, 1, 5): "source address failed policy",
    (6, 1, 6): "reject route to destination", (6, 2, 0): "packet too big", (6, 3, 0): "hop limit exceeded",
}  # fmt: skip
_ERRNO_NAMES = {
    errno.ENETUNREACH: "no route to the target", errno.EHOSTUNREACH: "no route, or an unreachable route",
    errno.EACCES: "prohibited by a route, or a broadcast address", errno.EINVAL: "blackholed by a route",
    errno.EPERM: "dropped by a rule for sent packets", errno.EMSGSIZE: "message too long",
    errno.EADDRNOTAVAIL: "the source address isn't on this host", errno.ENETDOWN: "the link is down",
}  # fmt: skip
_PORT_UNREACHABLE = {(4, 3, 3), (6, 1, 4)}
_FRAGMENTATION_NEEDED = {(4, 3, 4), (6, 2, 0)}
_TIME_EXCEEDED = {4: 11, 6: 3}


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for a probe; `at` is in seconds of time.monotonic()."""

    kind: Literal["answered", "refused", "too big", "expired", "unreachable"]
    sender: str = ""
    error: IcmpError | None = None
    at: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True)
class Packing:
    """How to send a probe: with this TTL, and with this length of the IP packet.

    0 is the usual TTL, and a small packet; one of a given length isn't fragmented."""

    ttl: int = 0
    size: int = 0

    def payload(self, family: int) -> int:
        """Return the bytes after UDP's or ICMP's header, at least 8."""
        return max(8, self.size - HEADERS[family])


class Sender:
    """Hold the socket of one probe; use it as a context manager.

    Create it inside the sending namespace. Raises OSError if no packet can be sent, as without a route.
    """

    def __init__(
        self, target: str, protocol: Protocol, port: int, source: str = "", packing: Packing | None = None
    ) -> None:
        self._packing = packing or Packing()
        self._target = _resolved(target, port if protocol != "icmp" else 0)
        self.family = 4 if self._target[0] == socket.AF_INET else 6
        self._protocol, self._six = protocol, self.family == 6
        source = source or _source_of(self._target)
        self._payload = make_payload(protocol, port, self._packing.payload(self.family))
        self._socket = self._open(source)
        try:
            self._prepare(source)
        except BaseException:
            self._socket.close()
            raise
        self.sent_at = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor to wait for: POLLIN, POLLERR, of TCP also POLLOUT."""
        return self._socket.fileno()

    @property
    def is_stream(self) -> bool:
        """Whether the socket becomes writable when the target has answered."""
        return self._protocol == "tcp"

    def _open(self, source: str) -> socket.socket:
        kinds = {
            "tcp": (socket.SOCK_STREAM, 0), "udp": (socket.SOCK_DGRAM, 0),
            "icmp": (socket.SOCK_RAW, ICMPV6 if self._six else ICMP),
        }  # fmt: skip
        kind, proto = kinds[self._protocol]
        return socket.socket(self._target[0], kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, proto)

    def _prepare(self, source: str) -> None:
        """Set options, bind, and fix the marker."""
        six, level = self._six, _LEVEL[self._six]
        self._socket.setsockopt(level, _RECVERR[six], 1)
        if self._packing.ttl:
            self._socket.setsockopt(level, _TTL[six], self._packing.ttl)
        if self._packing.size:
            self._socket.setsockopt(level, _MTU_DISCOVER[six], _PROBE)
            if six:
                self._socket.setsockopt(level, _IPV6_DONTFRAG, 1)
        sequence = self._choose_sequence() if self._protocol == "tcp" else b""
        # The scope of a link-local address is that of the target.
        scope = self._target[1][3:] if six else ()
        self._socket.bind((source, 0, 0, *scope) if six else (source, 0))
        self._bind_marker(source, sequence)
        if self._protocol != "tcp":
            self._socket.connect(self._target[1])

    def _bind_marker(self, source: str, sequence: bytes) -> None:
        host, port = self._target[1][:2]
        sport = self._socket.getsockname()[1]
        if self._protocol == "icmp":
            sport, port = secrets.randbelow(0xFFFF) + 1, secrets.randbelow(0xFFFF) + 1
        addresses = PacketTuple(self._protocol, source.partition("%")[0], sport, host.partition("%")[0], port)
        proto = {"tcp": TCP, "udp": UDP, "icmp": ICMPV6 if self._six else ICMP}[self._protocol]
        self.marker = Marker(addresses, self.family, proto, sequence or self._payload[:8])

    def _choose_sequence(self) -> bytes:
        """Choose TCP's initial sequence number: connect(2) keeps one that is set.

        See tcp_v4_connect of net/ipv4/tcp_ipv4.c; needs CAP_NET_ADMIN."""
        sequence = secrets.randbelow((1 << 32) - 2) + 1
        set_option = self._socket.setsockopt
        set_option(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_ON)
        set_option(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, _SEND_QUEUE)
        set_option(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ, struct.pack("=I", sequence))
        set_option(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_OFF)
        return sequence.to_bytes(4)

    def send(self) -> Reply | None:
        """Send the packet; return what the sending host itself said, None if nothing."""
        self.sent_at = time.monotonic()
        try:
            if self._protocol == "tcp":
                code = self._socket.connect_ex(self._target[1])
                if code not in (0, errno.EINPROGRESS):
                    return self._failed(code)
            else:
                self._socket.send(self._echo() if self._protocol == "icmp" else self._payload)
        except OSError as error:
            return self._failed(error.errno or errno.EIO)
        return None

    def _echo(self) -> bytes:
        addresses, proto = self.marker.addresses, self.marker.proto
        header = struct.pack("!BBHHH", ECHO_REQUESTS[proto], 0, 0, addresses.sport, addresses.dport)
        if proto == ICMPV6:  # the kernel computes the checksum
            return header + self._payload
        checksum = _checksum(header + self._payload)
        return header[:2] + struct.pack("!H", checksum) + header[4:] + self._payload

    def read(self) -> Reply | None:
        """Return the answer or error that has come; None for other packets, or nothing."""
        for reply in self._queued_errors():
            return reply
        if self._protocol == "tcp":
            return self._read_stream()
        try:
            data, address = self._socket.recvfrom(1 << 16)
        except BlockingIOError:
            return None
        except OSError as error:
            return self._failed(error.errno or errno.EIO)
        if self._protocol == "icmp" and not self._is_own_echo(data):
            return None
        return Reply("answered", address[0].partition("%")[0])

    def _read_stream(self) -> Reply | None:
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            return self._failed(code)
        try:
            return Reply("answered", self._socket.getpeername()[0])
        except OSError:
            return None

    def _failed(self, code: int) -> Reply:
        """Return the reason of a failed call; ICMP has more about it in the queue."""
        for reply in self._queued_errors():
            return reply
        if code == errno.ECONNREFUSED:
            return Reply("refused", self.marker.addresses.dst)
        kind: Literal["too big", "unreachable"] = "too big" if code == errno.EMSGSIZE else "unreachable"
        return Reply(kind, error=local_error(code))

    def _queued_errors(self) -> list[Reply]:
        found = []
        with suppress(BlockingIOError):
            while True:
                data, ancillary, _, _ = self._socket.recvmsg(2048, _ERROR_SPACE, socket.MSG_ERRQUEUE)
                for level, kind, value in ancillary:
                    if level == _LEVEL[self._six] and kind == _RECVERR[self._six] and self._is_about_us(data):
                        found.append(self._reply_of(value))
        return found

    def _is_about_us(self, quoted: bytes) -> bool:
        """Return whether a quoted packet is ours: raw sockets get each other's errors."""
        if self._protocol != "icmp" or len(quoted) < 8:
            return True
        # A raw socket quotes what follows the IP header.
        return quoted[4:8] == struct.pack("!HH", self.marker.addresses.sport, self.marker.addresses.dport)

    def _is_own_echo(self, data: bytes) -> bool:
        header = data if self._six else data[(data[0] & 15) * 4 :]
        identity = struct.pack("!HH", self.marker.addresses.sport, self.marker.addresses.dport)
        return header[:1] == bytes([ECHO_REPLIES[self.marker.proto]]) and header[4:8] == identity

    def _reply_of(self, value: bytes) -> Reply:
        code, origin, kind, subcode, info, _ = _EXTENDED_ERROR.unpack_from(value)
        if origin not in _FROM_ICMP:
            error = local_error(code)
            if code == errno.EMSGSIZE:
                return Reply("too big", error=IcmpError(error.name, mtu=info))
            return Reply("unreachable", error=error)
        return classified(self.family, kind, subcode, info, _offender(value[_EXTENDED_ERROR.size :]))


def classified(family: int, kind: int, code: int, mtu: int, sender: str) -> Reply:
    """Return the reply for an ICMP error."""
    number = (family, kind, code)
    too_big = number in _FRAGMENTATION_NEEDED or (family, kind) == (6, 2)
    name = ICMP_NAMES.get(number, f"ICMP{'v6' * (family == 6)} type {kind} code {code}")
    error = IcmpError(name, kind, code, sender, mtu if too_big else 0)
    if number in _PORT_UNREACHABLE:
        return Reply("refused", sender, error)
    if too_big:
        return Reply("too big", sender, error)
    return Reply("expired" if kind == _TIME_EXCEEDED[family] else "unreachable", sender, error)


def local_error(code: int) -> IcmpError:
    """Return the meaning of an errno of the sending host."""
    return IcmpError(_ERRNO_NAMES.get(code, os.strerror(code)))


def _offender(address: bytes) -> str:
    """Return the address in a struct sockaddr_in or sockaddr_in6."""
    family = int.from_bytes(address[:2], "little" if struct.pack("=H", 1) == b"\1\0" else "big")
    if family == socket.AF_INET:
        return socket.inet_ntop(family, address[4:8])
    return socket.inet_ntop(family, address[8:24]) if family == socket.AF_INET6 else ""


def _resolved(target: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """Return family and socket address of a numeric address, which may have a scope."""
    family, _, _, _, address = socket.getaddrinfo(target, port, flags=socket.AI_NUMERICHOST)[0]
    return family, address


def _source_of(target: tuple[socket.AddressFamily, Any]) -> str:
    """Return the source address that the kernel's routes choose; sends nothing."""
    family, address = target
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect((address[0], address[1] or _DISCARD_PORT, *address[2:]))
        return str(sock.getsockname()[0])


def _checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
