"""Closes the conntrack entries of connections that a RST ended while the fast path carried them, and renews
those of connections that a guessed RST can't have ended.

Conntrack did not see the middle of such a connection, so it cannot tell that the RST is exact, keeps the
entry as established, and one late packet renews its timer of days (net/netfilter/nf_conntrack_proto_tcp.c).
The program notes the RST in the flow; who goes on sending afterwards makes the flow live again. Where the
sender of the RST stays silent, the connection is over, and conntrack is told so.

After any other RST that it doesn't take for invalid, conntrack keeps an entry for ten seconds unless a packet
follows. It would take one that stands outside the window for invalid, did it know the window: so such an
entry gets its usual time back.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np

from bpf import layout, sysctls
from bpf.clock import jiffies_ago
from bpf.entries import tuple_of
from bpf.nfnetlink import header, nest
from core.netlink.client import NETFILTER, Netlink, attribute, attributes

SILENT_FOR = 10  # seconds: as long as conntrack keeps a connection after a RST
RENEWED_AFTER = 1  # seconds: by then conntrack has seen the RST, and what the other side answers to it
_NEW, _GET = 0x100, 0x101
_TUPLE, _REPLY, _PROTOINFO, _TIMEOUT, _MARK = 1, 2, 4, 7, 8
_NESTED = 0x8000
_ESTABLISHED, _CLOSE = 3, 8  # enum tcp_conntrack


def is_over(flow: np.void, now: int, hz: int) -> bool:
    """Whether a flow stands still since its RST, for a while; `now` in jiffies."""
    silent = jiffies_ago(flow["last_seen"], now)
    return bool(flow["action"] == layout.ACTION_RESET and silent >= SILENT_FOR * hz)


def close(rows: Iterable[np.void], mask: int) -> int:
    """Let conntrack forget these (rows of layout.WANT) as it does after a RST: those still established that
    carry our marks in both directions (a new connection of the same ends does not yet). How many that
    were."""
    closing = attribute(_TIMEOUT, struct.pack(">I", SILENT_FOR))
    return _change(rows, mask, closing + nest(_PROTOINFO, nest(1, attribute(1, bytes([_CLOSE])))))


def renew(rows: Iterable[np.void], mask: int) -> int:
    """Have conntrack keep these as long as any established connection (the same rows, under the same
    conditions). How many that were."""
    seconds = sysctls.timeouts()["tcp_timeout"] // 1000
    return _change(rows, mask, attribute(_TIMEOUT, struct.pack(">I", seconds)))


def _change(rows: Iterable[np.void], mask: int, to: bytes) -> int:
    with Netlink(NETFILTER) as kernel:
        requests = [body + to for row in rows if (body := _established(kernel, row, mask))]
        return len(kernel.batch([(_NEW, body) for body in requests])) if requests else 0


def _established(kernel: Netlink, row: np.void, mask: int) -> bytes | None:
    """The start of a request that changes the entry of a tuple; None where it is not established, or not with
    marks of ours."""
    family = int(row["family"])
    wanted = header(family) + tuple_of(row)
    try:
        found = attributes(kernel.request(_GET, wanted)[0].payload, 4)
    except OSError:
        return None  # gone already
    tcp = attributes(attributes(found.get(_PROTOINFO, b"")).get(1, b""))
    mark = int.from_bytes(found.get(_MARK, b""), "big") & mask
    fields = mask & -mask
    both = mark & fields * 15 and mark & fields * 15 << 4
    if tcp.get(1, b"\0")[0] != _ESTABLISHED or not both:
        return None
    return header(family) + attribute(_TUPLE | _NESTED, found[_TUPLE])
