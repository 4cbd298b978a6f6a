"""The journal: what we meant to do, written before it is done, so that a crash can be undone."""

from __future__ import annotations

import errno
import json
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.apply.state import StateError, state_directory, sync_directory, unusable
from core.ops import (
    DockerConnect,
    DockerCreateNetwork,
    DockerDisconnect,
    DockerRemoveNetwork,
    Operation,
    Unwant,
    Want,
    is_final,
)
from core.ops.record import from_record, to_record

_KEPT = 200  # entries
_OUTLIVING = (
    DockerConnect, DockerCreateNetwork, DockerDisconnect, DockerRemoveNetwork, Want, Unwant,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """One change in the journal. `begun` counts the steps that were begun and not refused, the last of which
    may not have been done; `end` is "done", "undone", "failed" (an undo that could not be completed) or ""
    for one that was cut off or is still under way.

    What the kernel held is gone with a restart of the machine: of an entry from before it, `steps` are those
    that outlive one, and without any it counts as "undone".

    `takes_back` is the id of the earlier change that this one, guarded, takes back, "" for others."""

    entry_id: str
    title: str
    at: float
    steps: tuple[Operation, ...]
    begun: int = 0
    end: str = ""
    errors: tuple[str, ...] = ()
    takes_back: str = ""

    @property
    def is_final(self) -> bool:
        """Whether nothing can take it back: what was cut off of it leaves nothing half-way either."""
        return is_final(self.steps)


class Record:
    """The open journal file of one change. Raises StateError where the intent cannot be written; the methods
    raise OSError where a line cannot be."""

    def __init__(self, title: str, steps: tuple[Operation, ...], takes_back: str = "") -> None:
        _trim(_directory())
        now = time.time()
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
        # Microseconds: changes of the same millisecond must keep their order, newest first.
        self.entry_id = f"{stamp}-{int(now * 1e6) % 1_000_000:06}{secrets.token_hex(1)}"
        self.path, self.takes_back = _directory() / f"{self.entry_id}.jsonl", takes_back
        intent = {"title": title, "at": now, "boot": _boot(), "steps": [to_record(step) for step in steps]}
        intent |= {"takes_back": takes_back} if takes_back else {}
        self._outlives = any(isinstance(step, _OUTLIVING) for step in steps)
        try:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                self._write(intent)
                os.fsync(self._descriptor)
                sync_directory(self.path.parent)
            except OSError:
                os.close(self._descriptor)
                self.path.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise StateError(unusable(self.path.parent, error)) from error

    def begin(self, step: int) -> None:
        """Note that a step is about to be done."""
        self._write({"begin": step})

    def refused(self, step: int) -> None:
        """Note that the step which was begun is certain not to have been done."""
        self._write({"refused": step})

    def end(self, how: str, errors: tuple[str, ...] = ()) -> None:
        """Note how it ended."""
        self._write({"end": how, "errors": list(errors)})
        # When the machine goes down before this is on disk, what the steps made has gone with it.
        if self._outlives:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _write(self, line: dict[str, Any]) -> None:
        text = json.dumps(line).encode() + b"\n"
        if os.write(self._descriptor, text) != len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def mark(entry: Entry, how: str, errors: tuple[str, ...] = ()) -> None:
    """Note how the undo of an earlier change ended."""
    path = _directory() / f"{entry.entry_id}.jsonl"
    with path.open("a") as file:
        file.write(json.dumps({"end": how, "errors": list(errors)}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def settle(entry: Entry) -> None:
    """Make a change that took back an earlier one final: the earlier one is undone, and this one is no change
    of its own any more."""
    if earlier := find(entry.takes_back):
        mark(earlier, "undone")
    (_directory() / f"{entry.entry_id}.jsonl").unlink(missing_ok=True)


def history() -> Iterator[Entry]:
    """Every change in the journal, newest first; files that cannot be read are passed over."""
    for path in sorted(_directory().glob("*.jsonl"), reverse=True):
        if (entry := read(path)) is not None:
            yield entry


def open_intents() -> tuple[Entry, ...]:
    """The changes that were cut off and those whose undo failed, newest first: all want to be undone."""
    return tuple(entry for entry in history() if entry.end in ("", "failed") and not entry.is_final)


def find(entry_id: str) -> Entry | None:
    """The change of that id as the journal tells it now, None where there is none."""
    path = _directory() / f"{entry_id}.jsonl"
    return read(path) if path.exists() else None


def read(path: Path) -> Entry | None:
    """One change; None for a file that no version of ours wrote, or whose intent is cut short."""
    lines = []
    for text in path.read_text(errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            break  # the last line, cut short by a crash
    try:
        steps = tuple(from_record(step) for step in lines[0]["steps"])
        begun = sum(("begin" in line) - ("refused" in line) for line in lines)
        ends = [line for line in lines if "end" in line]
        end, errors = (ends[-1]["end"], tuple(ends[-1]["errors"])) if ends else ("", ())
        intent = lines[0]
        entry = Entry(path.stem, intent["title"], intent["at"], steps, begun, end, errors)
        entry = replace(entry, takes_back=intent.get("takes_back", ""))
        return entry if intent["boot"] == _boot() else _after_restart(entry)
    except (IndexError, KeyError, TypeError, ValueError):
        return None


def _after_restart(entry: Entry) -> Entry:
    standing = tuple(step for step in entry.steps[: entry.begun] if isinstance(step, _OUTLIVING))
    if standing:
        return replace(entry, steps=standing, begun=len(standing))
    return replace(entry, steps=(), begun=0, end="undone", errors=("the machine was restarted since",))


def _boot() -> str:
    """The id of this run of the kernel (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _trim(directory: Path) -> None:
    """Remove the oldest entries, but none that still wants to be undone."""
    for path in sorted(directory.glob("*.jsonl"))[:-_KEPT]:
        entry = read(path)
        if entry is None or entry.end in ("done", "undone") or entry.is_final:
            path.unlink(missing_ok=True)


def _directory() -> Path:
    path = state_directory() / "journal"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StateError(unusable(path, error)) from error
    return path
