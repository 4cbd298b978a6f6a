"""Run a reading function in a thread: after events, and at an interval."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Poller(threading.Thread):
    """Call `poll` soon after `mark`, and every `every` seconds (None: only then).

    Several marks become one poll, which starts `debounce` seconds after the first. Polling takes no more than
    `share` of a core: a long poll is followed by a pause in proportion. An exception of `poll` is given to
    `failed`, and the thread goes on.
    """

    def __init__(
        self,
        name: str,
        poll: Callable[[], None],
        failed: Callable[[str, Exception], None],
        every: float | None = None,
        debounce: float = 0.02,
        share: float = 0.1,
    ) -> None:
        super().__init__(name=f"poll-{name}", daemon=True)
        self.part = name
        self.every = every
        self._poll, self._failed = poll, failed
        self._debounce, self._share = debounce, share
        self._dirty = threading.Event()
        self._stopped = threading.Event()

    def mark(self) -> None:
        """Poll soon: the part may have changed."""
        self._dirty.set()

    def set_every(self, every: float | None) -> None:
        """Change the interval; a shorter one takes effect at once."""
        if every != self.every:
            self.every = every
            if every is not None:
                self.mark()

    def stop(self) -> None:
        """End the thread; a poll under way still ends by itself."""
        self._stopped.set()
        self._dirty.set()

    def run(self) -> None:
        """Poll until stopped."""
        while True:
            if self._dirty.wait(self.every):
                self._stopped.wait(self._debounce)
            if self._stopped.is_set():
                return
            self._dirty.clear()
            started = time.thread_time()
            try:
                self._poll()
            except Exception as error:
                self._failed(self.part, error)
            spent = time.thread_time() - started
            self._stopped.wait(spent * (1 / self._share - 1))
