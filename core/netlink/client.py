"""A small raw netlink client: sockets, dumps, batched requests and the walk over attributes."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import NamedTuple, Self

from core.tools import check_time

ROUTE = 0
NETFILTER = 12
GENERIC = 16

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_DUMP_INTR = 0x10
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLA_NESTED = 0x8000

SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_LISTEN_ALL_NSID = 8
SO_RCVBUFFORCE = 33

RECV_BUFFER = 1 << 20
# The kernel never builds a dump's datagram larger than 32 KiB (netlink_dump, net/netlink/af_netlink.c).
_DATAGRAM = 1 << 16
_DUMP_TRIES = 5
# Requests a batch: their answers must fit the receive buffer that a user without rights gets.
_BATCH = 64
_DONE_SIZE = 20
_TYPE_MASK = 0x3FFF

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
# No answer is ever waited for: the kernel answers inside send() and recv(); a lost one must not hang us.
_RECV_TIMEOUT = struct.pack("@ll", 10, 0)
_sequence = count(1)


class Message(NamedTuple):
    """One netlink message: its type and what follows the header."""

    msg_type: int
    payload: bytes


# What a request in a batch brought: its messages, or the kernel's refusal.
Answer = list[Message] | OSError


class Netlink:
    """A netlink socket of one protocol (ROUTE, NETFILTER, ...), in the network namespace of the thread that
    makes it. Use it as a context manager: it must not outlive the look at that namespace.

    Every method raises OSError with the kernel's errno when the kernel refuses.
    """

    def __init__(self, protocol: int = ROUTE, recv_buffer: int = RECV_BUFFER) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        set_recv_buffer(self._socket, recv_buffer)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _RECV_TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def dump(self, msg_type: int, body: bytes, flags: int = 0) -> list[Message]:
        """All messages of one dump. One that the kernel marks as inconsistent (NLM_F_DUMP_INTR) is repeated
        a few times; where the table never stands still, the last answer counts: the next event leads to
        another look."""
        for _ in range(_DUMP_TRIES):
            messages, whole = self._dump_once(msg_type, body, flags)
            if whole:
                break
        return messages

    def dump_raw(self, msg_type: int, body: bytes, flags: int = 0) -> Iterator[bytes]:
        """The datagrams of one dump as they come, each a run of whole messages with their headers, for bulk
        decoding; the closing NLMSG_DONE is cut off. NLM_F_DUMP_INTR is not looked at."""
        sequence = self._send(msg_type, flags | NLM_F_DUMP, body)
        while True:
            data = self._socket.recv(_DATAGRAM)
            _, msg_type, _, answered, _ = _HEADER.unpack_from(data)
            if answered != sequence:
                continue
            if msg_type in (NLMSG_ERROR, NLMSG_DONE):
                return _raise_error(data, _HEADER.size)
            length, last_type, _, answered, _ = _HEADER.unpack_from(data, len(data) - _DONE_SIZE)
            if (length, last_type, answered) == (_DONE_SIZE, NLMSG_DONE, sequence):
                yield data[:-_DONE_SIZE]
                return _raise_error(data, len(data) - 4)
            yield data

    def request(self, msg_type: int, body: bytes, flags: int = 0) -> list[Message]:
        """Ask for one thing, or to do one thing; what the kernel answered before its acknowledgement."""
        answers = self.batch([(msg_type, body)], flags)[0]
        if isinstance(answers, OSError):
            raise answers
        return answers

    def batch(self, requests: Sequence[tuple[int, bytes]], flags: int = 0) -> list[Answer]:
        """Several requests in few system calls; for each the messages it brought, or the error."""
        results: list[Answer] = []
        for start in range(0, len(requests), _BATCH):
            results += self._batch(requests[start : start + _BATCH], flags | NLM_F_REQUEST | NLM_F_ACK)
        return results

    def exchange(self, requests: bytes, count: int) -> list[bytes]:
        """Send `count` requests in one system call, and take the datagram that answers each: a message, or an
        error. The answers must fit the receive buffer."""
        self._socket.send(requests)
        return [self._socket.recv(_DATAGRAM) for _ in range(count)]

    def _batch(self, requests: Sequence[tuple[int, bytes]], flags: int) -> list[Answer]:
        places = {next(_sequence): place for place in range(len(requests))}
        answers: list[Answer] = [[] for _ in requests]
        self._socket.send(
            b"".join(
                message(msg_type, flags, sequence, body)
                for sequence, (msg_type, body) in zip(places, requests, strict=True)
            )
        )
        while places:
            for answer_type, _, sequence, payload in walk(self._socket.recv(_DATAGRAM)):
                if sequence not in places:
                    continue
                if answer_type == NLMSG_ERROR:
                    place = places.pop(sequence)
                    answers[place] = _error_of(payload, 0) or answers[place]
                elif isinstance(found := answers[places[sequence]], list):
                    found.append(Message(answer_type, payload))
        return answers

    def _send(self, msg_type: int, flags: int, body: bytes) -> int:
        sequence = next(_sequence)
        self._socket.send(message(msg_type, flags | NLM_F_REQUEST, sequence, body))
        return sequence

    def _dump_once(self, msg_type: int, body: bytes, flags: int) -> tuple[list[Message], bool]:
        """The messages of one dump, and whether the kernel says that they fit together."""
        sequence = self._send(msg_type, flags | NLM_F_DUMP, body)
        messages: list[Message] = []
        seen_flags = 0
        while True:
            check_time("a table of the kernel's")
            for answer_type, answer_flags, answered, payload in walk(self._socket.recv(_DATAGRAM)):
                if answered != sequence:
                    continue
                seen_flags |= answer_flags
                if answer_type in (NLMSG_DONE, NLMSG_ERROR):
                    _raise_error(payload, 0)
                    return messages, not seen_flags & NLM_F_DUMP_INTR
                messages.append(Message(answer_type, payload))


def _error_of(data: bytes, offset: int) -> OSError | None:
    """The negative errno that NLMSG_ERROR and NLMSG_DONE carry, if it is one."""
    code = -_ERROR.unpack_from(data, offset)[0] if len(data) >= offset + 4 else 0
    return OSError(code, os.strerror(code)) if code > 0 else None


def _raise_error(data: bytes, offset: int) -> None:
    if error := _error_of(data, offset):
        raise error


def listener(protocol: int, groups: Iterable[int], buffer: int) -> socket.socket:
    """Return a non-blocking netlink socket of this namespace that hears these multicast groups, with room for
    `buffer` bytes of events. Raises OSError where the kernel has no such protocol."""
    made = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol
    )
    set_recv_buffer(made, buffer)
    made.bind((0, 0))
    for group in groups:
        made.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    return made


def set_recv_buffer(sock: socket.socket, size: int) -> None:
    """Ask for a receive buffer of `size` bytes, beyond net.core.rmem_max where CAP_NET_ADMIN allows."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def message(msg_type: int, flags: int, sequence: int, body: bytes) -> bytes:
    """One netlink message, padded."""
    return (
        _HEADER.pack(_HEADER.size + len(body), msg_type, flags, sequence, 0) + body + b"\0" * (-len(body) % 4)
    )


def walk(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Each message in a datagram: type, flags, sequence number, payload."""
    offset, end = 0, len(data)
    while offset + 16 <= end:
        length, msg_type, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < 16:
            return
        yield msg_type, flags, sequence, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def headed(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Each message of an event's datagram: type, the port of the socket whose request it tells of, payload.
    Ports are told by sockets; process ids would mean nothing in a PID namespace."""
    offset, end = 0, len(data)
    while offset + 16 <= end:
        length, msg_type, _, _, port = _HEADER.unpack_from(data, offset)
        if length < 16:
            return
        yield msg_type, port, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """The attributes from `offset` on by their type, flags masked off; of a repeated one the last counts."""
    found = {}
    unpack = _ATTRIBUTE.unpack_from
    end = len(data) - 3
    while offset < end:
        length, attr_type = unpack(data, offset)
        if length < 4:
            break
        found[attr_type & _TYPE_MASK] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def attribute_list(data: bytes, offset: int = 0) -> list[tuple[int, bytes]]:
    """The attributes from `offset` on in their order, for lists where a type comes more than once."""
    found = []
    end = len(data) - 3
    while offset < end:
        length, attr_type = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            break
        found.append((attr_type & _TYPE_MASK, data[offset + 4 : offset + length]))
        offset += (length + 3) & ~3
    return found


def attribute(attr_type: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(value), attr_type) + value + b"\0" * (-len(value) % 4)


def text(value: bytes) -> str:
    """A kernel string: up to its NUL, bytes that are no UTF-8 kept as surrogates (os.fsdecode)."""
    return value.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def u16(value: bytes) -> int:
    """An unsigned 16-bit attribute in host order."""
    return int.from_bytes(value[:2], sys.byteorder)


def u32(value: bytes) -> int:
    """An unsigned 32-bit attribute in host order."""
    return int.from_bytes(value[:4], sys.byteorder)


def s32(value: bytes) -> int:
    """A signed 32-bit attribute in host order."""
    return int.from_bytes(value[:4], sys.byteorder, signed=True)
