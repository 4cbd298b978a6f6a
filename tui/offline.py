"""A dump file as the dashboard's source: one picture that never changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from core.model import Change, FastFlows, Snapshot
from tui.source import Update


@dataclass(frozen=True, slots=True)
class Picture:
    """The only update that a file gives."""

    snapshot: Snapshot
    fast: FastFlows | None = None
    rates: None = None
    changes: tuple[Change, ...] = ()
    flows: None = None


class FileSource:
    """Gives the snapshot of a file, again at each refresh."""

    live = False

    def __init__(self, snapshot: Snapshot, name: str = "", fast: FastFlows | None = None) -> None:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(snapshot.taken_at))
        self.title = f"{name} of {moment}".strip()
        self._picture = Picture(snapshot, fast)
        self._on_update: Callable[[Update], None] | None = None

    def start(self, on_update: Callable[[Update], None]) -> None:
        """Give the picture at once."""
        self._on_update = on_update
        on_update(self._picture)

    def stop(self) -> None:
        """Nothing runs."""
        self._on_update = None

    def refresh(self) -> None:
        """Give the picture again."""
        if self._on_update:
            self._on_update(self._picture)

    def show(self, view: str) -> None:
        """Every part is there already."""

    def read_all(self, on: bool) -> None:
        """There is nothing more to be read."""
