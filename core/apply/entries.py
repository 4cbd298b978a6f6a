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
from core.operations.values import from_record
from core.state import boot_id

_ENDS = ("done", "undone", "failed")
_MAX_BYTES = 64 << 20  # bytes; a change of 10,000 steps has three million
_MAX_TIME = 253402300799  # the last second that the calendar of the standard library knows
_LAST_LINE_BYTES = 1024  # bytes of a usual one
_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# The exceptions of json and from_record for invalid files.
_INVALID = (ValueError, TypeError, KeyError, RecursionError)


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

    `undoes` is the id of the earlier change that this guarded one undoes, or "". `problem` says why this
    version can't read the steps; `steps` is empty then.
    """

    entry_id: str
    title: str
    at: float
    steps: tuple[Operation, ...]
    begun: int = 0
    end: str = ""
    errors: tuple[str, ...] = ()
    undoes: str = ""
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
    current: int | None = None  # the last operation of the undo that was begun

    def apply(self, line: dict[str, Any]) -> None:
        """Apply a line. Raises TypeError and ValueError for invalid values."""
        match line:
            case {"begin": _}:
                self.begun += 1
            case {"refused": _}:
                self.begun -= 1
            case {"undoing": count}:
                self._begin_undo(_parse_count(count), line.get("boot") == boot_id())
            case {"undo": number} if self.undoing is not None:
                self._mark_executed()
                self.current = _parse_count(number)
            case {"not_undone": number}:
                self.current = None
                self.in_flight.discard(_parse_count(number))
            case {"end": end}:
                self._mark_executed()
                self.end, self.errors = _parse_end(end), _parse_texts(line.get("errors", []))
                self.was_done |= end == "done"

    def _begin_undo(self, count: int, same_boot: bool) -> None:
        """Begin an undo, or continue an interrupted one.

        After a restart of the machine it is a new one, of the steps that survived.
        """
        if self.undoing != count or not same_boot:
            self.undone, self.in_flight, self.current = set(), set(), None
        self.undoing, self.end = count if same_boot else None, ""
        self.mark_interrupted()

    def mark_interrupted(self) -> None:
        """Note that the last operation was interrupted."""
        if self.current is not None:
            self.in_flight.add(self.current)
            self.current = None

    def _mark_executed(self) -> None:
        if self.current is not None:
            self.undone.add(self.current)
            self.in_flight.discard(self.current)
            self.current = None


def read(path: Path) -> Entry | None:
    """Read one change; None without a file, and for a change that was never begun."""
    try:
        content = _content(path)
    except OSError as error:
        return _invalid_entry(path, error.strerror or str(error), _Progress())
    return None if content is None else _entry(path, content)


def is_closed(path: Path) -> bool:
    """Return whether the last line shows that nothing must be undone.

    Reading only the last line is fast.
    """
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except OSError:
        return False
    try:
        found = os.fstat(descriptor)
        start = max(0, found.st_size - _LAST_LINE_BYTES) if stat.S_ISREG(found.st_mode) else 0
        *_, last = os.pread(descriptor, _LAST_LINE_BYTES, start).removesuffix(b"}\n").split(b"\n")
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return last.startswith((b'{"end": "done", ', b'{"end": "undone", ')) and last.endswith(b"]")


def _content(path: Path) -> bytes | None:
    """Return the bytes of a file, None for a folder or a symbolic link."""
    try:
        descriptor = os.open(path, _OPEN_FLAGS)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return None
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            return None
        if found.st_size > _MAX_BYTES:
            raise OSError(errno.EFBIG, f"it has more than {_MAX_BYTES >> 20} MiB")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _entry(path: Path, content: bytes) -> Entry | None:
    first, *rest = content.split(b"\n")
    more, progress = [line for line in rest if line], _Progress()
    wrong = [reason for line in more if (reason := _apply_line(line, progress))]
    progress.mark_interrupted()
    try:
        if wrong:
            raise ValueError(wrong[0])
        return _valid_entry(path, json.loads(first), progress)
    except _INVALID as error:
        return _invalid_entry(path, _reason(error), progress) if more else None


def _apply_line(text: bytes, progress: _Progress) -> str:
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
        progress.apply(line)
    except _INVALID as error:
        return _reason(error)
    return ""


def _valid_entry(path: Path, intent: dict[str, Any], progress: _Progress) -> Entry:
    """Make the entry of a valid file. Raises the exceptions of _INVALID."""
    title, at, boot = intent["title"], intent["at"], intent["boot"]
    undoes = intent.get("takes_back", "")
    if not all(isinstance(text, str) for text in (title, boot, undoes)):
        raise TypeError("a title or id isn't text")
    steps = tuple(from_record(step) for step in intent["steps"])
    if not all(isinstance(step, Operation) for step in steps):
        raise TypeError("a step isn't an operation")
    begun = min(max(0, progress.begun), len(steps))
    entry = Entry(path.stem, title, _parse_time(at), steps, begun, progress.end, progress.errors, undoes)
    entry = replace(
        entry,
        was_done=progress.was_done,
        undoing=progress.undoing,
        undone=frozenset(progress.undone),
        in_flight=frozenset(progress.in_flight),
    )
    return entry if boot == boot_id() else _after_restart(entry)


def _invalid_entry(path: Path, why: str, progress: _Progress) -> Entry:
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
    surviving = tuple(step for step in entry.steps[: entry.begun] if step.survives_reboot)
    if surviving:
        return replace(entry, steps=surviving, begun=len(surviving))
    return replace(entry, steps=(), begun=0, end="undone", errors=("the machine was restarted since",))


def _parse_count(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError("a step's number is invalid")
    return value


def _parse_end(end: Any) -> str:
    if end not in _ENDS:
        raise ValueError("its end is unknown")
    return str(end)


def _parse_texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise TypeError("an error isn't text")
    return tuple(values)


def _parse_time(at: Any) -> float:
    if not isinstance(at, (int, float)) or not math.isfinite(at) or not 0 <= at <= _MAX_TIME:
        raise ValueError("its time is invalid")
    return float(at)
