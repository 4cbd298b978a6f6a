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

# Seconds that each writer before us has to end: most changes, and all of the agent's, take less.
_GRACE = 5.0
_BETWEEN_TRIES = 0.02
_NOTE = 4096  # bytes
# Whether this thread plans under the lock: what it then applies does not take it again.
_planning = threading.local()


class Busy(Exception):
    """Another instance is changing things, or has meanwhile; the text says so."""


@contextmanager
def writing(wait: bool = False) -> Iterator[None]:
    """Hold the writers' lock. Where another process holds it, `wait` for that one, else raise Busy when it
    has not ended within 5 s.

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
            note = {"pid": os.getpid(), "command": " ".join(sys.argv)[:200], "since": time.monotonic()}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(note).encode(), 0)
        os.set_inheritable(descriptor, True)
        yield
    finally:
        os.close(descriptor)


def _take(descriptor: int, wait: bool) -> None:
    deadline, holder = 0.0, b""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            before, holder = holder, os.pread(descriptor, _NOTE, 0)
            if holder != before or not deadline:  # where many wait, each has its time
                deadline = time.monotonic() + _GRACE
            elif time.monotonic() > deadline:
                raise Busy(_under_way(holder)) from None
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


@contextmanager
def quiet() -> Iterator[bool]:
    """Whether no other process changes anything while the body runs: none begins before it ends. It waits
    for nobody. Raises StateError."""
    try:
        descriptor = os.open(state_directory() / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # nobody has changed anything yet
        yield True
        return
    try:
        yield getattr(_planning, "now", False) or _shared(descriptor)
    finally:
        os.close(descriptor)


def _shared(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _under_way(note: bytes) -> str:
    try:
        holder = json.loads(note)
        who = f"PID {holder['pid']}: {holder['command']}"
    except (ValueError, KeyError, TypeError):
        who = "by another process"
    return f"can't change the network: another change is under way ({who}). Try: again in a moment"
