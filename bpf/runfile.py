"""Where the processes of the fast path find each other: the lock, the socket and the state to repair, one
set a network namespace, under /run/vnet-tui."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from bpf.attachments import detach, remains
from bpf.ct_marks import hand_back
from core.files import write_whole
from core.netlink import netns

DIRECTORY = Path("/run/vnet-tui")
# The environment variable by which the holder knows its keeper.
KEEPER = "VNET_TUI_KEEPER"
_SO_NETNS_COOKIE = 71


class Taken(Exception):
    """Another process accelerates this network namespace already; the text names it."""


@dataclass(frozen=True, slots=True)
class State:
    """What must be put right should both processes be killed: the bits of the ct mark that are ours.
    `cookie` is the network namespace's own number, for inodes are used again."""

    mark_mask: int
    cookie: int


def here() -> int:
    """The inode of the network namespace that this process is in."""
    return netns.inode_of(netns.HOST_PATH)


def cookie() -> int:
    """The number of this network namespace that no other one gets until the next start of the machine."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as here:
        return int.from_bytes(here.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)


def socket_path(inode: int) -> Path:
    """The control socket."""
    return DIRECTORY / f"fastpath-{inode}.sock"


def _state_path(inode: int) -> Path:
    return DIRECTORY / f"fastpath-{inode}.json"


def lock() -> int:
    """Become the one who accelerates this namespace: a descriptor that keeps it so, in children too.

    Raises Taken, and OSError without a directory for it.
    """
    DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = _lock_path(here())
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            who = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise Taken(f"process {who or 'unknown'} accelerates here already") from error
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
    """Others may, as soon as those who hold the descriptor are gone."""
    _lock_path(here()).unlink(missing_ok=True)


def owner() -> int:
    """The process that accelerates this namespace: the keeper, by the lock that it holds; 0 where nobody
    is."""
    try:
        descriptor = os.open(_lock_path(here()), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with suppress(ValueError):
            return int(os.pread(descriptor, 32, 0))
    finally:
        os.close(descriptor)
    return 0


def children(pid: int) -> list[int]:
    """The processes that a process has started and that live."""
    with suppress(OSError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def remember(state: State) -> None:
    """Keep what must be put right, on disk before anything changes."""
    write_whole(_state_path(here()), json.dumps(asdict(state)).encode("ascii"))


def remembered() -> State | None:
    """What somebody left to be put right; None where nothing is."""
    try:
        found = json.loads(_state_path(here()).read_text())
        state = State(int(found["mark_mask"]), int(found["cookie"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if state.cookie == cookie():
        return state
    forget()  # of a namespace that is gone
    return None


def forget() -> None:
    """All is as it was."""
    for path in (_state_path(here()), socket_path(here())):
        path.unlink(missing_ok=True)


# Gives everything back to the kernel: filters and the marks of connections; whoever ends last does it,
# twice does no harm.


def clean_up() -> int | None:
    """Put right what is left to be put right here: how many connections were handed back, None where there
    was nothing to do. Raises OSError where conntrack refuses."""
    state = remembered()
    if state is None:
        return None
    for ifindex in remains():
        detach(ifindex)
    handed = hand_back(state.mark_mask)
    forget()
    return handed
