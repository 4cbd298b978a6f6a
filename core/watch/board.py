"""The present snapshot: threads put the parts that they read, whoever listens gets each new whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from core.diff import changes
from core.model import Change, Problem, Snapshot
from core.rates import Rates

PARTS = frozenset({"namespaces", "links", "firewall", "conntrack", "containers", "ovs"})


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What listeners get: the whole picture, the rates, and what changed since the update before."""

    snapshot: Snapshot
    rates: Rates
    changes: tuple[Change, ...] = ()


class Board:
    """Holds the snapshot. Every method may be called from any thread."""

    def __init__(self, listener: Callable[[Update], None]) -> None:
        self._lock = threading.Lock()
        self._listener = listener
        self.snapshot = Snapshot(pending=PARTS)
        self.rates = Rates()

    def put(self, part: str, problems: tuple[Problem, ...] | None = None, **fields: Any) -> None:
        """Replace fields of the snapshot, read as `part`, and that part's problems (None: as they were).

        The listener is told where anything differs.
        """
        with self._lock:
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
            self._listener(Update(self.snapshot, self.rates, found))

    def put_rates(self, rates: Rates) -> None:
        """Replace the rates."""
        with self._lock:
            self.rates = rates
            self._listener(Update(self.snapshot, rates))

    def note(self, change: Change) -> None:
        """Tell the listener of something that happened to the watching itself."""
        with self._lock:
            self._listener(Update(self.snapshot, self.rates, (change,)))
