"""Wait for the confirmation of a change, and undo the change without one.

Run as `python -m core.apply.guard_process FILE SETTINGS` by `core.apply.guard`, in the network namespace of
its caller. It keeps no descriptors except those of its file and of its caller's process, and imports what it
needs for an undo only then: many guards may wait.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_POLL_EVERY = 0.2
_MAX_TRIES = 5
_RETRY_INTERVAL = 2.0
# More bytes than a journal file of a guarded change has after its first line.
_TAIL_BYTES = 1 << 18


def main() -> int:
    """Detach, print "ready", watch the change, and revert it if necessary."""
    path, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    caller = os.pidfd_open(settings["caller"])
    if os.getppid() != settings["caller"]:
        return 1  # the caller is dead, and its pid may be reused
    for ignored in (signal.SIGHUP, signal.SIGINT):
        signal.signal(ignored, signal.SIG_IGN)
    if os.fork():
        return 0
    with suppress(OSError):
        Path("/proc/self/comm").write_text("vnet-guard")
    guard = GuardProcess(path, settings, caller)
    signal.signal(signal.SIGTERM, guard.stop_waiting)
    os.write(1, b"ready\n")
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.close(nothing)
    if not guard.watch():
        guard.revert()
    return 0


class GuardProcess:
    """Watch one change; `caller` is a pidfd of the process that executes it."""

    def __init__(self, path: Path, settings: dict[str, Any], caller: int) -> None:
        self._path, self._caller, self._settings = path, caller, settings
        self._journal = path.parents[1] / "journal" / f"{settings['entry']}.jsonl"
        self._until = time.monotonic() + settings["seconds"]
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self._write_deadline(None)

    def stop_waiting(self, *_: object) -> None:
        """Stop waiting, on SIGTERM."""
        self._until = 0.0

    def watch(self) -> bool:
        """Wait for a decision; return whether the change is kept."""
        self._wait_for_caller()
        match self._read_end():
            case "undone":
                self._path.unlink(missing_ok=True)
                return True
            case "done" if self._until:
                self._until = time.monotonic() + self._settings["seconds"]
                self._write_deadline(self._until)
                self._wait_for_confirmation()
        try:
            self._path.unlink()
        except FileNotFoundError:
            return True  # confirmed
        return self._read_end() == "undone"

    def revert(self) -> None:
        """Undo the change; wait for the writers' lock."""
        self._kill_caller()
        from core.apply import journal, run

        for _ in range(_MAX_TRIES):
            with suppress(Exception):  # a full disk or a stopped engine may be temporary
                entry = journal.find(self._settings["entry"])
                if entry is None or run.undo(entry, wait=True).end == "undone":
                    return
            time.sleep(_RETRY_INTERVAL)

    def _wait_for_caller(self) -> None:
        """Wait until the change has an end, its process has died, or time is up."""
        poll = select.poll()
        poll.register(self._caller, select.POLLIN)
        while time.monotonic() < self._until and not self._read_end():
            if poll.poll(_POLL_EVERY * 1000):
                return

    def _wait_for_confirmation(self) -> None:
        """Wait until the file is gone, the change was undone, or time is up."""
        while time.monotonic() < self._until and self._path.exists() and self._read_end() == "done":
            time.sleep(_POLL_EVERY)

    def _kill_caller(self) -> None:
        """Kill a caller that hangs: it holds the writers' lock."""
        if not self._read_end():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._caller, signal.SIGKILL)

    def _read_end(self) -> str:
        """Return how the change ended, see core.apply.entries.Entry."""
        try:
            with self._journal.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                lines = file.read().splitlines()
        except OSError:
            return ""
        for line in reversed(lines):
            if line.startswith(b'{"end"'):
                with suppress(ValueError):
                    return str(json.loads(line)["end"])
        return ""

    def _write_deadline(self, until: float | None) -> None:
        """Write to the file until when the change waits, on the monotonic clock."""
        text = json.dumps({key: self._settings[key] for key in ("title", "boot")} | {"until": until})
        os.pwrite(self._descriptor, text.ljust(os.fstat(self._descriptor).st_size).encode(), 0)


if __name__ == "__main__":
    sys.exit(main())
