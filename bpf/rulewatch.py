"""Hears that somebody else changed the rules of nftables: it tells each transaction (nfnetlink)."""

from __future__ import annotations

import errno
import os
import socket

from bpf.nfnetlink import NFTABLES
from core.collect.netlink import (
    NETFILTER,
    NETLINK_ADD_MEMBERSHIP,
    SOL_NETLINK,
    attributes,
    set_recv_buffer,
    walk,
)

_GROUP = 7  # NFNLGRP_NFTABLES
_NEW_GENERATION = NFTABLES | 15
_GEN_PROCESS = 2
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

    def heard(self) -> bool:
        """Whether somebody else than this process changed something since the last call; never waits."""
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
            found = found or any(_is_others(kind, payload) for kind, _, _, payload in walk(data))

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


def _is_others(kind: int, payload: bytes) -> bool:
    if kind != _NEW_GENERATION:
        return False
    who = attributes(payload, 4).get(_GEN_PROCESS, b"")
    return int.from_bytes(who, "big") != os.getpid()
