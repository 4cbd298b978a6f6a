"""What the program asks of the holder for connections (the ring buffer `wanted`): to have conntrack not mind
the middle of a TCP connection that it will not see, to have a connection pass the rules once more, and to
have conntrack forget what a RST ended, and keep what a guessed one did not end.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable
from itertools import takewhile

import numpy as np

from bpf import layout, syscall
from bpf.clock import Clock, jiffies_ago
from bpf.ct_marks import clear_marks, field_mask, let_be_liberal, tuple_of
from bpf.hostwatch import timeouts
from bpf.loader import WANTED_BYTES, Loaded
from bpf.nfnetlink import header, nest
from bpf.syscall import RingBuffer
from core.netlink.client import NETFILTER, Netlink, attribute, attributes

# Closes the conntrack entries of connections that a RST ended while the fast path carried them, and renews
# those of connections that a guessed RST can't have ended.
#
# Conntrack did not see the middle of such a connection, so it cannot tell that the RST is exact, keeps the
# entry as established, and one late packet renews its timer of days
# (net/netfilter/nf_conntrack_proto_tcp.c). The program notes the RST in the flow; who goes on sending
# afterwards makes the flow live again. Where the sender of the RST stays silent, the connection is over,
# and conntrack is told so.
#
# After any other RST that it doesn't take for invalid, conntrack keeps an entry for ten seconds unless a
# packet follows. It would take one that stands outside the window for invalid, did it know the window: so
# such an entry gets its usual time back.

SILENT_FOR = 10  # seconds: as long as conntrack keeps a connection after a RST
RENEWED_AFTER = 1  # seconds: by then conntrack has seen the RST, and what the other side answers to it
_NEW, _GET = 0x100, 0x101
_CTA_TUPLE, _REPLY, _CTA_PROTOINFO, _TIMEOUT, _CTA_MARK = 1, 2, 4, 7, 8
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
    return _change(rows, mask, closing + nest(_CTA_PROTOINFO, nest(1, attribute(1, bytes([_CLOSE])))))


def renew(rows: Iterable[np.void], mask: int) -> int:
    """Have conntrack keep these as long as any established connection (the same rows, under the same
    conditions). How many that were."""
    seconds = timeouts()["tcp_timeout"] // 1000
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
    tcp = attributes(attributes(found.get(_CTA_PROTOINFO, b"")).get(1, b""))
    mark = int.from_bytes(found.get(_CTA_MARK, b""), "big") & mask
    fields = mask & -mask
    both = mark & fields * 15 and mark & fields * 15 << 4
    if tcp.get(1, b"\0")[0] != _ESTABLISHED or not both:
        return None
    return header(family) + attribute(_CTA_TUPLE | _NESTED, found[_CTA_TUPLE])


_AF_INET = 2
_MOST_RESET = 1 << 16  # connections remembered


class Wants:
    """The ring buffer and what is to be done later."""

    def __init__(self, loaded: Loaded, clock: Clock) -> None:
        self._maps, self._clock = loaded.maps, clock
        self._ring = RingBuffer(loaded.maps["wanted"], WANTED_BYTES)
        self._reset: dict[bytes, float] = {}  # records by when their RST came, oldest first
        self._guessed: dict[bytes, float] = {}  # the same of RSTs that can't have ended anything

    def fileno(self) -> int:
        """What to wait for."""
        return self._ring.fileno()

    def serve(self) -> None:
        """Do what was asked since the last call."""
        records = self._ring.read()
        if not records:
            return
        rows = np.unique(np.frombuffer(b"".join(records), layout.WANT))
        clear_marks(rows[rows["what"] == layout.WANT_RULES], field_mask())
        let_be_liberal(rows[rows["what"] == layout.WANT_LIBERAL])
        now = time.monotonic()
        # Of several RSTs the last counts for the end; of guesses the first, as more may come all the time.
        for row in rows[rows["what"] == layout.WANT_CLOSE]:
            self._reset.pop(row.tobytes(), None)
            if len(self._reset) < _MOST_RESET:
                self._reset[row.tobytes()] = now
        for row in rows[rows["what"] == layout.WANT_RENEW]:
            if len(self._guessed) < _MOST_RESET:
                self._guessed.setdefault(row.tobytes(), now)

    def settle_resets(self) -> None:
        """Let conntrack forget the connections that an exact RST ended a while ago, and keep those that a
        guessed one can't have ended."""
        ended = [row for row in _due(self._reset, SILENT_FOR) if self._is_over(row)]
        if ended:
            close(ended, field_mask())
        guessed = _due(self._guessed, RENEWED_AFTER)
        if guessed:
            renew(guessed, field_mask())

    def _is_over(self, row: np.void) -> bool:
        key = np.zeros(1, layout.KEY4 if row["family"] == _AF_INET else layout.KEY6)
        for name in ("src", "dst"):
            key[name] = row[name][: key[name].shape[1]]
        for name in ("sport", "dport", "l4_proto"):
            key[name] = row[name]
        flows = self._maps["flows4" if row["family"] == _AF_INET else "flows6"]
        found = syscall.lookup(flows, key.tobytes(), layout.FLOW.itemsize)
        return found is not None and is_over(
            np.frombuffer(found, layout.FLOW)[0], self._clock.now(), self._clock.hz
        )

    def close(self) -> None:
        """Unmap the ring buffer."""
        self._ring.close()


def _due(waiting: dict[bytes, float], seconds: float) -> list[np.void]:
    """Take out the records that have waited so long."""
    before = time.monotonic() - seconds
    found = list(takewhile(lambda record: waiting[record] <= before, waiting))
    for record in found:
        del waiting[record]
    return [np.frombuffer(record, layout.WANT)[0] for record in found]
