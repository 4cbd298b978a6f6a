"""Offer the demo lab's faults in the palette, and change them in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from textual.app import SystemCommand

from core.text import safe
from tui.command import CommandError
from tui.screens.layout import Layout

if TYPE_CHECKING:
    from tui.services import LabFault, LabFaultService

_NOTICE = 6.0  # seconds


def palette_entries(screen: Layout, service: LabFaultService) -> Iterator[SystemCommand]:
    """Yield an entry for each fault, the active ones first."""
    for fault in sorted(service.faults(), key=lambda one: not one.active):
        does = "undo this fault" if fault.active else "inject this fault into the demo lab"
        title = f"{'Undo fault' if fault.active else 'Fault'}: {fault.sentence}"
        yield SystemCommand(title, f"{does} ({fault.name})", partial(_start, screen, service, fault))


def _start(screen: Layout, service: LabFaultService, fault: LabFault) -> None:
    screen.run_worker(_change(screen, service, fault), group="lab faults")


async def _change(screen: Layout, service: LabFaultService, fault: LabFault) -> None:
    change = service.undo if fault.active else service.inject
    try:
        await asyncio.to_thread(change, fault.name)
    except CommandError as error:
        screen.notify(safe(str(error)), severity="error", markup=False, timeout=_NOTICE)
        return
    done = "Fault undone" if fault.active else "Fault injected"
    screen.notify(f"{done}: {fault.sentence}", markup=False, timeout=_NOTICE)
