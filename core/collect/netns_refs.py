"""Read from /proc what refers to network namespaces: processes, threads, mounts and open descriptors.

psutil has neither namespaces nor descriptors of other kinds than files and sockets. Creating its Process
alone takes 8 us for each process, reading the namespace 1.2 us.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from core.netlink.netns import inode_of, net_inode

NAMES_DIR = "/run/netns"
_OCTAL = re.compile(r"\\([0-7]{3})")


class TooMany(Exception):
    """There is more to read of a process than was asked for."""


class NamespaceRef(NamedTuple):
    """One thing that leads to the namespace `inode`: a name under /run/netns, a process (or thread) id, the
    path of an nsfs mount, or a (pid, fd) pair."""

    inode: int
    kind: Literal["names", "pids", "mounts", "held_fds"]
    value: str | int | tuple[int, int]


def path_of(trace: NamespaceRef) -> str:
    """The path by which a trace leads into its namespace."""
    match trace.value:
        case int(pid):
            return f"/proc/{pid}/ns/net"
        case (pid, descriptor):
            return f"/proc/{pid}/fd/{descriptor}"
        case name:
            return f"{NAMES_DIR}/{name}" if trace.kind == "names" else str(name)


def still_leads(trace: NamespaceRef) -> bool:
    """Whether the trace leads to its namespace now."""
    try:
        return inode_of(path_of(trace)) == trace.inode
    except OSError:
        return False


def all_pids() -> list[int]:
    """Every process in sight, ascending."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def in_processes(pids: Iterable[int], unreadable: list[int]) -> Iterator[NamespaceRef]:
    """The namespace of each process's main thread; those that may not be looked into go to `unreadable`."""
    for pid in pids:
        try:
            inode = _link_inode(f"/proc/{pid}/ns/net")
        except PermissionError:
            unreadable.append(pid)
            continue
        if inode:
            yield NamespaceRef(inode, "pids", pid)


def in_mounts(pid: int | None = None, most: int | None = None) -> Iterator[NamespaceRef]:
    """Every nsfs mount in this process's mount namespace, or in that of another, seen through that one.
    Raises TooMany where the list of its mounts has more than `most` bytes."""
    seen_through = "" if pid is None else f"/proc/{pid}/root"
    for path, inode in _nsfs_mounts(f"/proc/{'self' if pid is None else pid}/mountinfo", most):
        yield NamespaceRef(inode, "mounts", f"{seen_through}{path}")


def mount_namespace(pid: int | Literal["self"]) -> str:
    """What identifies the mount namespace of a process, "" where that is gone or may not be read."""
    return _link(f"/proc/{pid}/ns/mnt")


def in_threads(pid: int, most: int | None = None) -> Iterator[NamespaceRef]:
    """Threads of a process that left its namespace, by thread id. Raises TooMany after `most` threads."""
    tasks = f"/proc/{pid}/task"
    try:
        if Path(tasks).stat().st_nlink <= 3:
            return
        home = _link_inode(f"/proc/{pid}/ns/net")
    except OSError:
        return
    for tid in _entries(tasks, most):
        try:
            inode = _link_inode(f"/proc/{tid}/ns/net")
        except OSError:
            continue
        if inode and inode != home:
            yield NamespaceRef(inode, "pids", int(tid))


def in_descriptors(pid: int, places: Container[str], most: int | None = None) -> Iterator[NamespaceRef]:
    """Descriptors that hold a namespace open; `places` are the paths where namespaces are mounted. Raises
    TooMany after `most` descriptors."""
    folder = f"/proc/{pid}/fd"
    for descriptor in _entries(folder, most):
        path = f"{folder}/{descriptor}"
        link = _link(path)
        inode = _net_inode(link)
        # Opened at a mount it bears that path, and "/" once that mount is gone. No other file is touched:
        # looking at one on a dead network file system would never end.
        if not inode and (link == "/" or link in places):
            inode = net_inode(path)
        if inode:
            yield NamespaceRef(inode, "held_fds", (pid, int(descriptor)))


def _entries(folder: str, most: int | None) -> Iterator[str]:
    """The names in a folder, no more of them read than asked for; none where it may not be read."""
    try:
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries):
                if number == most:
                    raise TooMany
                yield entry.name
    except OSError:
        return


def _nsfs_mounts(mountinfo: str, most: int | None) -> Iterator[tuple[str, int]]:
    """(path, inode) of the network namespaces mounted, those hidden under a later mount left out
    (proc_pid_mountinfo(5))."""
    try:
        with open(mountinfo, "rb") as file:
            content = file.read() if most is None else file.read(most + 1)
    except OSError:
        return
    too_many = most is not None and len(content) > most
    lines = os.fsdecode(content).split("\n")
    found: dict[str, int] = {}
    for line in lines[:-1]:  # what follows the last line's end is nothing, or half a line
        if " nsfs " not in line:
            continue
        words = line.split(" ", 5)
        inode = _net_inode(words[3])
        if inode:
            found[_OCTAL.sub(lambda match: chr(int(match[1], 8)), words[4])] = inode
    yield from found.items()
    if too_many:
        raise TooMany


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _link_inode(path: str) -> int:
    """The inode that a /proc/PID/ns/net link names, 0 where the process is gone. Raises PermissionError."""
    try:
        return _net_inode(os.readlink(path))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _net_inode(text: str) -> int:
    """The inode in "net:[4026531840]", 0 for other text."""
    return int(text[5:-1]) if text.startswith("net:[") else 0
