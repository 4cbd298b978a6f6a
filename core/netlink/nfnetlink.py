"""Build nfnetlink requests, nftables transactions and rule expressions.

Numbers and layouts: include/uapi/linux/netfilter/nfnetlink.h, nf_tables.h.
"""

from __future__ import annotations

import os
import socket
import struct
from itertools import count

from core.netlink.client import (
    NETFILTER,
    NLM_F_ACK,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    attribute,
    message,
    walk,
)

NFTABLES = 10 << 8
NESTED = 0x8000
CREATE, EXCLUDE, APPEND = 0x400, 0x200, 0x800
AF_INET_BOTH = 1  # NFPROTO_INET

_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_NFGENMSG = struct.Struct(">BBH")
_EXPRESSION = 1  # NFTA_LIST_ELEM
_RECV_TIMEOUT = struct.pack("@ll", 10, 0)
_sequence = count(1)


def header(family: int, resource: int = 0) -> bytes:
    """Pack struct nfgenmsg."""
    return _NFGENMSG.pack(family, 0, resource)


def word(number: int) -> bytes:
    """Pack a number of an nftables attribute."""
    return struct.pack(">I", number)


def string(words: str) -> bytes:
    """Pack a name."""
    return words.encode() + b"\0"


def nest(attr_type: int, *inside: bytes) -> bytes:
    """Pack an attribute that contains others."""
    return attribute(attr_type | NESTED, b"".join(inside))


def expression(name: str, *data: bytes) -> bytes:
    """Pack an expression of a rule."""
    return nest(_EXPRESSION, attribute(1, string(name)), nest(2, *data))


class Transactions:
    """Change nftables through one socket, which owns its tables (NFT_TABLE_F_OWNER)."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _RECV_TIMEOUT)
        self._socket.bind((0, 0))

    @property
    def port(self) -> int:
        """The netlink port that the kernel reports with transactions of this socket."""
        return int(self._socket.getsockname()[0])

    def commit(self, requests: list[tuple[int, int, bytes]]) -> None:
        """Send requests (type, flags, body) as one transaction: all or nothing.

        Raises OSError with the kernel's reason.
        """
        data = message(_BATCH_BEGIN, NLM_F_REQUEST, next(_sequence), header(0, NFTABLES >> 8))
        for number, (kind, flags, body) in enumerate(requests):
            last = next(_sequence)
            asked = NLM_F_ACK if number == len(requests) - 1 else 0
            data += message(NFTABLES | kind, NLM_F_REQUEST | flags | asked, last, body)
        data += message(_BATCH_END, NLM_F_REQUEST, next(_sequence), header(0, NFTABLES >> 8))
        self._socket.send(data)
        self._await(last)

    def _await(self, last: int) -> None:
        """Wait for the answers: one for each failed request, and one for the last."""
        failed = 0
        while True:
            for kind, _, sequence, payload in walk(self._socket.recv(1 << 16)):
                if kind != NLMSG_ERROR:
                    continue
                code = -struct.unpack_from("=i", payload)[0]
                failed = failed or code
                if sequence == last or code:
                    if failed:
                        self._drain()
                        raise OSError(failed, f"nftables: {os.strerror(failed)}")
                    return

    def _drain(self) -> None:
        try:
            while True:
                self._socket.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Close the socket: the kernel removes the tables that it owns."""
        self._socket.close()
