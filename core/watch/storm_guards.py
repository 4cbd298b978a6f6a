"""Watch what the storm guards of the host's bridge ports drop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from core.model import GuardCounters, Part
from core.storms import GuardWatch
from core.watch.store import SnapshotStore

# Reads the counters of all storm guards of the host; `bpf.storm_guard.read_counters`.
ReadGuards = Callable[[], Sequence[GuardCounters]]


class StormGuards:
    """Keep the storm guards of the snapshot current; `poll` is called from one thread."""

    def __init__(self, store: SnapshotStore, read: ReadGuards | None) -> None:
        self._store, self._read = store, read
        self._watch = GuardWatch()

    def poll(self) -> None:
        """Read the counters; without the rights to read them there are no guards."""
        snapshot = self._store.snapshot
        if self._read is None or not snapshot.host.netns:
            return
        try:
            counters = self._read()
        except OSError:
            counters = ()
        found = self._watch.feed(snapshot.host.netns, counters, time.monotonic())
        if found != snapshot.storm_guards:
            self._store.put(Part.STORMS, storm_guards=found)
