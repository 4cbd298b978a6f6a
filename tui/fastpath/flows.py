"""The fast path's flows for whoever shows or records them: one reader, shared by threads, made when it is
first needed."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from core.model import FastFlows

if TYPE_CHECKING:
    from bpf.client import FlowReader


class SharedFlows:
    """Reads the flows when it is called; holds their maps until it is closed or nothing is accelerated any
    more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reader: FlowReader | None = None

    def __call__(self) -> FastFlows:
        """The flows; none where nothing is accelerated."""
        from bpf.client import FlowReader
        from bpf.runfile import here

        with self._lock, suppress(OSError):
            if self._reader is None:
                self._reader = FlowReader()
            return self._reader.read()
        return FastFlows(here(), taken_at=time.time())  # it ended while it was read

    def close(self) -> None:
        """Let go of the maps."""
        with self._lock:
            if self._reader is not None:
                self._reader.close()
