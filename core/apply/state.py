"""The state directory: where the journal and the writers' lock live."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core.tools import roots_folder

_SYSTEMS = Path("/var/lib/vnet-tui")


class StateError(Exception):
    """The state directory cannot be used; the text says why and what to try."""


def state_directory() -> Path:
    """The directory ($VNET_STATE, else /var/lib/vnet-tui, else for who may not write there, and can change
    no more than Docker's networks, a person's own), made where it is missing. Raises StateError."""
    # Absolute, and so for the programs started from here, which work in other folders.
    path = Path(os.environ.get("VNET_STATE") or _usual()).absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(unusable(path, error)) from error
    if os.geteuid() == 0 and not roots_folder(str(path)):
        raise StateError(
            f"can't keep the journal in {path}: root would undo what another user wrote there. Try: set "
            "VNET_STATE to a folder that only root can write, as are those above it"
        )
    return path


def _usual() -> Path:
    if os.geteuid() == 0 or os.access(_SYSTEMS, os.W_OK):
        return _SYSTEMS
    # Where the XDG Base Directory Specification puts the state of one person's programs.
    told = os.environ.get("XDG_STATE_HOME", "")
    states = told if told.startswith("/") else f"{os.environ.get('HOME', '')}/.local/state"
    return Path(states, "vnet-tui")


def boot_id() -> str:
    """What tells this run of the machine from the others (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def unusable(path: Path, error: OSError) -> str:
    """What to tell a person about a state directory that cannot be written."""
    remedy = ""
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = "run it as root, such as with sudo, or "
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "free some space or "
    return (
        f"nothing was changed: the journal cannot be written to {path} ({error.strerror}); "
        f"{remedy}set VNET_STATE to a directory that can be written"
    )


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on disk (fsync(2))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
