"""The sockets of one namespace, as columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

# One row a socket: of TCP the connected ones; of UDP also those without a peer, whose `remote` and `rport`
# are 0. Addresses are 16 bytes in network order, IPv4 mapped, ports in host order (as in CONNTRACK_DTYPE).
# `rtt` is TCP's smoothed round trip time in microseconds, 0 where the kernel keeps none; `inode` that of
# the socket's file, 0 where no process holds it any more; `pid` the process that holds it, 0 where it is
# not known. `tcp_state` as TCP_* of linux/tcp_states.h.
SOCKET_DTYPE = np.dtype(
    [
        ("family", "u1"),  # 4 or 6
        ("l4_proto", "u1"),
        ("tcp_state", "u1"),
        ("local", "u1", (16,)),
        ("remote", "u1", (16,)),
        ("lport", "u2"),
        ("rport", "u2"),
        ("inode", "u4"),
        ("rtt", "u4"),
        ("pid", "u4"),
    ]
)


def no_sockets() -> np.ndarray:
    """No sockets, in the shape that sockets have."""
    return np.zeros(0, SOCKET_DTYPE)


@dataclass(frozen=True, slots=True, eq=False)
class Sockets:
    """The sockets of namespace `ns`: `entries` has dtype SOCKET_DTYPE; `commands` are the names of
    the processes that hold them, by pid."""

    ns: int
    entries: np.ndarray = field(default_factory=no_sockets)
    commands: Mapping[int, str] = field(default_factory=dict)
