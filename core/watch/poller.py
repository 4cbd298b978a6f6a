"""A thread that looks at one part of the system when told to, and at an interval besides."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Poller(threading.Thread):
    """Calls `look` soon after `mark`, and every `every` seconds (None: only when marked).

    A burst of marks becomes one look: it starts `settle` seconds after the first mark. Looking never takes
    more than `share` of a core: a look that took long is followed by a pause in proportion. What `look`
    raises is given to `failed`, and the thread goes on.
    """

    def __init__(
        self,
        name: str,
        look: Callable[[], None],
        failed: Callable[[str, Exception], None],
        every: float | None = None,
        settle: float = 0.02,
        share: float = 0.1,
    ) -> None:
        super().__init__(name=f"look-{name}", daemon=True)
        self.part = name
        self.every = every
        self._look, self._failed = look, failed
        self._settle, self._share = settle, share
        self._dirty = threading.Event()
        self._stopped = threading.Event()

    def mark(self) -> None:
        """Say that the part may have changed."""
        self._dirty.set()

    def set_every(self, every: float | None) -> None:
        """Change the interval; a shorter one takes effect at once."""
        if every != self.every:
            self.every = every
            if every is not None:
                self.mark()

    def stop(self) -> None:
        """End the thread; a look under way still ends by itself."""
        self._stopped.set()
        self._dirty.set()

    def run(self) -> None:
        """The thread's life."""
        while True:
            if self._dirty.wait(self.every):
                self._stopped.wait(self._settle)
            if self._stopped.is_set():
                return
            self._dirty.clear()
            started = time.thread_time()
            try:
                self._look()
            except Exception as error:
                self._failed(self.part, error)
            spent = time.thread_time() - started
            self._stopped.wait(spent * (1 / self._share - 1))
