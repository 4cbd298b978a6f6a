"""The state directory, its files, and the writers' lock."""

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
from typing import Any

from core.files import write_whole
from core.tools import root_owned_folder

_SYSTEMS = Path("/var/lib/vnet-tui")


class StateError(Exception):
    """The state directory can't be used; the text says why and what to try."""


def state_directory() -> Path:
    """Return the state directory; create it if it is missing. Raises StateError.

    It is $VNET_STATE, else /var/lib/vnet-tui, else, for users who can't write there (they can change only
    Docker's networks), a folder in their home.
    """
    # Absolute, for the programs that are started here and work in other folders.
    path = Path(os.environ.get("VNET_STATE") or _usual()).absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StateError(unusable(path, error)) from error
    if os.geteuid() == 0 and not root_owned_folder(str(path)):
        raise StateError(
            f"can't keep the journal in {path}: root would undo what another user wrote there. Try: set "
            "VNET_STATE to a folder that only root can write, also to the folders above it"
        )
    return path


def _usual() -> Path:
    if os.geteuid() == 0 or os.access(_SYSTEMS, os.W_OK):
        return _SYSTEMS
    # XDG Base Directory Specification
    xdg = os.environ.get("XDG_STATE_HOME", "")
    states = xdg if xdg.startswith("/") else f"{os.environ.get('HOME', '')}/.local/state"
    return Path(states, "vnet-tui")


def boot_id() -> str:
    """Return the id that the kernel chose at boot (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def unusable(path: Path, error: OSError) -> str:
    """Return the message for a state directory that can't be written."""
    remedy = ""
    if error.errno in (errno.EACCES, errno.EPERM):
        remedy = "run it with sudo, or "
    elif error.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "free some space or "
    return (
        f"can't open the journal in {path}: {error.strerror}; nothing was changed. "
        f"Try: {remedy}set VNET_STATE to a directory that you can write to"
    )


_MOST_BYTES = 1 << 24


def state_path(name: str) -> Path:
    """Return the path of a file in the state directory.

    Raises StateError.
    """
    return state_directory() / name


def read_state(name: str) -> Any:
    """Return the content of a JSON file. Raises OSError, ValueError and StateError."""
    with state_path(name).open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES >> 20} MiB")
    return json.loads(content)


def write_state(name: str, value: Any, durable: bool) -> None:
    """Replace a JSON file. Raises StateError.

    Readers find the old or the new content, also after a crash of this process (`durable`: of the machine).
    """
    path = state_path(name)
    try:
        write_whole(path, json.dumps(value).encode("ascii"), durable=durable)
    except OSError as error:
        raise StateError(unusable(path.parent, error)) from error


def sync_directory(path: Path) -> None:
    """Write the entries of a directory to disk (fsync(2))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Seconds to wait for each writer that comes first: most changes, and all of the agent's, take less.
_GRACE = 5.0
_RETRY_INTERVAL = 0.02
_NOTE_BYTES = 4096  # bytes
_AGENT = "agent"  # the file that agents lock
# Whether this thread holds the lock while it plans; the change that follows doesn't take it again.
_planning = threading.local()


@contextmanager
def running_agent() -> Iterator[None]:
    """Show other processes that an agent runs while the body does. Raises StateError."""
    path = state_directory() / _AGENT
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(unusable(path.parent, error)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def is_agent_running() -> bool:
    """Return whether an agent runs."""
    try:
        descriptor = os.open(state_directory() / _AGENT, os.O_RDWR | os.O_CLOEXEC)
    except (OSError, StateError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class Busy(Exception):
    """Another process is changing the network, or has changed it meanwhile."""


@contextmanager
def writers_lock(wait: bool = False) -> Iterator[None]:
    """Hold the writers' lock.

    If another process holds it, `wait` for that one, else raise Busy after 5 s. Raises StateError. The kernel
    releases the lock when its holder and the tools that inherited it have ended (flock(2)).
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
        _acquire(descriptor, wait)
        with suppress(OSError):  # only for the message of other processes
            note = {"pid": os.getpid(), "command": " ".join(sys.argv)[:200], "since": time.monotonic()}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(note).encode(), 0)
        os.set_inheritable(descriptor, True)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, wait: bool) -> None:
    deadline, holder = 0.0, b""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            before, holder = holder, os.pread(descriptor, _NOTE_BYTES, 0)
            if holder != before or not deadline:  # each of several holders has its time
                deadline = time.monotonic() + _GRACE
            elif time.monotonic() > deadline:
                raise Busy(_under_way(holder)) from None
        time.sleep(_RETRY_INTERVAL)


@contextmanager
def planning_lock() -> Iterator[None]:
    """Hold the writers' lock from reading the network until it is changed.

    Raises Busy and StateError.
    """
    with writers_lock():
        _planning.now = True
        try:
            yield
        finally:
            _planning.now = False


@contextmanager
def try_shared_lock() -> Iterator[bool]:
    """Give whether no other process is changing the network.

    If so, none can begin to while the body runs. Never waits. Raises StateError.
    """
    try:
        descriptor = os.open(state_directory() / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # nothing was ever changed
        yield True
        return
    try:
        yield getattr(_planning, "now", False) or lock_shared(descriptor)
    finally:
        os.close(descriptor)


def lock_shared(descriptor: int) -> bool:
    """Take a shared lock of an open file; return whether that was possible at once."""
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
        who = "of another process"
    return f"can't change the network: another change is under way ({who}). Try: again in a moment"
