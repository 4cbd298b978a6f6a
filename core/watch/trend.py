"""Whether a conntrack table's troubles grow: what was counted a minute ago, beside what is counted now."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

from core.model import Conntrack, ConntrackStats

_SECONDS = 60.0


class TableTrend:
    """Remembers each namespace's counters for a minute; any thread may feed it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: dict[int, deque[tuple[float, ConntrackStats]]] = {}

    def fed(self, tables: Mapping[int, Conntrack]) -> dict[int, Conntrack]:
        """The tables with what was counted at an earlier look: the first one of the last minute, or the last
        one before that."""
        with self._lock:
            self._seen = {ns: seen for ns, seen in self._seen.items() if ns in tables}
            return {ns: self._with_earlier(table) for ns, table in tables.items()}

    def _with_earlier(self, table: Conntrack) -> Conntrack:
        if table.stats is None:
            return table
        now = self._clock()
        seen = self._seen.setdefault(table.ns, deque())
        while len(seen) > 1 and now - seen[1][0] >= _SECONDS:
            seen.popleft()
        if not seen or seen[-1][1] != table.stats or now - seen[-1][0] >= 1.0:
            seen.append((now, table.stats))
        at, stats = seen[0]
        return replace(table, stats_before=stats, stats_seconds=now - at) if at < now else table
