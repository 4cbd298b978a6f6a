"""Hold the current snapshot: pollers put parts, and a listener gets each update."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from core.diff import changes
from core.flows.merge import FlowTable
from core.model import WATCHED_PARTS, Change, Drops, FastFlows, Part, Problem, Snapshot
from core.rates import Rates
from core.update import Update


class SnapshotStore:
    """Hold the snapshot. Every method may be called from any thread."""

    def __init__(self, listener: Callable[[Update], None]) -> None:
        self._lock = threading.Lock()
        self._listener = listener
        self.snapshot = Snapshot(pending=WATCHED_PARTS)
        self.rates = Rates()
        self.flows: FlowTable | None = None
        self.fast: FastFlows | None = None
        self.drops: Drops | None = None

    def put(
        self,
        part: Part,
        problems: tuple[Problem, ...] | None = None,
        fast: FastFlows | None = None,
        **fields: Any,
    ) -> None:
        """Replace fields of the snapshot and the problems of a part (None: unchanged).

        `fast` was read together with conntrack. The listener is called if anything differs.
        """
        with self._lock:
            if part == Part.CONNTRACK:
                self.fast = fast
            old = self.snapshot
            first = part in old.pending
            if problems is not None and problems != old.part_problems.get(part, ()):
                fields["part_problems"] = {**old.part_problems, part: problems}
            differing = {name: value for name, value in fields.items() if getattr(old, name) != value}
            if not differing and not first:
                return
            now = time.time()
            self.snapshot = replace(old, taken_at=now, pending=old.pending - {part}, **differing)
            found = () if first else changes(old, self.snapshot, now)
            self._publish(found)

    def put_rates(self, rates: Rates, publish: bool = True) -> None:
        """Replace the rates; without `publish` they go out with the next update."""
        with self._lock:
            self.rates = rates
            if publish:
                self._publish()

    def put_flows(self, flows: FlowTable | None) -> None:
        """Replace the flows."""
        with self._lock:
            self.flows = flows
            self._publish()

    def put_drops(self, drops: Drops) -> None:
        """Replace the counters of dropped packets, if any differs."""
        with self._lock:
            old, self.drops = self.drops, drops
            if old is None or replace(old, taken_at=drops.taken_at) != drops:
                self._publish()

    def note(self, change: Change) -> None:
        """Publish a change that isn't one of the snapshot, such as lost events."""
        with self._lock:
            self._publish((change,))

    def _publish(self, found: tuple[Change, ...] = ()) -> None:
        """Give the listener all that is known; call it with the lock held."""
        self._listener(Update(self.snapshot, self.rates, found, self.flows, self.fast, drops=self.drops))
