"""The guard's process: waits for the confirmation, and takes the change back where none comes.

Run as `python -m core.apply.guardian FILE SETTINGS` by `core.apply.guard`, in the network namespace of its
caller. It loads what it reverts with only when it does, and keeps no descriptor but those of its file and of
its caller's process.
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

_LOOK_EVERY = 0.2
_TRIES = 5
_BETWEEN_TRIES = 2.0
# More than what is behind the first line of a journal file takes, of any change that is guarded.
_TAIL = 1 << 18


def main() -> int:
    """Detach, say so on standard output, watch, and revert if need be."""
    path, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    caller = os.pidfd_open(settings["caller"])
    if os.getppid() != settings["caller"]:
        return 1  # it died before us; the pid may be another's by now
    for ignored in (signal.SIGHUP, signal.SIGINT):
        signal.signal(ignored, signal.SIG_IGN)
    if os.fork():
        return 0
    with suppress(OSError):
        Path("/proc/self/comm").write_text("vnet-guard")
    guardian = Guardian(path, settings, caller)
    signal.signal(signal.SIGTERM, guardian.hurry)
    os.write(1, b"ready\n")
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    os.close(nothing)
    if not guardian.watch():
        guardian.revert()
    return 0


class Guardian:
    """Watches one change; `caller` is a pidfd of the process that makes it."""

    def __init__(self, path: Path, settings: dict[str, Any], caller: int) -> None:
        self._path, self._caller, self._settings = path, caller, settings
        self._journal = path.parents[1] / "journal" / f"{settings['entry']}.jsonl"
        self._until = time.monotonic() + settings["seconds"]
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self._note(None)

    def hurry(self, *_: object) -> None:
        """Asked to end (SIGTERM): wait no longer."""
        self._until = 0.0

    def watch(self) -> bool:
        """Wait until it is clear what is to be done; says whether the change is to stay as it is."""
        self._wait_for_caller()
        match self._end():
            case "undone":
                self._path.unlink(missing_ok=True)
                return True
            case "done" if self._until:
                self._until = time.monotonic() + self._settings["seconds"]
                self._note(self._until)
                self._wait_for_confirmation()
        try:
            self._path.unlink()
        except FileNotFoundError:
            return True  # confirmed
        return self._end() == "undone"

    def revert(self) -> None:
        """Take back what was begun; the writers' lock is waited for."""
        self._end_caller()
        from core.apply import journal, run

        for _ in range(_TRIES):
            with suppress(Exception):  # a full disk, an engine that is away: perhaps not the next time
                entry = journal.find(self._settings["entry"])
                if entry is None or run.undo(entry, wait=True).end == "undone":
                    return
            time.sleep(_BETWEEN_TRIES)

    def _wait_for_caller(self) -> None:
        """Until the change has an end, its maker has died, or time is up."""
        poll = select.poll()
        poll.register(self._caller, select.POLLIN)
        while time.monotonic() < self._until and not self._end():
            if poll.poll(_LOOK_EVERY * 1000):
                return

    def _wait_for_confirmation(self) -> None:
        """Until the file is gone, somebody else took the change back, or time is up."""
        while time.monotonic() < self._until and self._path.exists() and self._end() == "done":
            time.sleep(_LOOK_EVERY)

    def _end_caller(self) -> None:
        """A caller that is still at it holds the writers' lock and may hold it for ever."""
        if not self._end():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._caller, signal.SIGKILL)

    def _end(self) -> str:
        """How the change ended, as its journal says: see core.apply.journal.Entry."""
        try:
            with self._journal.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
                lines = file.read().splitlines()
        except OSError:
            return ""
        for line in reversed(lines):
            if line.startswith(b'{"end"'):
                with suppress(ValueError):
                    return str(json.loads(line)["end"])
        return ""

    def _note(self, until: float | None) -> None:
        """Tell whoever asks until when, on the monotonic clock, the change waits."""
        text = json.dumps({key: self._settings[key] for key in ("title", "boot")} | {"until": until})
        os.pwrite(self._descriptor, text.ljust(os.fstat(self._descriptor).st_size).encode(), 0)


if __name__ == "__main__":
    sys.exit(main())
