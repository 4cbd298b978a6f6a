"""Conntrack entries and sockets of one namespace, as numpy columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from core.model.refs import Problem

# One row per entry. Addresses are 16 bytes in network order, IPv4 as an IPv4-mapped address.
# For ICMP the ports hold: sport the echo id, dport type << 8 | code. Port numbers are in host order.
# `packets`/`bytes` are [original, reply], 0 where accounting is off (see `counted`); `start` is Unix time in
# nanoseconds, 0 where time stamps are off; `timeout` in seconds; `tcp_state` as TCP_CONNTRACK_* of
# linux/netfilter/nf_conntrack_tcp.h, 0 for other protocols; `status` the IPS_* bits of
# linux/netfilter/nf_conntrack_common.h.
CONNTRACK_DTYPE = np.dtype(
    [
        ("id", "u4"),
        ("status", "u4"),
        ("timeout", "u4"),
        ("mark", "u4"),
        ("zone", "u2"),
        ("family", "u1"),  # 4 or 6
        ("l4_proto", "u1"),
        ("tcp_state", "u1"),
        ("counted", "?"),
        ("orig_src", "u1", (16,)),
        ("orig_dst", "u1", (16,)),
        ("reply_src", "u1", (16,)),
        ("reply_dst", "u1", (16,)),
        ("orig_sport", "u2"),
        ("orig_dport", "u2"),
        ("reply_sport", "u2"),
        ("reply_dport", "u2"),
        ("packets", "u8", (2,)),
        ("bytes", "u8", (2,)),
        ("start", "u8"),
    ]
)

IPS_SEEN_REPLY = 1 << 1
IPS_ASSURED = 1 << 2
IPS_CONFIRMED = 1 << 3

TCP_STATES = (
    "NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "TIME_WAIT",
    "CLOSE", "SYN_SENT2",
)  # fmt: skip


def empty_entries() -> np.ndarray:
    """Return an empty array of dtype CONNTRACK_DTYPE."""
    return np.zeros(0, CONNTRACK_DTYPE)


@dataclass(frozen=True, slots=True)
class ConntrackStats:
    """Conntrack counters of one namespace since it was created, summed over all CPUs.

    They are CTA_STATS_* of linux/netfilter/nfnetlink_conntrack.h, as `conntrack -S` prints them.
    `insert_failed` counts connections that could not be inserted (another one has their addresses and ports),
    `drop` packets lost because the table was full or memory short, `early_drop` connections evicted from a
    full table for a new one, `error` and `invalid` packets that could not be tracked, `clash_resolve`
    resolved races, `chain_too_long` packets lost because too many connections share a hash bucket."""

    found: int = 0
    invalid: int = 0
    insert: int = 0
    insert_failed: int = 0
    drop: int = 0
    early_drop: int = 0
    error: int = 0
    search_restart: int = 0
    clash_resolve: int = 0
    chain_too_long: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Conntrack:
    """The conntrack table of one namespace.

    `entries` has dtype CONNTRACK_DTYPE and is read-only; `limit` is nf_conntrack_max, 0 if unknown;
    `taken_at` Unix time in seconds; `accounting` is True if the kernel counts packets. `stats` is None if the
    kernel doesn't report them; `stats_before` are those of an earlier poll, `stats_seconds` before this one,
    None if there was none."""

    ns: int
    entries: np.ndarray = field(default_factory=empty_entries)
    limit: int = 0
    accounting: bool = False
    taken_at: float = 0.0
    stats: ConntrackStats | None = None
    stats_before: ConntrackStats | None = None
    stats_seconds: float = 0.0
    problems: tuple[Problem, ...] = ()

    @property
    def is_read(self) -> bool:
        """Whether at least part of the table could be read."""
        return bool(self.limit or len(self.entries)) or not self.problems

    def grown(self, counter: str) -> int:
        """Return the growth of a counter of `stats` since the earlier poll, or 0."""
        if self.stats is None or self.stats_before is None:
            return 0
        return max(0, int(getattr(self.stats, counter)) - int(getattr(self.stats_before, counter)))


# One row per socket: TCP only if connected; UDP also without a peer, then `remote` and `rport` are 0.
# Addresses are 16 bytes in network order, IPv4 mapped, ports in host order (as in CONNTRACK_DTYPE).
# `rtt` is TCP's smoothed round trip time in microseconds, 0 if the kernel has none; `inode` that of
# the socket's file, 0 if no process holds it any more; `pid` the process that holds it, 0 if unknown.
# `tcp_state` as TCP_* of linux/tcp_states.h. Of segments, `retrans` counts those that the socket sent again,
# `lost` those that it sent and takes for lost now, `ooo` those that it received out of order. `info` is the
# number of bytes of struct tcp_info that the kernel sent, 0 for none: without RETRANS_INFO or OOO_INFO bytes
# the counts are unknown, and 0.
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
        ("retrans", "u4"),
        ("lost", "u4"),
        ("ooo", "u4"),
        ("info", "u2"),
    ]
)
# Bytes of tcp_info with which the kernel sends `retrans` and `lost`, and `ooo` (from Linux 5.4 on).
RETRANS_INFO, OOO_INFO = 104, 228


def no_sockets() -> np.ndarray:
    """Return an empty array of dtype SOCKET_DTYPE."""
    return np.zeros(0, SOCKET_DTYPE)


@dataclass(frozen=True, slots=True, eq=False)
class Sockets:
    """The sockets of namespace `ns`.

    `entries` has dtype SOCKET_DTYPE; `commands` maps the pid of each process that holds one to its name."""

    ns: int
    entries: np.ndarray = field(default_factory=no_sockets)
    commands: Mapping[int, str] = field(default_factory=dict)
