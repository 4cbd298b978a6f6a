"""The present snapshot: threads put the parts that they read, whoever listens gets each new whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from core.diff import changes
from core.flows.merge import FlowTable
from core.model import PARTS, Change, FastFlows, Problem, Snapshot
from core.rates import Rates


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What listeners get: the whole picture, the rates, what changed since the update before, and, where
    they are read, the flows, and what the fast path alone counted."""

    snapshot: Snapshot
    rates: Rates
    changes: tuple[Change, ...] = ()
    flows: FlowTable | None = None
    fast: FastFlows | None = None


class SnapshotStore:
    """Holds the snapshot. Every method may be called from any thread."""

    def __init__(self, listener: Callable[[Update], None]) -> None:
        self._lock = threading.Lock()
        self._listener = listener
        self.snapshot = Snapshot(pending=PARTS)
        self.rates = Rates()
        self.flows: FlowTable | None = None
        self.fast: FastFlows | None = None

    def put(
        self,
        part: str,
        problems: tuple[Problem, ...] | None = None,
        fast: FastFlows | None = None,
        **fields: Any,
    ) -> None:
        """Replace fields of the snapshot, read as `part`, and that part's problems (None: as they were);
        `fast` is what was read together with conntrack.

        The listener is told where anything differs.
        """
        with self._lock:
            if part == "conntrack":
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
            self._listener(Update(self.snapshot, self.rates, found, self.flows, self.fast))

    def put_rates(self, rates: Rates, tell: bool = True) -> None:
        """Replace the rates; where nothing shows them, the listener gets them with what it is told next."""
        with self._lock:
            self.rates = rates
            if tell:
                self._listener(Update(self.snapshot, rates, flows=self.flows, fast=self.fast))

    def put_flows(self, flows: FlowTable | None) -> None:
        """Replace the flows."""
        with self._lock:
            self.flows = flows
            self._listener(Update(self.snapshot, self.rates, flows=flows, fast=self.fast))

    def note(self, change: Change) -> None:
        """Tell the listener of something that happened to the watching itself."""
        with self._lock:
            self._listener(Update(self.snapshot, self.rates, (change,), self.flows, self.fast))
