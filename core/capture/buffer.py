"""Keep the newest packets of a capture in memory, within limits."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from core.capture.encoder import Record

_MOST_PACKETS = 100_000
_MOST_BYTES = 32_000_000


class PacketBuffer:
    """The newest packets, numbered from the start of the capture.

    It may be used from any thread."""

    def __init__(self, most_packets: int = _MOST_PACKETS, most_bytes: int = _MOST_BYTES) -> None:
        self._most_packets, self._most_bytes = most_packets, most_bytes
        self._records: list[Record] = []
        self._first = self._bytes = 0
        self._lock = threading.Lock()

    def add(self, records: Sequence[Record]) -> str:
        """Add packets, and forget the oldest beyond the limits."""
        with self._lock:
            self._records += records
            self._bytes += sum(len(block) for _, block in records)
            surplus = max(0, len(self._records) - self._most_packets)
            left = self._bytes - sum(len(block) for _, block in self._records[:surplus])
            while left > self._most_bytes and surplus < len(self._records):
                left -= len(self._records[surplus][1])
                surplus += 1
            del self._records[:surplus]
            self._first, self._bytes = self._first + surplus, left
        return ""

    @property
    def span(self) -> tuple[int, int]:
        """The number of the first packet in memory, and that after the last."""
        with self._lock:
            return self._first, self._first + len(self._records)

    def records(self, first: int = 0, last: int | None = None) -> list[Record]:
        """Return packets by number, those that are still in memory."""
        with self._lock:
            start = max(0, first - self._first)
            return self._records[start : None if last is None else max(0, last - self._first)]
