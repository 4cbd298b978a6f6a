"""Live snapshots: the watcher, its threads, and the board that they fill."""

from core.watch.store import SnapshotStore, Update
from core.watch.watcher import Watcher

__all__ = ["SnapshotStore", "Update", "Watcher"]
