"""What is due when, for one thread that waits for events in between."""

from __future__ import annotations

import time
from collections.abc import Callable

Action = Callable[[], None]


class Schedule:
    """Actions by name, each with the time at which it is due (of time.monotonic())."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}
        self._actions: dict[str, tuple[Action, float]] = {}

    def every(self, name: str, seconds: float, action: Action) -> None:
        """From now on, again and again."""
        self._actions[name] = (action, seconds)
        self._due[name] = time.monotonic()

    def once(self, name: str, after: float, action: Action, again: bool = False) -> None:
        """Once, after some seconds; where it is waiting already the earlier time counts, with `again` this
        one."""
        self._actions[name] = (action, 0.0)
        if again or name not in self._due:
            self._due[name] = time.monotonic() + after

    def wait(self) -> float:
        """Seconds until something is due."""
        return max(0.0, min(self._due.values(), default=time.monotonic() + 1) - time.monotonic())

    def run(self) -> None:
        """Do what is due, the earliest first."""
        now = time.monotonic()
        for name in sorted((name for name, at in self._due.items() if at <= now), key=self._due.__getitem__):
            action, seconds = self._actions[name]
            if seconds:
                self._due[name] = time.monotonic() + seconds
            else:
                del self._due[name]
            action()
