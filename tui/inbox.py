"""Takes updates from the source's threads: bursts become one, of which no change is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from core.model import Change, Conntrack, FastFlows
from tui.source import Update

# Tables of connections by namespace, and what the fast path carried then.
Tracked = tuple[Mapping[int, Conntrack], FastFlows | None]


def retold(update: Update) -> bool:
    """Whether its changes are all that ever happened until then, as a recording tells them."""
    return bool(getattr(update, "retold", False))


def fast_of(update: Update) -> FastFlows | None:
    """What the fast path counted, where the source tells that by itself, as a recording does."""
    return getattr(update, "fast", None)


def before(update: Update) -> Tracked | None:
    """The connections as they were read before those of the update, where the source measures no flows."""
    return getattr(update, "before", None)


def read_at(tables: Mapping[int, Conntrack]) -> float:
    """When the last of the tables was read, Unix time; 0 where there is none."""
    return max((one.taken_at for one in tables.values()), default=0.0)


class Inbox:
    """Holds the newest update and all changes since the last `take`; `ring` is called, from any thread, when
    something comes into an empty inbox."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._lock = threading.Lock()
        self._update: Update | None = None
        self._changes: list[Change] = []

    def put(self, update: Update) -> None:
        """Take in an update, from any thread."""
        with self._lock:
            first = self._update is None
            self._update = update
            if retold(update):
                self._changes.clear()
            self._changes += update.changes
        if first:
            self._ring()

    def take(self) -> tuple[Update, tuple[Change, ...]] | None:
        """The newest update and the changes of all since the last time, None where none came."""
        with self._lock:
            update, self._update = self._update, None
            changes, self._changes = tuple(self._changes), []
        return (update, changes) if update else None
