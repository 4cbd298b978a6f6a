"""Inject faults into the demo lab that this process runs in."""

from __future__ import annotations

import subprocess

from core.lab import LabError
from core.lab.faults import FAULTS
from core.lab.inject import active_faults, lab_settings
from core.lab.lab import change_faults
from tui.command import CommandError
from tui.services import LabFault


class LabFaults:
    """List, inject and undo the faults of the lab that this process is in."""

    def faults(self) -> list[LabFault]:
        """Return all faults; none outside of a lab, and in one of several hosts."""
        settings = lab_settings()
        if settings is None or settings.ranges:
            return []
        active = set(active_faults())
        return [LabFault(name, fault.sentence, name in active) for name, fault in FAULTS.items()]

    def inject(self, name: str) -> None:
        """Inject a fault; raises CommandError."""
        self._change("inject", name)

    def undo(self, name: str) -> None:
        """Undo a fault; raises CommandError."""
        self._change("undo", name)

    def _change(self, verb: str, name: str) -> None:
        try:
            change_faults(verb, [name], subprocess.Popen)
        except LabError as error:
            raise CommandError(str(error)) from error
