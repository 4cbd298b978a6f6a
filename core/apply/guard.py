"""The guard's process: waits for the confirmation, and takes the change back where none comes.

Run as `python -m core.apply.guard FILE SETTINGS` by `core.apply.guard`, in the network namespace of its
caller. It loads what it reverts with only when it does, and keeps no descriptor but those of its file and of
its caller's process.
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
from core.apply.state import StateError, boot_id, state_directory, unusable
from core.operations import Operation, undo_of
from core.tools import own_python, with_packages

# The guard: a process of its own that takes a change back unless a person confirms it in time.
#
# It is for changes that can cut the person off. It starts before the first step, survives its caller, the
# terminal and the session, and takes back what was begun when the caller dies half-way. A guard is a file
# in the state directory that its process holds locked. Whoever removes that file decides: `confirm`, or the
# guard when it begins to revert.

SECONDS = 60.0
_READY = b"ready\n"
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "DOCKER_HOST", "PYTHONPATH")


class GuardError(Exception):
    """There is no guard, so nothing was changed; the text says why."""


@dataclass(frozen=True, slots=True)
class Guard:
    """A change that waits to be confirmed. `seconds_left` until it is taken back, None while it is still
    being made; `alive` False where its guard was killed: nobody takes it back then."""

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
    """Like `run.apply`, under a guard: what is done is taken back `seconds` after its end unless `confirm` is
    called with the outcome's `entry_id`; and at once where this process dies before the end.

    A process that hangs for `seconds` in the middle (on a terminal that is cut off, say) is killed by the
    guard. Raises GuardError, Busy and StateError before anything is changed.
    """
    return run.apply(title, steps, progress, lambda entry_id: _start(entry_id, title, seconds))


def guarded_undo(
    entry: Entry,
    seconds: float = SECONDS,
    progress: Callable[[Operation], None] = lambda _: None,
) -> run.Outcome:
    """Take back an earlier change that was completed, under a guard as `guarded_apply`'s. Until `confirm` is
    called with the outcome's `entry_id` it is a change of its own, and the earlier one counts as "done"."""
    title, steps = f"take back: {entry.title}", undo_of(entry.steps[: entry.begun])
    return run.apply(
        title,
        steps,
        progress,
        lambda entry_id: _start(entry_id, title, seconds),
        takes_back=entry.entry_id,
    )


def confirm(entry_id: str) -> bool:
    """Keep a guarded change. False where it is too late, or where the change is not complete. Raises
    StateError where the guard can't be reached."""
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
        raise StateError(f"can't tell the guard to keep it: {path.parent} ({error.strerror})") from error
    return True


def pending_guards() -> tuple[Guard, ...]:
    """The changes that wait to be confirmed, oldest first. One that was taken back waits no longer, although
    its guard ends a moment later."""
    return tuple(_pending())


def _path_of(entry_id: str) -> Path:
    """The guard's file. Raises StateError."""
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
                continue  # what it guarded went with the machine's memory, or was taken back
            left = stored["until"] and max(0.0, stored["until"] - time.monotonic())
            yield Guard(path.stem, str(stored["title"]), left, alive)
        except (ValueError, KeyError, TypeError):
            continue  # cut short by a crash
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
    """Start the guard's process and return when it watches."""
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
