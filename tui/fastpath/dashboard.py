"""One session of the fast path for all threads of the dashboard, made when the first of them needs it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from core.model import FastFlows

if TYPE_CHECKING:
    from tui.fastpath.session import FastSession


class FastForDashboard:
    """Hands out the session; what it turns on ends with the dashboard."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._session: FastSession | None = None

    def accelerator(self) -> FastSession:
        """The session."""
        from tui.fastpath.session import FastSession

        with self._lock:
            if self._session is None:
                self._session = FastSession(tied=True)
            return self._session

    def flows(self) -> FastFlows:
        """What the fast path counted, flow by flow."""
        return self.accelerator().read_flows()
