"""Read the files of the journal."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.operations import Operation, is_final
from core.operations.record import from_record
from core.state import boot_id

_ENDS = ("done", "undone", "failed")
_LARGEST = 64 << 20  # bytes; a change of 10,000 steps has three million
_LATEST = 253402300799  # the last second that the calendar of the standard library knows
_LAST_LINE = 1024  # bytes of a usual one
_READING = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# The exceptions of json and from_record for invalid files.
_BAD = (ValueError, TypeError, KeyError, RecursionError)


@dataclass(frozen=True, slots=True)
class Entry:
    """One change in the journal.

    `begun` counts the steps that were begun and not refused; the last of them may not have been executed.
    `end` is "done", "undone", "failed" (an incomplete undo) or "" (interrupted or in progress). `was_done`:
    all steps were executed at some time.

    `undoing` counts the steps whose undo was begun, None without an undo. Of the operations of that undo
    (core.operations.undo_of) `undone` were executed, and `in_flight` interrupted.

    The state of the kernel is lost at a restart of the machine: an entry from before it has only the steps
    that survive a restart, and without any it counts as "undone".

    `takes_back` is the id of the earlier change that this guarded one undoes, or "". `problem` says why this
    version can't read the steps; `steps` is empty then.
    """

    entry_id: str
    title: str
    at: float
    steps: tuple[Operation, ...]
    begun: int = 0
    end: str = ""
    errors: tuple[str, ...] = ()
    takes_back: str = ""
    was_done: bool = False
    undoing: int | None = None
    undone: frozenset[int] = frozenset()
    in_flight: frozenset[int] = frozenset()
    problem: str = ""

    @property
    def is_final(self) -> bool:
        """Return whether nothing can undo it.

        When interrupted, it leaves nothing half done.
        """
        return is_final(self.steps)

    @property
    def is_open(self) -> bool:
        """Return whether it was interrupted or undone in part, unless it is under way."""
        return self.end in ("", "failed") and not self.is_final


@dataclass(slots=True)
class _Progress:
    """The progress of a change, from the lines after its intent."""

    begun: int = 0
    end: str = ""
    errors: tuple[str, ...] = ()
    was_done: bool = False
    undoing: int | None = None
    undone: set[int] = field(default_factory=set)
    in_flight: set[int] = field(default_factory=set)
    now: int | None = None  # the last operation of the undo that was begun

    def take(self, line: dict[str, Any]) -> None:
        """Apply a line. Raises TypeError and ValueError for invalid values."""
        match line:
            case {"begin": _}:
                self.begun += 1
            case {"refused": _}:
                self.begun -= 1
            case {"undoing": count}:
                self._undo_begins(_counted(count), line.get("boot") == boot_id())
            case {"undo": number} if self.undoing is not None:
                self._passed()
                self.now = _counted(number)
            case {"not_undone": number}:
                self.now = None
                self.in_flight.discard(_counted(number))
            case {"end": end}:
                self._passed()
                self.end, self.errors = _known(end), _texts(line.get("errors", []))
                self.was_done |= end == "done"

    def _undo_begins(self, count: int, same_boot: bool) -> None:
        """Begin an undo, or continue an interrupted one.

        After a restart of the machine it is a new one, of the steps that survived.
        """
        if self.undoing != count or not same_boot:
            self.undone, self.in_flight, self.now = set(), set(), None
        self.undoing, self.end = count if same_boot else None, ""
        self.cut_off()

    def cut_off(self) -> None:
        """Note that the last operation was interrupted."""
        if self.now is not None:
            self.in_flight.add(self.now)
            self.now = None

    def _passed(self) -> None:
        if self.now is not None:
            self.undone.add(self.now)
            self.in_flight.discard(self.now)
            self.now = None


def read(path: Path) -> Entry | None:
    """Read one change; None without a file, and for a change that was never begun."""
    try:
        content = _content(path)
    except OSError as error:
        return _unreadable(path, error.strerror or str(error), _Progress())
    return None if content is None else _entry(path, content)


def is_closed(path: Path) -> bool:
    """Return whether the last line shows that nothing must be undone.

    Reading only the last line is fast.
    """
    try:
        descriptor = os.open(path, _READING)
    except OSError:
        return False
    try:
        found = os.fstat(descriptor)
        start = max(0, found.st_size - _LAST_LINE) if stat.S_ISREG(found.st_mode) else 0
        *_, last = os.pread(descriptor, _LAST_LINE, start).removesuffix(b"}\n").split(b"\n")
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return last.startswith((b'{"end": "done", ', b'{"end": "undone", ')) and last.endswith(b"]")


def _content(path: Path) -> bytes | None:
    """Return the bytes of a file, None for a folder or a symbolic link."""
    try:
        descriptor = os.open(path, _READING)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return None
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return None
        if found.st_size > _LARGEST:
            raise OSError(errno.EFBIG, f"it has more than {_LARGEST >> 20} MiB")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _entry(path: Path, content: bytes) -> Entry | None:
    first, *rest = content.split(b"\n")
    more, progress = [line for line in rest if line], _Progress()
    wrong = [reason for line in more if (reason := _taken(line, progress))]
    progress.cut_off()
    try:
        if wrong:
            raise ValueError(wrong[0])
        return _readable(path, json.loads(first), progress)
    except _BAD as error:
        return _unreadable(path, _reason(error), progress) if more else None


def _taken(text: bytes, progress: _Progress) -> str:
    """Apply a line; return why it is invalid.

    Returns "" for an incomplete line, after a full disk or a power failure: nothing was executed after it.
    """
    try:
        line = json.loads(text)
    except ValueError:
        return ""
    except RecursionError as error:
        return _reason(error)
    try:
        if not isinstance(line, dict):
            raise TypeError("a line isn't a JSON object")
        progress.take(line)
    except _BAD as error:
        return _reason(error)
    return ""


def _readable(path: Path, intent: dict[str, Any], progress: _Progress) -> Entry:
    """Make the entry of a valid file. Raises the exceptions of _BAD."""
    title, at, boot = intent["title"], intent["at"], intent["boot"]
    takes_back = intent.get("takes_back", "")
    if not all(isinstance(text, str) for text in (title, boot, takes_back)):
        raise TypeError("a title or id isn't text")
    steps = tuple(from_record(step) for step in intent["steps"])
    if not all(isinstance(step, Operation) for step in steps):
        raise TypeError("a step isn't an operation")
    begun = min(max(0, progress.begun), len(steps))
    entry = Entry(path.stem, title, _moment(at), steps, begun, progress.end, progress.errors, takes_back)
    entry = replace(
        entry,
        was_done=progress.was_done,
        undoing=progress.undoing,
        undone=frozenset(progress.undone),
        in_flight=frozenset(progress.in_flight),
    )
    return entry if boot == boot_id() else _after_restart(entry)


def _unreadable(path: Path, why: str, progress: _Progress) -> Entry:
    try:
        at = path.lstat().st_mtime
    except OSError:
        at = 0.0
    title = f"a change that can't be read: {path.name}"
    return Entry(path.stem, title, at, (), end=progress.end, errors=progress.errors, problem=why)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)[:200]


def _after_restart(entry: Entry) -> Entry:
    standing = tuple(step for step in entry.steps[: entry.begun] if step.survives_reboot)
    if standing:
        return replace(entry, steps=standing, begun=len(standing))
    return replace(entry, steps=(), begun=0, end="undone", errors=("the machine was restarted since",))


def _counted(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError("a step's number is invalid")
    return value


def _known(end: Any) -> str:
    if end not in _ENDS:
        raise ValueError("its end is unknown")
    return str(end)


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise TypeError("an error isn't text")
    return tuple(values)


def _moment(at: Any) -> float:
    if not isinstance(at, (int, float)) or not math.isfinite(at) or not 0 <= at <= _LATEST:
        raise ValueError("its time is invalid")
    return float(at)
