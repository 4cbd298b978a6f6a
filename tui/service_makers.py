"""Hold the functions that make the dashboard's services.

The services themselves import too much before the first paint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tui.services import CaptureService, ChangeService, FastPathService, LabFaultService


@dataclass(frozen=True, slots=True)
class Services:
    """Functions that make the dashboard's services at their first use; None: without.

    They change networks, control the fast path, capture packets, and inject faults into the demo lab.
    """

    change: Callable[[], ChangeService] | None = None
    fast_path: Callable[[], FastPathService] | None = None
    capture: Callable[[], CaptureService] | None = None
    lab_faults: Callable[[], LabFaultService] | None = None


NO_SERVICES = Services()
