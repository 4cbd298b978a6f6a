"""Mark conntrack entries of connections, and handle the program's requests.

The program asks, in the ring buffer `wanted`, to make conntrack liberal about a TCP connection that it
won't see the middle of, to let a connection pass the rules once more, to expire a connection that a RST
ended, and to keep one that a guessed RST can't have ended. Layout:
include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import takewhile

import numpy as np

from bpf import layout, syscall
from bpf.clock import Clock, jiffies_ago
from bpf.hostwatch import conntrack_timeouts
from bpf.syscall import RingBuffer
from core.netlink.client import NETFILTER, Netlink, attribute, attributes, walk
from core.netlink.nfnetlink import (
    NESTED,
    header,
    nest,
)

# Our bits of the ct mark hold a generation for each direction. The chain that writes them (see
# bpf/generation_chain.py) is the last one before conntrack confirms an entry.
TABLE = "vnet_fastpath"
GENERATIONS = 15
SHIFT = 24
PRIORITY = 0x7FFFFFFE  # conntrack confirms at 0x7fffffff


def field_mask(shift: int = SHIFT) -> int:
    """Return our bits of the ct mark."""
    return 0xFF << shift


_NEW, _GET = 0x100, 0x101
_CTA_TUPLE, _CTA_PROTOINFO, _CTA_TIMEOUT, _CTA_MARK, _CTA_ZONE, _CTA_MARK_MASK = 1, 4, 7, 8, 18, 21
_BE_LIBERAL, _DATA_UNACKNOWLEDGED = 0x08, 0x10  # IP_CT_TCP_FLAG_*


def clear_generation(generation: int, shift: int) -> int:
    """Clear one generation's marks of every entry; return the number of requests."""
    done = 0
    with Netlink(NETFILTER) as kernel:
        for at in (shift, shift + 4):
            found = list(_marked(kernel, 15 << at, generation << at))
            done += _send(kernel, (_cleared(entry, 15 << at) for entry in found))
    return done


def clear_all_marks(mask: int) -> int:
    """Clear all our marks; return the number of entries."""
    with Netlink(NETFILTER) as kernel:
        found = list(_marked(kernel, mask))
        return _send(kernel, (_cleared(entry, mask) for entry in found))


def set_liberal(rows: Sequence[np.void] | np.ndarray) -> int:
    """Make conntrack liberal about these TCP connections (rows of layout.WANT).

    It won't see the middle of them, and would take later packets for invalid. It also stops waiting for an
    acknowledgement. Other connections keep the check of their window. Returns the number of requests.
    """
    if not len(rows):
        return 0
    flags = bytes([_BE_LIBERAL, _BE_LIBERAL | _DATA_UNACKNOWLEDGED])  # values, and the mask of bits to change
    liberal = nest(_CTA_PROTOINFO, nest(1, attribute(4, flags), attribute(5, flags)))
    with Netlink(NETFILTER) as kernel:
        return _send(kernel, (header(int(row["family"])) + tuple_of(row) + liberal for row in rows))


def clear_marks(rows: Sequence[np.void] | np.ndarray, mask: int) -> int:
    """Clear our marks of these connections (rows of layout.WANT).

    They have to pass the rules once more. Returns the number of requests.
    """
    if not len(rows):
        return 0
    with Netlink(NETFILTER) as kernel:
        return _send(kernel, (header(int(row["family"])) + tuple_of(row) + _no_mark(mask) for row in rows))


def tuple_of(row: np.void) -> bytes:
    """Build CTA_TUPLE_ORIG from a row of layout.WANT.

    Conntrack finds the connection by the tuple of either direction.
    """
    is_ipv4 = row["family"] == socket.AF_INET
    first, size = (1, 4) if is_ipv4 else (3, 16)
    addresses = (attribute(first + at, row[name].tobytes()[:size]) for at, name in enumerate(("src", "dst")))
    ports = (attribute(2 + at, struct.pack(">H", row[name])) for at, name in enumerate(("sport", "dport")))
    proto = attribute(1, bytes([row["l4_proto"]]))
    return nest(_CTA_TUPLE, nest(1, *addresses), nest(2, proto, *ports))


Entry = tuple[int, dict[int, bytes]]


def _marked(kernel: Netlink, mask: int, value: int | None = None) -> Iterator[Entry]:
    """Yield family and attributes of entries whose mark under `mask` is `value`.

    None: any value except 0.
    """
    body = header(0)
    if value is not None:
        body += attribute(_CTA_MARK, struct.pack(">I", value)) + attribute(
            _CTA_MARK_MASK, struct.pack(">I", mask)
        )
    for datagram in kernel.dump_raw(_GET, body):
        for _, _, _, payload in walk(datagram):
            found = attributes(payload, 4)
            mark = int.from_bytes(found.get(_CTA_MARK, b"\0"), "big") & mask
            if mark == value if value is not None else mark:
                yield payload[0], found


def _cleared(entry: Entry, mask: int) -> bytes:
    """Build the request that clears an entry's mark and leaves its timer alone."""
    family, found = entry
    body = header(family) + attribute(_CTA_TUPLE | NESTED, found[_CTA_TUPLE])
    if _CTA_ZONE in found:
        body += attribute(_CTA_ZONE, found[_CTA_ZONE])
    return body + _no_mark(mask)


def _no_mark(mask: int) -> bytes:
    return attribute(_CTA_MARK, bytes(4)) + attribute(_CTA_MARK_MASK, struct.pack(">I", mask))


def _send(kernel: Netlink, requests: Iterable[bytes]) -> int:
    """Send requests; entries that no longer exist are refused, which is fine."""
    return len(kernel.batch([(_NEW, body) for body in requests]))


EXPIRE_AFTER = 10  # seconds: as long as conntrack keeps a connection after a RST
RENEW_AFTER = 1  # seconds: conntrack has seen the RST, and the other side's answer to it
_ESTABLISHED, _CLOSE = 3, 8  # enum tcp_conntrack


def has_ended(flow: np.void, now: int, hz: int) -> bool:
    """Return whether a flow has been silent since its RST; `now` in jiffies.

    Conntrack didn't see the middle of an accelerated connection, so it can't know that a RST is exact. It
    keeps the entry as established, and one late packet renews its timeout of days
    (net/netfilter/nf_conntrack_proto_tcp.c). The program therefore notes the RST in the flow. If the sender
    goes on sending, the flow becomes live again; if it stays silent, the connection has ended and its entry
    is expired.
    """
    silent = jiffies_ago(flow["last_seen"], now)
    return bool(flow["action"] == layout.ACTION_RESET and silent >= EXPIRE_AFTER * hz)


def expire_closed(rows: Iterable[np.void], mask: int) -> int:
    """Let conntrack expire these connections (rows of layout.WANT) as after a RST.

    Only if they are still established with our marks in both directions: a new connection with the same
    tuple has none yet. Returns how many were changed.
    """
    closing = attribute(_CTA_TIMEOUT, struct.pack(">I", EXPIRE_AFTER))
    return _change(rows, mask, closing + nest(_CTA_PROTOINFO, nest(1, attribute(1, bytes([_CLOSE])))))


def renew_timeouts(rows: Iterable[np.void], mask: int) -> int:
    """Give these connections the timeout of established ones.

    After a RST that isn't exact, but that conntrack doesn't take for invalid, it keeps the entry
    for ten seconds unless a packet follows. If it knew the window, it would take a RST outside of it for
    invalid, so the entry gets its usual timeout back. Rows and conditions as in expire_closed(). Returns how
    many were changed.
    """
    seconds = conntrack_timeouts()["tcp_timeout"] // 1000
    return _change(rows, mask, attribute(_CTA_TIMEOUT, struct.pack(">I", seconds)))


def _change(rows: Iterable[np.void], mask: int, to: bytes) -> int:
    with Netlink(NETFILTER) as kernel:
        requests = [body + to for row in rows if (body := _established(kernel, row, mask))]
        return len(kernel.batch([(_NEW, body) for body in requests])) if requests else 0


def _established(kernel: Netlink, row: np.void, mask: int) -> bytes | None:
    """Return the start of a request that changes the entry of a tuple.

    None if it isn't established with our marks.
    """
    family = int(row["family"])
    wanted = header(family) + tuple_of(row)
    try:
        found = attributes(kernel.request(_GET, wanted)[0].payload, 4)
    except OSError:
        return None  # no longer exists
    tcp = attributes(attributes(found.get(_CTA_PROTOINFO, b"")).get(1, b""))
    mark = int.from_bytes(found.get(_CTA_MARK, b""), "big") & mask
    fields = mask & -mask
    both = mark & fields * 15 and mark & fields * 15 << 4
    if tcp.get(1, b"\0")[0] != _ESTABLISHED or not both:
        return None
    return header(family) + attribute(_CTA_TUPLE | NESTED, found[_CTA_TUPLE])


_MAX_PENDING = 1 << 16  # connections remembered


class ConnectionRequests:
    """Read the ring buffer, and handle requests at once or later."""

    def __init__(self, maps: Mapping[str, int], clock: Clock) -> None:
        self._descriptors, self._clock = maps, clock
        self._ring = RingBuffer(maps["wanted"], layout.WANTED_BYTES)
        self._reset: dict[bytes, float] = {}  # time of the RST by record, oldest first
        self._guessed: dict[bytes, float] = {}  # the same for RSTs that can't have ended anything

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._ring.fileno()

    def serve(self) -> None:
        """Handle the requests since the last call."""
        records = self._ring.read()
        if not records:
            return
        rows = np.unique(np.frombuffer(b"".join(records), layout.WANT))
        clear_marks(rows[rows["what"] == layout.WANT_RULES], field_mask())
        set_liberal(rows[rows["what"] == layout.WANT_LIBERAL])
        now = time.monotonic()
        # The last of several exact RSTs counts, but the first guessed one, as more may come all the time.
        for row in rows[rows["what"] == layout.WANT_CLOSE]:
            self._reset.pop(row.tobytes(), None)
            if len(self._reset) < _MAX_PENDING:
                self._reset[row.tobytes()] = now
        for row in rows[rows["what"] == layout.WANT_RENEW]:
            if len(self._guessed) < _MAX_PENDING:
                self._guessed.setdefault(row.tobytes(), now)

    def handle_resets(self) -> None:
        """Expire connections that an exact RST ended; keep those after a guessed one."""
        ended = [row for row in _due(self._reset, EXPIRE_AFTER) if self._is_over(row)]
        if ended:
            expire_closed(ended, field_mask())
        guessed = _due(self._guessed, RENEW_AFTER)
        if guessed:
            renew_timeouts(guessed, field_mask())

    def _is_over(self, row: np.void) -> bool:
        key = np.zeros(1, layout.KEY4 if row["family"] == socket.AF_INET else layout.KEY6)
        for name in ("src", "dst"):
            key[name] = row[name][: key[name].shape[1]]
        for name in ("sport", "dport", "l4_proto"):
            key[name] = row[name]
        flows = self._descriptors["flows4" if row["family"] == socket.AF_INET else "flows6"]
        found = syscall.lookup(flows, key.tobytes(), layout.FLOW.itemsize)
        return found is not None and has_ended(
            np.frombuffer(found, layout.FLOW)[0], self._clock.now(), self._clock.hz
        )

    def close(self) -> None:
        """Unmap the ring buffer."""
        self._ring.close()


def _due(waiting: dict[bytes, float], seconds: float) -> list[np.void]:
    """Remove and return the records that have waited this long."""
    before = time.monotonic() - seconds
    found = list(takewhile(lambda record: waiting[record] <= before, waiting))
    for record in found:
        del waiting[record]
    return [np.frombuffer(record, layout.WANT)[0] for record in found]
