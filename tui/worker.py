"""One thread that works for the screen, so that the event loop never waits: the newest request wins."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Worker(threading.Thread):
    """Runs what it is asked to, in the order of the first request of each kind; a request that has not begun
    when another of its kind comes is replaced by it. `deliver(kind, result)` is called from this thread;
    what the work raises is delivered as its result."""

    def __init__(self, deliver: Callable[[str, Any], None]) -> None:
        super().__init__(name="screen-worker", daemon=True)
        self._deliver = deliver
        self._requests: dict[str, Callable[[], Any]] = {}
        self._wake = threading.Condition()
        self._stopped = False
        self._busy = False

    @property
    def idle(self) -> bool:
        """Whether nothing is asked for or under way."""
        with self._wake:
            return not self._requests and not self._busy

    def ask(self, kind: str, work: Callable[[], Any]) -> None:
        """Have `work` done soon."""
        with self._wake:
            self._requests[kind] = work
            self._wake.notify()

    def stop(self) -> None:
        """End the thread after the work under way."""
        with self._wake:
            self._stopped = True
            self._wake.notify()

    def run(self) -> None:
        """The thread's life."""
        while True:
            with self._wake:
                self._busy = False
                self._wake.wait_for(lambda: self._requests or self._stopped)
                if self._stopped:
                    return
                kind = next(iter(self._requests))
                work = self._requests.pop(kind)
                self._busy = True
            try:
                result = work()
            except Exception as error:
                result = error
            self._deliver(kind, result)
