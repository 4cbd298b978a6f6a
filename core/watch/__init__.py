"""Live snapshots: the watcher, its threads, and the board that they fill."""

from core.watch.board import Board, Update
from core.watch.watcher import Watcher

__all__ = ["Board", "Update", "Watcher"]
