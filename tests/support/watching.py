"""Collect the updates of a watcher under test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from core.model import WATCHED_PARTS, Change, Snapshot
from core.update import Update
from core.watch import Watcher
from tests.support.waiting import PATIENCE


class Watched:
    """Collect a watcher's updates; `until` waits for a snapshot."""

    def __init__(self, **options: Any) -> None:
        self.updates: list[Update] = []
        self.came = threading.Condition()
        self.watcher = Watcher(self.listen, **options)

    def listen(self, update: Update) -> None:
        with self.came:
            self.updates.append(update)
            self.came.notify_all()

    @property
    def snapshot(self) -> Snapshot:
        return self.updates[-1].snapshot if self.updates else Snapshot(pending=WATCHED_PARTS)

    @property
    def changes(self) -> list[Change]:
        with self.came:
            return [change for update in self.updates for change in update.changes]

    def until(self, condition: Callable[[Snapshot], object], timeout: float = PATIENCE) -> Snapshot:
        """Wait for a snapshot for which `condition` is true."""
        end = time.monotonic() + timeout
        with self.came:
            while not condition(self.snapshot):
                left = end - time.monotonic()
                if left <= 0 or not self.came.wait(left):
                    raise AssertionError("the awaited snapshot did not come")
            return self.snapshot
