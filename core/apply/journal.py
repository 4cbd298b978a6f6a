"""Write changes and undos to the journal.

They are written before they are executed, so that they can be undone after a crash.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from core.apply.entries import Entry, is_closed, read
from core.operations import Operation
from core.operations.values import to_record
from core.state import StateError, boot_id, state_directory, sync_directory, try_shared_lock, unusable

UNDER_WAY = "under way"
_MAX_ENTRIES = 200  # entries
# The file of a change: its number, and the time. Files of earlier versions begin with the time.
_ENTRY_NAME = re.compile(r"(\d{1,12})-\d{8}-\d{6}-")


class Writer:
    """Append lines to a journal file.

    Raises OSError, and then leaves no part of the line.
    """

    def __init__(self, descriptor: int, entry_id: str, durable: bool) -> None:
        self.entry_id = entry_id
        self._descriptor, self._durable = descriptor, durable

    def begin(self, step: int) -> None:
        """Note that a step is about to be executed."""
        self._write({"begin": step})

    def refused(self, step: int) -> None:
        """Note that the step that was begun was not executed."""
        self._write({"refused": step})

    def undoing(self, count: int) -> None:
        """Note on disk that the first `count` steps are about to be undone."""
        self._write({"undoing": count, "boot": boot_id()})
        os.fsync(self._descriptor)

    def undo(self, number: int) -> None:
        """Note that an operation of the undo is about to be executed; the one before was."""
        self._write({"undo": number})

    def not_undone(self, number: int) -> None:
        """Note that the operation of the undo that was begun has failed."""
        self._write({"not_undone": number})

    def end(self, how: str, errors: tuple[str, ...] = ()) -> None:
        """Note how the change ended."""
        self._write({"end": how, "errors": list(errors)})
        # Other changes are lost with the machine, and this line may be lost with them.
        if self._durable:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _write(self, line: dict[str, Any]) -> None:
        text, size = json.dumps(line).encode() + b"\n", os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise


class NewEntryWriter(Writer):
    """The new journal file of a change. Raises StateError if it can't be written."""

    def __init__(self, title: str, steps: tuple[Operation, ...], undoes: str = "") -> None:
        paths = _paths()
        _trim(paths)
        now = time.time()
        entry_id = _next_id(paths, now)
        self.path, self.undoes = _directory() / f"{entry_id}.jsonl", undoes
        intent = {"title": title, "at": now, "boot": boot_id(), "steps": [to_record(step) for step in steps]}
        intent |= {"takes_back": undoes} if undoes else {}
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            descriptor = os.open(self.path, flags, 0o600)
            super().__init__(descriptor, entry_id, any(step.survives_reboot for step in steps))
            try:
                self._write(intent)
                os.fsync(descriptor)
                sync_directory(self.path.parent)
            except OSError:
                self.close()
                self.path.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise StateError(unusable(self.path.parent, error)) from error


def reopen(entry: Entry) -> Writer:
    """Open the journal file of an earlier change, to note its undo. Raises StateError."""
    path = _directory() / f"{entry.entry_id}.jsonl"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                os.write(descriptor, b"\n")  # after an incomplete line
        except OSError:
            os.close(descriptor)
            raise
    except OSError as error:
        raise StateError(unusable(path, error)) from error
    return Writer(descriptor, entry.entry_id, durable=True)


def mark(entry: Entry, how: str, errors: tuple[str, ...] = ()) -> None:
    """Note how the undo of an earlier change ended. Raises StateError."""
    writer = reopen(entry)
    try:
        writer.end(how, errors)
    except OSError as error:
        raise StateError(unusable(_directory(), error)) from error
    finally:
        writer.close()


def confirm_undo(entry: Entry, guard_file: Path) -> None:
    """Confirm a guarded undo.

    Marks the earlier change as undone, and removes the undo from the journal. The rename of the guard's file
    decides. If this process is killed after it, the next reader of the journal does the rest. Raises OSError.
    """
    guard_file.rename(_directory() / f"{entry.entry_id}.kept")
    _finish_confirmed_undos()


def _finish_confirmed_undos() -> None:
    for path in _directory().glob("*.kept"):
        entry = read(path.with_suffix(".jsonl"))
        if earlier := entry and find(entry.undoes):
            mark(earlier, "undone")
        path.with_suffix(".jsonl").unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def history() -> Iterator[Entry]:
    """Yield the changes in the journal, newest first."""
    for path in reversed(_paths()):
        if (entry := read(path)) is not None:
            yield entry


def latest(count: int) -> list[Entry]:
    """Return the latest changes, newest first; a change in progress ends `UNDER_WAY`."""
    with try_shared_lock() as no_writer:
        found = list(islice(history(), count))
    return [one if no_writer or one.end else replace(one, end=UNDER_WAY) for one in found]


def open_entries() -> tuple[Entry, ...]:
    """Return the changes that were interrupted or whose undo failed, newest first.

    Call it under the writers' lock: without it, a change in progress looks like an interrupted one.
    """
    found = (read(path) for path in reversed(_paths()) if not is_closed(path))
    return tuple(entry for entry in found if entry is not None and entry.is_open)


def require_readable(entry: Entry) -> None:
    """Raise StateError for a change that this version can't read."""
    if entry.problem:
        path = _directory() / f"{entry.entry_id}.jsonl"
        half = ", and its change may be half done" if entry.is_open else ""
        raise StateError(
            f"can't change the network: this version of vnet-tui can't read {path} ({entry.problem}){half}. "
            "Try: vnet-tui recover with the version that wrote it, or vnet-tui recover --forget "
            "(keeps what exists)"
        )


def find(entry_id: str) -> Entry | None:
    """Return the change of that id, None if there is none."""
    return None if "/" in entry_id else read(_directory() / f"{entry_id}.jsonl")


def id_of(named: str) -> str:
    """Return the id of the change that a user names by id or by number ("12").

    Returns the argument if it is no number of exactly one change.
    """
    if not named.isdecimal() or len(named) > 12:
        return named
    found = [path.stem for path in _paths() if _number(path) == int(named) > 0]
    return found[0] if len(found) == 1 else named


def _paths() -> list[Path]:
    """Return the files of the journal by the numbers of their changes."""
    folder = _directory()
    names = os.listdir(folder)
    if any(name.endswith(".kept") for name in names):
        with suppress(OSError, StateError):  # this process can only read
            _finish_confirmed_undos()
        names = os.listdir(folder)
    found = (folder / name for name in names if name.endswith(".jsonl"))
    return sorted(found, key=lambda path: (_number(path), path.name))


def _number(path: Path) -> int:
    found = _ENTRY_NAME.match(path.name)
    return int(found[1]) if found else 0


def _next_id(paths: list[Path], now: float) -> str:
    number = 1 + (_number(paths[-1]) if paths else 0)
    # The random part keeps the id of a removed change from being reused.
    return f"{number:06}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(1)}"


def _trim(paths: list[Path]) -> None:
    """Remove the oldest entries, but none that is open."""
    for path in paths[:-_MAX_ENTRIES]:
        entry = read(path)
        if entry is not None and not entry.is_open:
            path.unlink(missing_ok=True)


def _directory() -> Path:
    path = state_directory() / "journal"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StateError(unusable(path, error)) from error
    return path
