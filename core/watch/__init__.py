"""Live snapshots: the watcher, its threads, and the store that they fill."""

from core.watch.store import SnapshotStore
from core.watch.watcher import Watcher

__all__ = ["SnapshotStore", "Watcher"]
