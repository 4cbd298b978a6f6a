"""The guard: a process of its own that takes a change back unless a person confirms it in time.

It is for changes that can cut the person off. It starts before the first step, survives its caller, the
terminal and the session, and takes back what was begun when the caller dies half-way. A guard is a file in
the state directory that its process holds locked. Whoever removes that file decides: `confirm`, or the guard
when it begins to revert.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core.apply import journal, run
from core.apply.entries import Entry
from core.apply.state import StateError, boot_id, state_directory, unusable
from core.environment import own_python, with_packages
from core.ops import Operation, undo_of

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
            own_python("core.apply.guardian", str(path), json.dumps(settings)),
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
