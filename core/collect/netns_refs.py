"""Find references to network namespaces in /proc.

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


class LimitExceeded(Exception):
    """A process has more threads, descriptors or mounts than the given limit."""


class NamespaceRef(NamedTuple):
    """A reference to the namespace `inode`.

    `value` is a name under /run/netns, a process or thread id, the path of an nsfs mount, or a (pid, fd)
    pair.
    """

    inode: int
    kind: Literal["names", "pids", "mounts", "held_fds"]
    value: str | int | tuple[int, int]


def path_of(ref: NamespaceRef) -> str:
    """Return the path by which a reference leads to its namespace."""
    match ref.value:
        case int(pid):
            return f"/proc/{pid}/ns/net"
        case (pid, descriptor):
            return f"/proc/{pid}/fd/{descriptor}"
        case name:
            return f"{NAMES_DIR}/{name}" if ref.kind == "names" else str(name)


def is_valid(ref: NamespaceRef) -> bool:
    """Return whether the reference still leads to its namespace."""
    try:
        return inode_of(path_of(ref)) == ref.inode
    except OSError:
        return False


def all_pids() -> list[int]:
    """Return the ids of all visible processes in ascending order."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def process_refs(pids: Iterable[int], unreadable: list[int]) -> Iterator[NamespaceRef]:
    """Yield the namespaces of main threads; append unreadable pids to `unreadable`."""
    for pid in pids:
        try:
            inode = _link_inode(f"/proc/{pid}/ns/net")
        except PermissionError:
            unreadable.append(pid)
            continue
        if inode:
            yield NamespaceRef(inode, "pids", pid)


def mount_refs(pid: int | None = None, limit: int | None = None) -> Iterator[NamespaceRef]:
    """Yield nsfs mounts in this process's mount namespace, or in that of `pid`.

    Raises LimitExceeded if the list of mounts has more than `limit` bytes.
    """
    root = "" if pid is None else f"/proc/{pid}/root"
    for path, inode in _nsfs_mounts(f"/proc/{'self' if pid is None else pid}/mountinfo", limit):
        yield NamespaceRef(inode, "mounts", f"{root}{path}")


def mount_namespace(pid: int | Literal["self"]) -> str:
    """Return a key of a process's mount namespace, "" if it is gone or unreadable."""
    return _read_link(f"/proc/{pid}/ns/mnt")


def thread_refs(pid: int, limit: int | None = None) -> Iterator[NamespaceRef]:
    """Yield the threads in another namespace than their process, by thread id.

    Raises LimitExceeded after `limit` threads.
    """
    tasks = f"/proc/{pid}/task"
    try:
        if Path(tasks).stat().st_nlink <= 3:
            return
        home = _link_inode(f"/proc/{pid}/ns/net")
    except OSError:
        return
    for tid in _entries(tasks, limit):
        try:
            inode = _link_inode(f"/proc/{tid}/ns/net")
        except OSError:
            continue
        if inode and inode != home:
            yield NamespaceRef(inode, "pids", int(tid))


def descriptor_refs(
    pid: int, mount_paths: Container[str], limit: int | None = None
) -> Iterator[NamespaceRef]:
    """Yield the descriptors of a process that hold a namespace open.

    `mount_paths` are the paths where namespaces are mounted. Raises LimitExceeded after `limit` descriptors.
    """
    folder = f"/proc/{pid}/fd"
    for descriptor in _entries(folder, limit):
        path = f"{folder}/{descriptor}"
        link = _read_link(path)
        inode = _net_inode(link)
        # A descriptor opened at a mount shows that path, or "/" once the mount is gone. Other files aren't
        # touched: a stat on a dead network file system would never return.
        if not inode and (link == "/" or link in mount_paths):
            inode = net_inode(path)
        if inode:
            yield NamespaceRef(inode, "held_fds", (pid, int(descriptor)))


def _entries(folder: str, limit: int | None) -> Iterator[str]:
    """Yield the names in a folder; nothing if it is unreadable. Raises LimitExceeded."""
    try:
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries):
                if number == limit:
                    raise LimitExceeded
                yield entry.name
    except OSError:
        return


def _nsfs_mounts(mountinfo: str, limit: int | None) -> Iterator[tuple[str, int]]:
    """Yield path and inode of mounted network namespaces (proc_pid_mountinfo(5)).

    A mount that is hidden under a later one is left out. Raises LimitExceeded at the end.
    """
    try:
        with open(mountinfo, "rb") as file:
            content = file.read() if limit is None else file.read(limit + 1)
    except OSError:
        return
    exceeded = limit is not None and len(content) > limit
    lines = os.fsdecode(content).split("\n")
    found: dict[str, int] = {}
    for line in lines[:-1]:  # the last one is empty or incomplete
        if " nsfs " not in line:
            continue
        fields = line.split(" ", 5)
        inode = _net_inode(fields[3])
        if inode:
            found[_OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4])] = inode
    yield from found.items()
    if exceeded:
        raise LimitExceeded


def _read_link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _link_inode(path: str) -> int:
    """Return the inode of a /proc/PID/ns/net link, 0 if the process is gone.

    Raises PermissionError.
    """
    try:
        return _net_inode(os.readlink(path))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _net_inode(text: str) -> int:
    """Parse the inode in "net:[4026531840]"; 0 for other text."""
    return int(text[5:-1]) if text.startswith("net:[") else 0
