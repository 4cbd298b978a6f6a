"""Raw netlink client: sockets, dumps, batched requests, parsing of attributes."""

from __future__ import annotations

import errno
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
# Requests in a batch: the answers must fit the receive buffer of an unprivileged user.
_BATCH = 64
_DONE_SIZE = 20
_TYPE_MASK = 0x3FFF

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")
# The kernel answers within send() and recv(); the timeout keeps a lost answer from blocking for ever.
_RECV_TIMEOUT = struct.pack("@ll", 10, 0)
_sequence = count(1)


class Message(NamedTuple):
    """A netlink message: its type and the payload after the header."""

    msg_type: int
    payload: bytes


# The result of one request in a batch: its messages, or the kernel's error.
Answer = list[Message] | OSError


class Netlink:
    """A netlink socket of one protocol (ROUTE, NETFILTER, GENERIC).

    It belongs to the network namespace of the thread that creates it. Use it as a context manager: an open
    socket keeps the namespace alive. Every method raises OSError with the kernel's errno.
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
        """Return all messages of a dump.

        An inconsistent dump (NLM_F_DUMP_INTR) is repeated up to 5 times. If the table keeps changing, the
        last one is returned; an event then causes another read.
        """
        for _ in range(_DUMP_TRIES):
            messages, consistent = self._dump_once(msg_type, body, flags)
            if consistent:
                break
        return messages

    def dump_raw(self, msg_type: int, body: bytes, flags: int = 0) -> Iterator[bytes]:
        """Yield the datagrams of a dump for bulk decoding.

        Each holds whole messages with their headers, without the final NLMSG_DONE. NLM_F_DUMP_INTR is
        ignored.
        """
        sequence = self._send(msg_type, flags | NLM_F_DUMP, body)
        while True:
            data = self._socket.recv(_DATAGRAM)
            _, msg_type, _, answer_sequence, _ = _HEADER.unpack_from(data)
            if answer_sequence != sequence:
                continue
            if msg_type in (NLMSG_ERROR, NLMSG_DONE):
                return _raise_error(data, _HEADER.size)
            length, last_type, _, answer_sequence, _ = _HEADER.unpack_from(data, len(data) - _DONE_SIZE)
            if (length, last_type, answer_sequence) == (_DONE_SIZE, NLMSG_DONE, sequence):
                yield data[:-_DONE_SIZE]
                return _raise_error(data, len(data) - 4)
            yield data

    def request(self, msg_type: int, body: bytes, flags: int = 0) -> list[Message]:
        """Send one request and return the messages before its acknowledgement."""
        answers = self.batch([(msg_type, body)], flags)[0]
        if isinstance(answers, OSError):
            raise answers
        return answers

    def batch(self, requests: Sequence[tuple[int, bytes]], flags: int = 0) -> list[Answer]:
        """Send several requests in few system calls; return an answer for each."""
        results: list[Answer] = []
        for start in range(0, len(requests), _BATCH):
            results += self._batch(requests[start : start + _BATCH], flags | NLM_F_REQUEST | NLM_F_ACK)
        return results

    def exchange(self, requests: bytes, count: int) -> list[bytes]:
        """Send `count` requests in one system call and return one datagram for each.

        A datagram is a message or an error. The answers must fit the receive buffer.
        """
        self._socket.send(requests)
        return [self._socket.recv(_DATAGRAM) for _ in range(count)]

    def _batch(self, requests: Sequence[tuple[int, bytes]], flags: int) -> list[Answer]:
        indexes = {next(_sequence): index for index in range(len(requests))}
        answers: list[Answer] = [[] for _ in requests]
        self._socket.send(
            b"".join(
                message(msg_type, flags, sequence, body)
                for sequence, (msg_type, body) in zip(indexes, requests, strict=True)
            )
        )
        while indexes:
            for answer_type, _, sequence, payload in walk(self._socket.recv(_DATAGRAM)):
                if sequence not in indexes:
                    continue
                if answer_type == NLMSG_ERROR:
                    index = indexes.pop(sequence)
                    answers[index] = _parse_error(payload, 0) or answers[index]
                elif isinstance(messages := answers[indexes[sequence]], list):
                    messages.append(Message(answer_type, payload))
        return answers

    def _send(self, msg_type: int, flags: int, body: bytes) -> int:
        sequence = next(_sequence)
        self._socket.send(message(msg_type, flags | NLM_F_REQUEST, sequence, body))
        return sequence

    def _dump_once(self, msg_type: int, body: bytes, flags: int) -> tuple[list[Message], bool]:
        """Return the messages of one dump, and whether it is consistent."""
        sequence = self._send(msg_type, flags | NLM_F_DUMP, body)
        messages: list[Message] = []
        seen_flags = 0
        while True:
            check_time("a kernel table")
            for answer_type, answer_flags, answer_sequence, payload in walk(self._socket.recv(_DATAGRAM)):
                if answer_sequence != sequence:
                    continue
                seen_flags |= answer_flags
                if answer_type in (NLMSG_DONE, NLMSG_ERROR):
                    _raise_error(payload, 0)
                    return messages, not seen_flags & NLM_F_DUMP_INTR
                messages.append(Message(answer_type, payload))


def _parse_error(data: bytes, offset: int) -> OSError | None:
    """Return the error in an NLMSG_ERROR or NLMSG_DONE payload, None if there is none."""
    code = -_ERROR.unpack_from(data, offset)[0] if len(data) >= offset + 4 else 0
    return OSError(code, os.strerror(code)) if code > 0 else None


def _raise_error(data: bytes, offset: int) -> None:
    if error := _parse_error(data, offset):
        raise error


def listener(protocol: int, groups: Iterable[int], buffer: int) -> socket.socket:
    """Return a non-blocking socket that is a member of these multicast groups.

    `buffer` is the size of its receive buffer in bytes. Raises OSError if the kernel lacks the protocol.
    """
    sock = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol
    )
    set_recv_buffer(sock, buffer)
    sock.bind((0, 0))
    for group in groups:
        sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    return sock


def pending_events(sock: socket.socket) -> Iterator[bytes | None]:
    """Yield the datagrams that wait at a listener; None where events were lost."""
    while True:
        try:
            data = sock.recv(_DATAGRAM)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            yield None
        else:
            yield data


def set_recv_buffer(sock: socket.socket, size: int) -> None:
    """Set the receive buffer size; beyond net.core.rmem_max only with CAP_NET_ADMIN."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, size)
    except PermissionError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def message(msg_type: int, flags: int, sequence: int, body: bytes) -> bytes:
    """Return a netlink message with header, padded to 4 bytes."""
    return (
        _HEADER.pack(_HEADER.size + len(body), msg_type, flags, sequence, 0) + body + b"\0" * (-len(body) % 4)
    )


def walk(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield each message in a datagram: type, flags, sequence number, payload."""
    offset, end = 0, len(data)
    while offset + 16 <= end:
        length, msg_type, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < 16:
            return
        yield msg_type, flags, sequence, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def walk_events(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield the messages of an event datagram: type, port of the requester, payload.

    The port is that of the socket that caused the event; a process id would be ambiguous in PID namespaces.
    """
    offset, end = 0, len(data)
    while offset + 16 <= end:
        length, msg_type, _, _, port = _HEADER.unpack_from(data, offset)
        if length < 16:
            return
        yield msg_type, port, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return the attributes from `offset` on by type; the last of equal types wins."""
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
    """Return the attributes from `offset` on in order, for lists with repeated types."""
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
    """Return an attribute with header, padded to 4 bytes."""
    return _ATTRIBUTE.pack(4 + len(value), attr_type) + value + b"\0" * (-len(value) % 4)


def text(value: bytes) -> str:
    """Decode a NUL-terminated string; invalid UTF-8 becomes surrogates (os.fsdecode)."""
    return value.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def u16(value: bytes) -> int:
    """Decode an unsigned 16-bit number in host order."""
    return int.from_bytes(value[:2], sys.byteorder)


def u32(value: bytes) -> int:
    """Decode an unsigned 32-bit number in host order."""
    return int.from_bytes(value[:4], sys.byteorder)


def s32(value: bytes) -> int:
    """Decode a signed 32-bit number in host order."""
    return int.from_bytes(value[:4], sys.byteorder, signed=True)
