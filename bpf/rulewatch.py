"""Hears that somebody else changed the rules of nftables: it tells each transaction (nfnetlink)."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

from bpf.nfnetlink import NFTABLES
from core.collect.netlink import (
    NETFILTER,
    NETLINK_ADD_MEMBERSHIP,
    SOL_NETLINK,
    set_recv_buffer,
)

_GROUP = 7  # NFNLGRP_NFTABLES
_NEW_GENERATION = NFTABLES | 15
_HEADER = struct.Struct("=IHHII")
_BUFFER = 8 << 20


class RuleWatch:
    """A socket in the host's namespace that hears nftables' transactions."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETFILTER
        )
        set_recv_buffer(self._socket, _BUFFER)
        self._socket.bind((0, 0))
        self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, _GROUP)

    def fileno(self) -> int:
        """What to wait for."""
        return self._socket.fileno()

    def heard(self, own_port: int = 0) -> bool:
        """Whether somebody else than the socket of that port changed something since the last call; never
        waits."""
        found = False
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found = True
                continue
            found = found or any(port != own_port for port in _transactions(data))

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


def _transactions(data: bytes) -> Iterator[int]:
    """The ports (nlmsg_pid) of the sockets whose transactions a datagram tells of: process ids would mean
    nothing in a pid namespace."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, _, _, port = _HEADER.unpack_from(data, at)
        if kind == _NEW_GENERATION:
            yield port
        at += max(_HEADER.size, (length + 3) & ~3)
