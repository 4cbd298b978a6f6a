"""This host as the dashboard's source: the watcher, brought up in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from core.model import FastFlows
from tui.source import Update

if TYPE_CHECKING:
    from core.watch import Watcher


class LiveSource:
    """Starts a watcher and passes on what the dashboard asks of it."""

    live = True
    title = ""

    def __init__(self, fast_flows: Callable[[], FastFlows] | None = None) -> None:
        """`fast_flows` reads what the fast path counted, None where there is none."""
        self.fast_flows = fast_flows
        self._lock = threading.Lock()
        self._watcher: Watcher | None = None
        self._view, self._all = "", False
        self._stopped = False

    def start(self, on_update: Callable[[Update], None]) -> None:
        """Begin to watch, on a thread: importing the collectors must not hold up the first paint."""
        threading.Thread(target=self._begin, args=(on_update,), name="begin-watching", daemon=True).start()

    def _begin(self, on_update: Callable[[Update], None]) -> None:
        from core.watch import Watcher

        watcher = Watcher(on_update, fast_flows=self.fast_flows)
        with self._lock:
            if self._stopped:
                return
            self._watcher = watcher
            watcher.start()
            watcher.show(self._view)
            watcher.read_all(self._all)

    def stop(self) -> None:
        """End the watching."""
        with self._lock:
            self._stopped = True
            if self._watcher:
                self._watcher.stop()

    def refresh(self) -> None:
        """Read everything again."""
        with self._lock:
            if self._watcher:
                self._watcher.refresh()

    def show(self, view: str) -> None:
        """Say which view is in sight, also before the watcher is there."""
        with self._lock:
            self._view = view
            if self._watcher:
                self._watcher.show(view)

    def read_all(self, on: bool) -> None:
        """Have every part read often, also before the watcher is there."""
        with self._lock:
            self._all = on
            if self._watcher:
                self._watcher.read_all(on)
