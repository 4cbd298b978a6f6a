"""What the program asks of the holder for connections (the ring buffer `wanted`): to have conntrack not mind
the middle of a TCP connection that it will not see, to have a connection pass the rules once more, and to
have conntrack forget what a RST ended, and keep what a guessed one did not end.
"""

from __future__ import annotations

import time
from itertools import takewhile

import numpy as np

from bpf import entries, layout, marks, resets, syscall
from bpf.clock import Clock
from bpf.loader import WANTED_BYTES, Loaded
from bpf.ringbuf import RingBuffer

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
        entries.clear_marks(rows[rows["what"] == layout.WANT_RULES], marks.field_mask())
        entries.let_be_liberal(rows[rows["what"] == layout.WANT_LIBERAL])
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
        ended = [row for row in _due(self._reset, resets.SILENT_FOR) if self._is_over(row)]
        if ended:
            resets.close(ended, marks.field_mask())
        guessed = _due(self._guessed, resets.RENEWED_AFTER)
        if guessed:
            resets.renew(guessed, marks.field_mask())

    def _is_over(self, row: np.void) -> bool:
        key = np.zeros(1, layout.KEY4 if row["family"] == _AF_INET else layout.KEY6)
        for name in ("src", "dst"):
            key[name] = row[name][: key[name].shape[1]]
        for name in ("sport", "dport", "l4_proto"):
            key[name] = row[name]
        flows = self._maps["flows4" if row["family"] == _AF_INET else "flows6"]
        found = syscall.lookup(flows, key.tobytes(), layout.FLOW.itemsize)
        return found is not None and resets.is_over(
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
