"""One writer at a time on this host."""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from core.apply.state import StateError, state_directory, unusable

# Seconds that another writer has to end: most changes, and all of the agent's, take less.
_GRACE = 1.0
_BETWEEN_TRIES = 0.02
# Whether this thread plans under the lock: what it then applies does not take it again.
_planning = threading.local()


class Busy(Exception):
    """Another instance is changing things; the text names it."""


@contextmanager
def writing(wait: bool = False) -> Iterator[None]:
    """Hold the writers' lock. Where another process holds it, `wait` for that one, else raise Busy soon.

    Raises StateError without a directory to hold it in. The kernel lets go of it when the holder is dead, and
    the tools that it ran are, which inherit it (flock(2)).
    """
    if getattr(_planning, "now", False):
        yield
        return
    path = state_directory() / "lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(unusable(path.parent, error)) from error
    try:
        _take(descriptor, wait)
        with suppress(OSError):  # who holds it is for the others' message only
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "command": " ".join(sys.argv)}).encode(), 0)
        os.set_inheritable(descriptor, True)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, wait: bool) -> None:
    deadline = time.monotonic() + _GRACE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise Busy(_holder(descriptor)) from None
        time.sleep(_BETWEEN_TRIES)


@contextmanager
def planning() -> Iterator[None]:
    """Hold the writers' lock from the look at what is until the change is made: nobody else changes anything
    in between. Raises Busy and StateError."""
    with writing():
        _planning.now = True
        try:
            yield
        finally:
            _planning.now = False


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        who = f"process {holder['pid']} ({holder['command']})"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return f"{who} is changing networks at this moment; try again when it has ended"
