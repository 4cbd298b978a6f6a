"""Traces of network namespaces in /proc: processes, threads, mounts and open descriptors that hold one."""

from __future__ import annotations

import os
import re
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from core.collect.nsfile import inode_of, net_inode

NAMES_DIR = "/run/netns"
_OCTAL = re.compile(r"\\([0-7]{3})")


class Trace(NamedTuple):
    """One thing that leads to the namespace `inode`: a name under /run/netns, a process (or thread) id, the
    path of an nsfs mount, or a (pid, fd) pair."""

    inode: int
    kind: Literal["names", "pids", "mounts", "held_fds"]
    value: str | int | tuple[int, int]


def path_of(trace: Trace) -> str:
    """The path by which a trace leads into its namespace."""
    match trace.value:
        case int(pid):
            return f"/proc/{pid}/ns/net"
        case (pid, descriptor):
            return f"/proc/{pid}/fd/{descriptor}"
        case name:
            return f"{NAMES_DIR}/{name}" if trace.kind == "names" else str(name)


def still_leads(trace: Trace) -> bool:
    """Whether the trace leads to its namespace now."""
    try:
        return inode_of(path_of(trace)) == trace.inode
    except OSError:
        return False


def all_pids() -> list[int]:
    """Every process in sight, ascending."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def in_processes(pids: Iterable[int], unreadable: list[int]) -> Iterator[Trace]:
    """The namespace of each process's main thread; those that may not be looked into go to `unreadable`."""
    for pid in pids:
        try:
            inode = _link_inode(f"/proc/{pid}/ns/net")
        except PermissionError:
            unreadable.append(pid)
            continue
        if inode:
            yield Trace(inode, "pids", pid)


def in_mounts() -> Iterator[Trace]:
    """Every nsfs mount in this process's mount namespace."""
    for path, inode in _nsfs_mounts("/proc/self/mountinfo"):
        yield Trace(inode, "mounts", path)


def in_threads(pids: Iterable[int]) -> Iterator[Trace]:
    """Threads that left the namespace of their process, by thread id."""
    for pid in pids:
        try:
            tasks = Path(f"/proc/{pid}/task")
            tids = os.listdir(tasks) if tasks.stat().st_nlink > 3 else []
            home = _link_inode(f"/proc/{pid}/ns/net")
            inodes = {int(tid): _link_inode(f"/proc/{tid}/ns/net") for tid in tids}
        except OSError:
            continue
        for tid, inode in inodes.items():
            if inode and inode != home:
                yield Trace(inode, "pids", tid)


def in_descriptors(pids: Iterable[int], places: Container[str]) -> Iterator[Trace]:
    """Descriptors that hold a namespace open; `places` are the paths where namespaces are mounted."""
    for pid in pids:
        folder = f"/proc/{pid}/fd"
        try:
            descriptors = os.listdir(folder)
        except OSError:
            continue
        for descriptor in descriptors:
            path = f"{folder}/{descriptor}"
            link = _link(path)
            inode = _net_inode(link)
            # Opened at a mount it bears that path, and "/" once that mount is gone. No other file is touched:
            # looking at one on a dead network file system would never end.
            if not inode and (link == "/" or link in places):
                inode = net_inode(path)
            if inode:
                yield Trace(inode, "held_fds", (pid, int(descriptor)))


def in_other_mount_namespaces(pids: Iterable[int]) -> Iterator[Trace]:
    """The nsfs mounts of every other mount namespace that has a process, seen through that process."""
    seen = {_link("/proc/self/ns/mnt")}
    for pid in pids:
        mount_namespace = _link(f"/proc/{pid}/ns/mnt")
        if not mount_namespace or mount_namespace in seen:
            continue
        seen.add(mount_namespace)
        for path, inode in _nsfs_mounts(f"/proc/{pid}/mountinfo"):
            yield Trace(inode, "mounts", f"/proc/{pid}/root{path}")


def _nsfs_mounts(mountinfo: str) -> list[tuple[str, int]]:
    """(path, inode) of the network namespaces mounted, those hidden under a later mount left out
    (proc_pid_mountinfo(5))."""
    try:
        text = Path(mountinfo).read_text(errors="surrogateescape")
    except OSError:
        return []
    found: dict[str, int] = {}
    for line in text.splitlines():
        if " nsfs " not in line:
            continue
        words = line.split(" ", 5)
        inode = _net_inode(words[3])
        if inode:
            found[_OCTAL.sub(lambda match: chr(int(match[1], 8)), words[4])] = inode
    return list(found.items())


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
