"""Guard changes: a process undoes a change unless it is confirmed in time.

A guard is for changes that can disconnect the user. It starts before the first step, survives its caller,
the terminal and the session, and undoes the steps executed so far if the caller dies. Its process holds a
lock on a file in the state directory. The removal of that file decides: `confirm` removes it, or the guard
before it reverts.
"""

from __future__ import annotations

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
from core.operations import Operation, undo_of, undo_title
from core.state import StateError, boot_id, lock_shared, state_directory, unusable
from core.tools import python_command, python_environment

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
    title, steps = undo_title(entry.title), undo_of(entry.steps[: entry.begun])
    return run.apply(
        title,
        steps,
        progress,
        lambda entry_id: _start(entry_id, title, seconds),
        undoes=entry.entry_id,
    )


def confirm(entry_id: str) -> bool:
    """Confirm a guarded change; return whether that was possible.

    It isn't if it is too late or the change is incomplete. Raises StateError if the guard's file
    can't be removed.
    """
    entry = journal.find(entry_id)
    if entry is None or entry.end != "done":
        return False
    path = _path_of(entry_id)
    try:
        if entry.undoes:
            journal.confirm_undo(entry, path)
        else:
            path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise StateError(f"can't confirm the change: {error.strerror} ({path.parent})") from error
    return True


def pending_guards() -> tuple[Guard, ...]:
    """Return the changes that wait for confirmation, oldest first.

    Those that are undone already are left out.
    """
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
            alive = not lock_shared(descriptor)
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


def _start(entry_id: str, title: str, seconds: float) -> None:
    """Start the guard's process, and return when it is ready."""
    path = _path_of(entry_id)
    environment = {name: text for name, text in python_environment().items() if name in _PASSED_ON}
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
            python_command("core.apply.guard_process", str(path), json.dumps(settings)),
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise GuardError(f"can't start the guard, so nothing was changed: {error.strerror}") from error
    said, _ = launcher.communicate()
    if said != _READY:
        with suppress(OSError):
            path.unlink()
        why = said.decode(errors="replace").strip() or f"its process ended with {launcher.returncode}"
        raise GuardError(f"can't start the guard, so nothing was changed: {why}")
