"""Kill this process at a chosen call of a change, or of its undo.

Only calls with an effect count: netlink, nftables, files, mounts and processes while a journal file is open
for writing. `sys.monitoring` sees them, so that the program needs no hook.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.apply import journal, run

KILL_AT, COUNTED, FAIL_AT = "VNET_TEST_KILL_AT", "VNET_TEST_COUNTED", "VNET_TEST_FAIL_AT"
_TOOL = sys.monitoring.DEBUGGER_ID
_CALLS = frozenset([
    "close", "fork_exec", "fsync", "ftruncate", "mkdir", "open", "pwrite", "replace", "rename", "send",
    "sendmsg", "sendto", "unlink", "unshare", "write", "__exit__",
])  # fmt: skip


def arm(environment: Mapping[str, str]) -> None:
    """Count calls, kill or fail as the environment says.

    Calls are counted into the file COUNTED; the process is killed before the one with the number KILL_AT, and
    the operation with the number FAIL_AT fails.
    """
    if fail_at := int(environment.get(FAIL_AT, 0)):
        _fail(fail_at)
    if COUNTED in environment or KILL_AT in environment:
        _Counter(int(environment.get(KILL_AT, 0)), environment.get(COUNTED, "")).watch()


class _Counter:
    def __init__(self, kill_at: int, counted: str) -> None:
        self._kill_at, self._counted, self._seen = kill_at, counted, 0

    def watch(self) -> None:
        """Count while a journal file is open for writing."""
        begin, reopen, close = journal.NewEntryWriter.__init__, journal.reopen, journal.Writer.close

        def recorded(record: journal.NewEntryWriter, *arguments: Any) -> None:
            self._listen(True)
            begin(record, *arguments)

        def reopened(entry: Any) -> journal.Writer:
            self._listen(True)
            return reopen(entry)

        def closed(writer: journal.Writer) -> None:
            close(writer)
            self._listen(False)
            if self._counted:
                Path(self._counted).write_text(str(self._seen))

        sys.monitoring.use_tool_id(_TOOL, "killing")
        sys.monitoring.register_callback(_TOOL, sys.monitoring.events.CALL, self._called)
        journal.NewEntryWriter.__init__ = recorded  # type: ignore[method-assign]
        journal.reopen = reopened
        journal.Writer.close = closed  # type: ignore[method-assign]

    def _listen(self, on: bool) -> None:
        sys.monitoring.set_events(_TOOL, sys.monitoring.events.CALL if on else 0)

    def _called(self, code: object, offset: int, called: Any, argument: object) -> None:
        is_foreign = isinstance(called, ctypes._CFuncPtr)  # mounts, and libnftables
        if is_foreign or getattr(called, "__name__", "") in _CALLS:
            self._seen += 1
            if self._seen == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


def _fail(at: int) -> None:
    """Have the kernel refuse one operation of the change."""
    real, left = run.execute, at

    def failing(operation: Any, kernel: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        real(operation, kernel)

    run.execute = failing  # type: ignore[assignment]
