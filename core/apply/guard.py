"""The guard: a process that undoes a change unless it is confirmed in time.

Run as `python -m core.apply.guard FILE SETTINGS` by `core.apply.guard`, in the network namespace of its
caller. It keeps no descriptors except those of its file and of its caller's process.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.apply import journal, run
from core.apply.entries import Entry
from core.operations import Operation, undo_of
from core.state import StateError, boot_id, state_directory, unusable
from core.tools import own_python, with_packages

# A guard is for changes that can disconnect the user. It starts before the first step, survives its caller,
# the terminal and the session, and undoes the steps executed so far if the caller dies. Its process holds a
# lock on a file in the state directory. The removal of that file decides: `confirm` removes it, or the guard
# before it reverts.

SECONDS = 60.0
_READY = b"ready\n"
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "DOCKER_HOST", "PYTHONPATH")


class GuardError(Exception):
    """The guard can't start, so nothing was changed."""


@dataclass(frozen=True, slots=True)
class Guard:
    """A change that waits for confirmation.

    It is undone in `seconds_left`, None while it is still being executed. `alive` is False if its guard was
    killed: then nothing undoes it.
    """

    entry_id: str
    title: str
    seconds_left: float | None
    alive: bool = True


def guarded_apply(
    title: str,
    steps: tuple[Operation, ...],
    seconds: float = SECONDS,
    progress: Callable[[Operation], None] = lambda _: None,
) -> run.Outcome:
    """Apply a change under a guard.

    It is undone `seconds` after its end unless `confirm` is called with the outcome's `entry_id`, and at once
    if this process dies before the end. The guard kills a process that hangs for `seconds` before the end,
    for example on a disconnected terminal. Raises GuardError, Busy and StateError before anything is changed.
    """
    return run.apply(title, steps, progress, lambda entry_id: _start(entry_id, title, seconds))


def guarded_undo(
    entry: Entry,
    seconds: float = SECONDS,
    progress: Callable[[Operation], None] = lambda _: None,
) -> run.Outcome:
    """Undo an earlier change under a guard, see `guarded_apply`.

    Until `confirm` is called with the outcome's `entry_id`, it is a change of its own, and the earlier one
    counts as "done".
    """
    title, steps = f"take back: {entry.title}", undo_of(entry.steps[: entry.begun])
    return run.apply(
        title,
        steps,
        progress,
        lambda entry_id: _start(entry_id, title, seconds),
        takes_back=entry.entry_id,
    )


def confirm(entry_id: str) -> bool:
    """Confirm a guarded change; return False if it is too late or the change is incomplete.

    Raises StateError if the guard's file can't be removed.
    """
    entry = journal.find(entry_id)
    if entry is None or entry.end != "done":
        return False
    path = _path_of(entry_id)
    try:
        if entry.takes_back:
            journal.settle(entry, path)
        else:
            path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StateError(f"can't confirm the change: {path.parent} ({error.strerror})") from error
    return True


def pending_guards() -> tuple[Guard, ...]:
    """Return the changes that wait for confirmation, oldest first, without those undone already."""
    return tuple(_pending())


def _path_of(entry_id: str) -> Path:
    """Return the path of a guard's file. Raises StateError."""
    folder = state_directory() / "guards"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StateError(unusable(folder, error)) from error
    return folder / f"{entry_id}.json"


def _pending() -> Iterator[Guard]:
    for path in sorted(_path_of("").parent.glob("*.json")):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            alive = not _unlocked(descriptor)
            stored = json.loads(os.pread(descriptor, 4096, 0))
            if stored["boot"] != boot_id() or _is_undone(path.stem):
                continue  # the change was lost at a restart of the machine, or was undone
            left = stored["until"] and max(0.0, stored["until"] - time.monotonic())
            yield Guard(path.stem, str(stored["title"]), left, alive)
        except (ValueError, KeyError, TypeError):
            continue  # incomplete after a crash
        finally:
            os.close(descriptor)


def _is_undone(entry_id: str) -> bool:
    entry = journal.find(entry_id)
    return entry is not None and entry.end == "undone"


def _unlocked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start(entry_id: str, title: str, seconds: float) -> None:
    """Start the guard's process, and return when it is ready."""
    path = _path_of(entry_id)
    environment = {name: text for name, text in with_packages().items() if name in _PASSED_ON}
    environment["VNET_STATE"] = str(path.parents[1])
    settings = {
        "entry": entry_id,
        "title": title[:200],
        "seconds": seconds,
        "caller": os.getpid(),
        "boot": boot_id(),
    }
    try:
        launcher = subprocess.Popen(
            own_python("core.apply.guard", str(path), json.dumps(settings)),
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise GuardError(f"nothing was changed: the guard does not start ({error.strerror})") from error
    said, _ = launcher.communicate()
    if said != _READY:
        with suppress(OSError):
            path.unlink()
        raise GuardError(f"nothing was changed: the guard does not start ({said.decode(errors='replace')})")


_POLL_EVERY = 0.2
_TRIES = 5
_BETWEEN_TRIES = 2.0
# More bytes than a journal file of a guarded change has after its first line.
_TAIL = 1 << 18


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
    """Watches one change; `caller` is a pidfd of the process that executes it."""

    def __init__(self, path: Path, settings: dict[str, Any], caller: int) -> None:
        self._path, self._caller, self._settings = path, caller, settings
        self._journal = path.parents[1] / "journal" / f"{settings['entry']}.jsonl"
        self._until = time.monotonic() + settings["seconds"]
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        self._note(None)

    def hurry(self, *_: object) -> None:
        """Stop waiting, on SIGTERM."""
        self._until = 0.0

    def watch(self) -> bool:
        """Wait for a decision; return whether the change is kept."""
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
        """Undo the change; wait for the writers' lock."""
        self._end_caller()
        from core.apply import journal, run

        for _ in range(_TRIES):
            with suppress(Exception):  # a full disk or a stopped engine may be temporary
                entry = journal.find(self._settings["entry"])
                if entry is None or run.undo(entry, wait=True).end == "undone":
                    return
            time.sleep(_BETWEEN_TRIES)

    def _wait_for_caller(self) -> None:
        """Wait until the change has an end, its process has died, or time is up."""
        poll = select.poll()
        poll.register(self._caller, select.POLLIN)
        while time.monotonic() < self._until and not self._end():
            if poll.poll(_POLL_EVERY * 1000):
                return

    def _wait_for_confirmation(self) -> None:
        """Wait until the file is gone, the change was undone, or time is up."""
        while time.monotonic() < self._until and self._path.exists() and self._end() == "done":
            time.sleep(_POLL_EVERY)

    def _end_caller(self) -> None:
        """Kill a caller that hangs: it holds the writers' lock."""
        if not self._end():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._caller, signal.SIGKILL)

    def _end(self) -> str:
        """Return how the change ended, see core.apply.entries.Entry."""
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
        """Write to the file until when the change waits, on the monotonic clock."""
        text = json.dumps({key: self._settings[key] for key in ("title", "boot")} | {"until": until})
        os.pwrite(self._descriptor, text.ljust(os.fstat(self._descriptor).st_size).encode(), 0)


if __name__ == "__main__":
    sys.exit(main())
