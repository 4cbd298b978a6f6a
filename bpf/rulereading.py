"""Reads the rules in a thread: tens of thousands take seconds, in which the lease must be renewed."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

from bpf import obstacles
from bpf.judging import Links
from bpf.obstacles import Obstacles
from bpf.ruleset import RuleCache


class RuleReading:
    """One reading at a time; its descriptor is readable when a reading is done."""

    def __init__(self) -> None:
        self.cache = RuleCache()
        self._done = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread: threading.Thread | None = None
        self._found: Obstacles | Exception = Obstacles()
        self._again = False
        self._links: Links | None = None

    def fileno(self) -> int:
        """What to wait for."""
        return self._done[0]

    @property
    def is_busy(self) -> bool:
        """Whether they are being read, or were and wait to be taken."""
        return self._thread is not None

    def start(self, links: Links | None) -> None:
        """Read them from now on, for packets on these links; where they are being read already, once more
        after that."""
        self._links = links
        if self._thread is not None:
            self._again = True
            return
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            self._found = obstacles.find(self.cache, self._links)
        except Exception as error:
            self._found = error
        with suppress(OSError):
            os.write(self._done[1], b"\0")

    def take(self) -> Obstacles | None:
        """What was found; None where they are read once more. Raises what the thread came upon."""
        os.read(self._done[0], 64)
        if self._thread is not None:
            self._thread.join()
        self._thread = None
        if self._again:
            self._again = False
            self.start(self._links)
            return None
        if isinstance(self._found, Exception):
            raise self._found
        return self._found
