"""Fill a conntrack table fast: many ctnetlink messages per system call."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NETLINK_NETFILTER = 12
SO_SNDBUFFORCE = 32
SOL_NETLINK, NETLINK_CAP_ACK = 270, 10
CT_NEW, CT_DELETE = 1 << 8, 1 << 8 | 2
REQUEST, REQUEST_CREATE = 0x1, 0x1 | 0x400
NESTED = 0x8000
BATCH = 500
TCP_ESTABLISHED = 3
CONFIRMED_ASSURED_SEEN_REPLY = 0b1110
TCP, UDP = 6, 17


def attribute(kind: int, value: bytes) -> bytes:
    """Return a netlink attribute, padded to four bytes (struct nlattr)."""
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def nest(kind: int, *children: bytes) -> bytes:
    """Return a nested attribute."""
    return attribute(kind | NESTED, b"".join(children))


def tuple_attribute(kind: int, src: bytes, dst: bytes, l4_proto: int, sport: int, dport: int) -> bytes:
    """Return CTA_TUPLE_ORIG (1) or CTA_TUPLE_REPLY (2) of a protocol with ports."""
    first = 1 if len(src) == 4 else 3
    return nest(
        kind,
        nest(1, attribute(first, src), attribute(first + 1, dst)),
        nest(
            2,
            attribute(1, bytes([l4_proto])),
            attribute(2, struct.pack("!H", sport)),
            attribute(3, struct.pack("!H", dport)),
        ),
    )


def message(kind: int, flags: int, body: bytes, family: int = socket.AF_INET, version: int = 0) -> bytes:
    """Return an nfnetlink message: struct nlmsghdr, struct nfgenmsg, attributes."""
    return struct.pack("=IHHIIBBH", 20 + len(body), kind, flags, 0, 0, family, version, 0) + body


def new_entry(number: int, timeout: int) -> bytes:
    """Return the message for the entry of that number.

    Entries are masqueraded connections of 200 containers, two thirds TCP, a tenth IPv6.
    """
    inside_host, port = number % 200 + 2, 1024 + number // 200 % 60000
    l4_proto = UDP if number % 3 == 0 else TCP
    peer = struct.pack("!I", 0x01000000 + number * 2654435761 % 0x5F000000)
    inside, outside = bytes([172, 18, 0, inside_host]), bytes([192, 0, 2, 1])
    family = socket.AF_INET
    if number % 10 == 0:
        family = socket.AF_INET6
        inside = b"\xfd" + bytes(14) + bytes([inside_host])
        outside, peer = b"\x20\x01\x0d\xb8" + bytes(11) + b"\x01", b"\x20\x01" + bytes(10) + peer
    dport = (443, 80, 53, 8080)[number % 4]
    body = tuple_attribute(1, inside, peer, l4_proto, port, dport)
    body += tuple_attribute(2, peer, outside, l4_proto, dport, port + number % 200 % 4)
    body += attribute(3, struct.pack("!I", CONFIRMED_ASSURED_SEEN_REPLY)) + attribute(
        7, struct.pack("!I", timeout)
    )
    if l4_proto == TCP:
        body += nest(4, nest(1, attribute(1, bytes([TCP_ESTABLISHED]))))
    return message(CT_NEW, REQUEST_CREATE, body, family)


def insert(count: int, timeout: int = 3600, first: int = 0) -> None:
    """Insert `count` different entries in the caller's network namespace.

    Raises OSError if the kernel refuses one; the initial namespace's nf_conntrack_max limits all namespaces.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 4 << 20)
        sock.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        for start in range(first, first + count, BATCH):
            numbers = range(start, min(start + BATCH, first + count))
            sock.send(b"".join(new_entry(number, timeout) for number in numbers))
            _raise_refusals(sock)


def flush_ipv6() -> None:
    """Delete only the IPv6 entries of the caller's network namespace.

    They are a tenth of those of `insert`. conntrack(8) can't do that: the kernel regards the family since
    version 1 of the message.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.send(message(CT_DELETE, REQUEST, b"", socket.AF_INET6, version=1))
        _raise_refusals(sock)


def _raise_refusals(sock: socket.socket) -> None:
    """Raise the kernel's first error.

    Requests without NLM_F_ACK have no other answers.
    """
    while True:
        try:
            answer = sock.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        code = -struct.unpack_from("=i", answer, 16)[0]
        if code:
            raise OSError(code, os.strerror(code))


@contextmanager
def room_for_entries(count: int) -> Iterator[None]:
    """Raise nf_conntrack_max if it is too low; restore it at the end.

    All namespaces share it.
    """
    limit = Path("/proc/sys/net/netfilter/nf_conntrack_max")
    before = int(limit.read_text())
    if before < count:
        limit.write_text(str(count))
    try:
        yield
    finally:
        if before < count:
            limit.write_text(str(before))
