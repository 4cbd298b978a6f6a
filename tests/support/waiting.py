"""Wait for conditions with one generous time-out, however busy the machine is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

# How many times slower than usual this machine is: an emulated one needs a factor.
SLOW = float(os.environ.get("VNET_SLOW") or 1)


def scaled(seconds: float) -> float:
    """A time-out in seconds, longer by the factor of a slow machine."""
    return seconds * SLOW


# Seconds. Nothing that works takes as long, not even where others want both cores: only failures do.
PATIENCE = scaled(60.0)


def eventually(holds: Callable[[], Any], seconds: float = PATIENCE, pause: float = 0.05) -> Any:
    """Poll `holds` until it is true and return its value, or its last value after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := holds()) and time.monotonic() < deadline:
        time.sleep(pause)
    return found


def wait_until(holds: Callable[[], Any], what: str = "", seconds: float = PATIENCE) -> Any:
    """Poll `holds` until it is true and return its value; fail the test, naming `what`, after `seconds`."""
    found = eventually(holds, seconds, pause=0.02)
    assert found, f"waited {seconds:.0f} s in vain{what and f' for {what}'}"
    return found
