"""Where the processes of the fast path find each other: the lock, the socket and the state to repair, one set a network
namespace, under /run/vnet-tui."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from core.collect import netns

DIRECTORY = Path("/run/vnet-tui")


class Taken(Exception):
    """Another process accelerates this network namespace already; the text names it."""


@dataclass(frozen=True, slots=True)
class State:
    """What must be put right should both processes be killed: the value of each sysctl before, and the bits of
    the ct mark that are ours."""

    sysctls: dict[str, str]
    mark_mask: int


def here() -> int:
    """The inode of the network namespace that this process is in."""
    return netns.inode_of(netns.HOST_PATH)


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
    path = DIRECTORY / f"fastpath-{here()}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        who = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise Taken(f"process {who or 'unknown'} accelerates here already") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def remember(state: State) -> None:
    """Keep what must be put right, on disk before anything changes."""
    path = _state_path(here())
    written = path.with_suffix(f".{os.getpid()}")
    written.write_text(json.dumps(asdict(state)))
    written.rename(path)


def remembered() -> State | None:
    """What somebody left to be put right; None where nothing is."""
    try:
        found = json.loads(_state_path(here()).read_text())
        return State({str(name): str(value) for name, value in found["sysctls"].items()}, int(found["mark_mask"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def forget() -> None:
    """All is as it was."""
    for path in (_state_path(here()), socket_path(here())):
        path.unlink(missing_ok=True)
