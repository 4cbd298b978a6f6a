"""Manage lock, socket and cleanup state in /run/vnet-tui, one set per namespace."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from bpf.connections import clear_all_marks
from core.files import write_whole
from core.netlink import netns
from core.netlink.clsact import FAST_PATH, FAST_PATH_OBSERVER
from core.state import lock_shared

DIRECTORY = Path("/run/vnet-tui")
# The environment variable that has the supervisor's PID for the daemon.
SUPERVISOR_VARIABLE = "VNET_TUI_SUPERVISOR"
_SO_NETNS_COOKIE = 71


class AlreadyRunning(Exception):
    """Another process accelerates this network namespace; the text names it."""


@dataclass(frozen=True, slots=True)
class CleanupState:
    """Record what must be cleaned up if both processes are killed.

    `mark_mask`: our bits of the ct mark. `cookie`: the network namespace's unique number, as inodes are
    reused.
    """

    mark_mask: int
    cookie: int


def netns_inode() -> int:
    """Return the inode of this process's network namespace."""
    return netns.inode_of(netns.HOST_PATH)


def netns_cookie() -> int:
    """Return the number of this network namespace, unique until the next boot."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)


def socket_path(inode: int) -> Path:
    """Return the path of the control socket."""
    return DIRECTORY / f"fastpath-{inode}.sock"


def _state_path(inode: int) -> Path:
    return DIRECTORY / f"fastpath-{inode}.json"


def lock() -> int:
    """Lock this namespace; return a descriptor that holds the lock, also in children.

    Raises AlreadyRunning, and OSError if the directory can't be created.
    """
    DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = _lock_path(netns_inode())
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            who = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise AlreadyRunning(f"process {who or 'unknown'} already accelerates this namespace") from error
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # its owner removed it at its end
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _lock_path(inode: int) -> Path:
    return DIRECTORY / f"fastpath-{inode}.lock"


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def unlock() -> None:
    """Remove the lock file; others can lock once the descriptor is closed everywhere."""
    _lock_path(netns_inode()).unlink(missing_ok=True)


def lock_owner() -> int:
    """Return the PID of the supervisor that holds this namespace's lock, or 0."""
    with suppress(ValueError):
        return int(_read_held(_lock_path(netns_inode())))
    return 0


def _read_held(path: Path) -> bytes:
    """Return the content of a file that another process has locked, else b""."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return b"" if lock_shared(descriptor) else os.pread(descriptor, 1 << 16, 0)
    finally:
        os.close(descriptor)


class FailedStart:
    """Keep on disk why the fast path can't be started, while its agent tries again.

    Others believe the file only while the agent's process holds its lock.
    """

    def __init__(self) -> None:
        self._descriptor = -1

    def write(self, targets: Sequence[str], reason: str) -> None:
        """Write the reason; without a directory for it there is none."""
        with suppress(OSError):
            if self._descriptor < 0:
                DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                self._descriptor = os.open(_failed_path(netns_inode()), flags, 0o600)
                fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            content = json.dumps({"targets": list(targets), "reason": reason}).encode("ascii")
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, content, 0)

    def clear(self) -> None:
        """Remove the file."""
        if self._descriptor >= 0:
            _failed_path(netns_inode()).unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1


def failed_start() -> tuple[tuple[str, ...], str]:
    """Return the targets that an agent can't accelerate, and the reason.

    Without such an agent they are empty.
    """
    with suppress(ValueError, KeyError, TypeError):
        found = json.loads(_read_held(_failed_path(netns_inode())))
        return tuple(map(str, found["targets"])), str(found["reason"])
    return (), ""


def _failed_path(inode: int) -> Path:
    return DIRECTORY / f"fastpath-{inode}.failed"


def child_pids(pid: int) -> list[int]:
    """Return the PIDs of a process's running children."""
    with suppress(OSError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def save_state(state: CleanupState) -> None:
    """Write the cleanup state to disk, before anything changes."""
    write_whole(_state_path(netns_inode()), json.dumps(asdict(state)).encode("ascii"))


def saved_state() -> CleanupState | None:
    """Return the state that an earlier run left to be cleaned up, or None."""
    try:
        found = json.loads(_state_path(netns_inode()).read_text())
        state = CleanupState(int(found["mark_mask"]), int(found["cookie"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if state.cookie == netns_cookie():
        return state
    remove_files()  # of a namespace that no longer exists
    return None


def remove_files() -> None:
    """Remove the state file and the socket."""
    for path in (_state_path(netns_inode()), socket_path(netns_inode())):
        path.unlink(missing_ok=True)


def clean_up() -> int | None:
    """Remove our tc filters and clear our marks; return how many connections had one.

    None if there was nothing to clean up. Either process may do it, and doing it twice is harmless. Raises
    OSError if conntrack refuses.
    """
    state = saved_state()
    if state is None:
        return None
    for left in FAST_PATH.attached():
        FAST_PATH.detach(left.ifindex)
    for left in FAST_PATH_OBSERVER.attached(egress=True):
        FAST_PATH_OBSERVER.detach(left.ifindex)
    handed = clear_all_marks(state.mark_mask)
    remove_files()
    return handed
