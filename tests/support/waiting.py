"""Wait for conditions with one generous time-out, and repeat actions meanwhile."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Factor by which this machine is slower than usual, as an emulated one.
SLOW = float(os.environ.get("VNET_SLOW") or 1)


def scaled(seconds: float) -> float:
    """Return a time-out in seconds, multiplied by the factor of a slow machine."""
    return seconds * SLOW


# Seconds. Only failures take as long, even if other processes use both cores.
PATIENCE = scaled(60.0)


def eventually(holds: Callable[[], Any], seconds: float = PATIENCE, pause: float = 0.05) -> Any:
    """Poll `holds` until it is true; return its value, or the last after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := holds()) and time.monotonic() < deadline:
        time.sleep(pause)
    return found


def wait_until(holds: Callable[[], Any], what: str = "", seconds: float = PATIENCE) -> Any:
    """Poll `holds` until it is true; return its value, or fail naming `what`.

    It fails after `seconds`.
    """
    found = eventually(holds, seconds, pause=0.02)
    assert found, f"waited {seconds:.0f} s in vain{what and f' for {what}'}"
    return found


@contextmanager
def repeating(action: Callable[[], object], pause: float = 0.0) -> Iterator[None]:
    """Call `action` again and again in a thread while the body runs."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(pause):
            action()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
