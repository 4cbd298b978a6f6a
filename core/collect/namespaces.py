"""Find all network namespaces of the machine by the references to them."""

from __future__ import annotations

import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from core.collect import netns_refs
from core.collect.netns_refs import NAMES_DIR, LimitExceeded, NamespaceRef
from core.model import Namespace, Problem
from core.netlink import netns
from core.netlink.client import Netlink
from core.netlink.netns import read_nsids
from core.text import quoted

# `ip netns add` creates the file some time before it mounts the namespace on it.
_CREATION_SECONDS = 2.0
_UNIT = re.compile(r"^(?:0::|\d+:name=systemd:).*/([^/\n]+\.(?:service|scope))(?:/.*)?$", re.MULTILINE)
# Mounts in other mount namespaces are reached through a process there: /proc/PID/root/PATH.
_OTHER_MOUNTS = "/proc/"


def read_namespaces(deep: bool = True) -> tuple[dict[int, Namespace], tuple[Problem, ...]]:
    """Return all visible network namespaces by inode, the host's first, and problems.

    A shallow scan reads processes, names and mounts. A deep scan also reads threads, open descriptors and the
    mounts of other mount namespaces, within limits. Descriptors of this process don't count.
    """
    unreadable: list[int] = []
    problems: list[Problem] = []
    pids = netns_refs.all_pids()
    mounts = list(netns_refs.mount_refs())
    found = [*mounts, *_names(mounts, problems), *netns_refs.process_refs(pids, unreadable)]
    if deep:
        others = [pid for pid in pids if pid != os.getpid()]
        process_netns = {ref.value: ref.inode for ref in found if isinstance(ref.value, int)}
        scan = DeepScan(others, process_netns)
        found += scan.threads_and_mounts()
        mount_paths = {_path_in_mount_namespace(str(ref.value)) for ref in found if ref.kind == "mounts"}
        found += scan.descriptors(mount_paths)
        problems += scan.problems()
    if unreadable:
        problems.append(_unreadable_problem(unreadable))
    return with_nsids(_namespaces(found)), tuple(problems)


def merge_scans(old: Mapping[int, Namespace], found: Mapping[int, Namespace]) -> dict[int, Namespace]:
    """Add still valid references of a deep scan to the result of a shallow scan."""
    merged = dict(found)
    for inode, before in old.items():
        known = set(_refs(found[inode])) if inode in found else set()
        further = [ref for ref in _refs(before) if ref not in known and netns_refs.is_valid(ref)]
        if further:
            namespace = _namespaces([*known, *further])[inode]
            merged[inode] = replace(namespace, nsid=found[inode].nsid if inode in found else before.nsid)
    return merged


def with_nsids(namespaces: Mapping[int, Namespace]) -> dict[int, Namespace]:
    """Return the namespaces with their current ids in the host namespace."""
    with netns.entered(netns.HOST_PATH), Netlink() as sock:
        nsids = read_nsids(sock, ((inode, namespace.entry) for inode, namespace in namespaces.items()))
    return {
        inode: namespace if namespace.nsid == nsids.get(inode) else replace(namespace, nsid=nsids.get(inode))
        for inode, namespace in namespaces.items()
    }


def _names(mounts: Iterable[NamespaceRef], problems: list[Problem]) -> Iterator[NamespaceRef]:
    """Yield the names of ip-netns(8); those that aren't namespaces become problems."""
    try:
        names = os.listdir(NAMES_DIR)
    except OSError:
        return
    mounted = {str(ref.value): ref.inode for ref in mounts}
    for name in names:
        path = f"{NAMES_DIR}/{name}"
        inode = mounted.get(path) or _resolve_name(Path(path), problems)
        if inode:
            yield NamespaceRef(inode, "names", name)


def _resolve_name(path: Path, problems: list[Problem]) -> int | None:
    """Return the inode of a name that isn't a mount, None if it is a leftover."""
    try:
        status = path.stat()
    except OSError as error:
        why = f"it links to {path.readlink()}" if path.is_symlink() else str(error.strerror)
        problems.append(_name_problem(path, why))
        return None
    if status.st_dev == netns.device():
        return status.st_ino
    if time.time() - status.st_mtime > _CREATION_SECONDS:
        problems.append(_name_problem(path, "it is a plain file, because the mount of its namespace is gone"))
    return None


def _name_problem(path: Path, why: str) -> Problem:
    what = f"can't read the network namespace {path}"
    return Problem("namespaces", what, why, f"rm {quoted(str(path))}")


_WITH_ALL = "start it with all capabilities, in a container with --privileged"


def _unreadable_problem(pids: list[int]) -> Problem:
    """Return a problem that names one process, so that its text stays the same."""
    which = f"process {pids[0]}" + (" and others" if len(pids) > 1 else "")
    instead = "; this program's own namespace is shown as the host's" if 1 in pids else ""
    return Problem(
        "namespaces",
        f"can't read the network namespace of {which}",
        f"needs CAP_SYS_PTRACE and every capability that the process has{instead}",
        "run it as root" if os.geteuid() else _WITH_ALL,
    )


def _namespaces(found: Iterable[NamespaceRef]) -> dict[int, Namespace]:
    """Group references by namespace."""
    grouped: defaultdict[int, list[NamespaceRef]] = defaultdict(list)
    for ref in found:
        grouped[ref.inode].append(ref)
    host = netns.inode_of(netns.HOST_PATH)
    order = sorted(grouped, key=lambda inode: (inode != host, inode))
    return {inode: _namespace(inode, inode == host, grouped[inode]) for inode in order}


def _namespace(inode: int, is_host: bool, found: list[NamespaceRef]) -> Namespace:
    pids = tuple(sorted({ref.value for ref in found if isinstance(ref.value, int)}))
    names = tuple(sorted(str(ref.value) for ref in found if ref.kind == "names"))
    mounts = _unique_mounts(str(ref.value) for ref in found if ref.kind == "mounts")
    namespace = Namespace(
        inode,
        is_host=is_host,
        names=names,
        pids=pids,
        mounts=mounts,
        held_fds=tuple(sorted(ref.value for ref in found if isinstance(ref.value, tuple))),
        unit=unit_of(_read(f"/proc/{pids[0]}/cgroup")) if pids else "",
        command=_read(f"/proc/{pids[0]}/comm").rstrip("\n") if pids else "",
    )
    return replace(namespace, entry=netns.HOST_PATH if is_host else find_entry(namespace))


def find_entry(namespace: Namespace) -> str:
    """Return a path that leads to the namespace now, "" if none does.

    A reference may be gone, such as a process that entered the namespace only to read it.
    """
    return next((netns_refs.path_of(ref) for ref in _refs(namespace) if netns_refs.is_valid(ref)), "")


def _unique_mounts(paths: Iterable[str]) -> tuple[str, ...]:
    """Sort mounts, this mount namespace's first, and drop equal paths in others."""
    by_path: dict[str, str] = {}
    for path in sorted(paths, key=lambda path: (path.startswith(_OTHER_MOUNTS), path)):
        by_path.setdefault(_path_in_mount_namespace(path), path)
    return tuple(by_path.values())


def _path_in_mount_namespace(mount: str) -> str:
    """Return the path of a mount in its own mount namespace: without /proc/PID/root."""
    return "/" + mount.split("/", 4)[4] if mount.startswith(_OTHER_MOUNTS) else mount


def _refs(namespace: Namespace) -> Iterator[NamespaceRef]:
    """Yield the references to a namespace, the most lasting first."""
    inode, here = namespace.inode, [m for m in namespace.mounts if not m.startswith(_OTHER_MOUNTS)]
    yield from (NamespaceRef(inode, "names", name) for name in namespace.names)
    yield from (NamespaceRef(inode, "mounts", path) for path in here)
    yield from (NamespaceRef(inode, "pids", pid) for pid in namespace.pids)
    yield from (NamespaceRef(inode, "mounts", path) for path in namespace.mounts if path not in here)
    yield from (NamespaceRef(inode, "held_fds", pair) for pair in namespace.held_fds)


def unit_of(cgroups: str) -> str:
    """Parse the systemd unit in /proc/PID/cgroup, "" if there is none."""
    match = _UNIT.search(cgroups)
    return match[1] if match else ""


def _read(path: str) -> str:
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


MAX_DESCRIPTORS = 1 << 13
MAX_THREADS = 1 << 12
MAX_MOUNT_BYTES = 1 << 20
# CPU time for the threads and mounts of all processes of other users, and again for their descriptors.
BUDGET_SECONDS = 0.5
# References from one process to the same namespace that are kept.
_REFS_PER_PROCESS = 16
_STATUS_BYTES = 1 << 10


class DeepScan:
    """Scan the threads, mounts and descriptors of every process.

    Any user can open a million descriptors, or create mount namespaces with any number of mounts. So
    processes of root and of the current user are read first and completely; all others share a time budget,
    and each has its own limits. What exceeds them becomes a problem.

    `process_netns` has the known network namespaces of their main threads by process id. `problems` is
    complete after the other methods.
    """

    def __init__(self, pids: Collection[int], process_netns: Mapping[int, int]) -> None:
        users = {pid: _user(pid) for pid in pids}
        trusted = {0, os.geteuid()}
        host = netns.inode_of(netns.HOST_PATH)
        self._trusted = [pid for pid in pids if users[pid] in trusted]
        # Processes outside the host's namespace first: they more likely have references.
        self._others = sorted(
            (pid for pid in pids if users[pid] not in trusted),
            key=lambda pid: (process_netns.get(pid, host) == host, pid),
        )
        self._users = users
        self._seen_mounts = {netns_refs.mount_namespace("self")}
        self._exceeded: dict[str, list[int]] = {}
        self._spent: Counter[int | None] = Counter()
        self._stopped = False

    def threads_and_mounts(self) -> Iterator[NamespaceRef]:
        """Yield threads that left their process's namespace, and mounts elsewhere.

        The mounts are those in other mount namespaces, each read through one of its processes.
        """
        for pid in self._trusted:
            yield from netns_refs.thread_refs(pid)
            yield from self._mounts(pid, None)
        yield from self._within_budget(self._threads_and_mounts_of)

    def descriptors(self, mount_paths: Collection[str]) -> Iterator[NamespaceRef]:
        """Yield descriptors of namespaces; `mount_paths` are where namespaces are mounted."""
        for pid in self._trusted:
            yield from netns_refs.descriptor_refs(pid, mount_paths)
        yield from self._within_budget(lambda pid: self._descriptors_of(pid, mount_paths))

    def problems(self) -> Iterator[Problem]:
        """Yield problems for what wasn't scanned, with the same texts in each scan."""
        for limit, pids in self._exceeded.items():
            process = f"process {min(pids)}" + (" and others" if len(pids) > 1 else "")
            why = f"{'each of them' if len(pids) > 1 else 'it'} has {limit}"
            user = self._users[min(pids)]
            yield _problem(f"can't look for all namespaces held by {process}", why, user)
        if self._stopped:
            user, _ = self._spent.most_common(1)[0]
            what = "can't look for all namespaces held by processes of users other than root"
            yield _problem(what, f"it takes too long, most of it for processes of user {user}", user)

    def _threads_and_mounts_of(self, pid: int) -> Iterator[NamespaceRef]:
        threads = netns_refs.thread_refs(pid, MAX_THREADS)
        yield from self._limited(pid, threads, f"more than {MAX_THREADS} threads")
        mounts = self._mounts(pid, MAX_MOUNT_BYTES)
        yield from self._limited(pid, mounts, f"a list of mounts longer than {MAX_MOUNT_BYTES >> 20} MiB")

    def _descriptors_of(self, pid: int, mount_paths: Collection[str]) -> Iterator[NamespaceRef]:
        found = netns_refs.descriptor_refs(pid, mount_paths, MAX_DESCRIPTORS)
        yield from self._limited(pid, found, f"more than {MAX_DESCRIPTORS} descriptors")

    def _mounts(self, pid: int, limit: int | None) -> Iterator[NamespaceRef]:
        mount_namespace = netns_refs.mount_namespace(pid)
        if mount_namespace and mount_namespace not in self._seen_mounts:
            self._seen_mounts.add(mount_namespace)
            yield from netns_refs.mount_refs(pid, limit)

    def _within_budget(self, read: Callable[[int], Iterable[NamespaceRef]]) -> Iterator[NamespaceRef]:
        """Read the processes of other users until the time budget is used up."""
        began = before = time.thread_time()
        for pid in self._others:
            if before - began > BUDGET_SECONDS:
                self._stopped = True
                return
            found = list(read(pid))
            now = time.thread_time()
            self._spent[self._users[pid]] += int((now - before) * 1e9)
            before = now
            yield from found

    def _limited(self, pid: int, found: Iterable[NamespaceRef], limit: str) -> Iterator[NamespaceRef]:
        """Yield a few references to each namespace; record `limit` if it was exceeded."""
        counts: Counter[int] = Counter()
        try:
            for ref in found:
                counts[ref.inode] += 1
                if counts[ref.inode] <= _REFS_PER_PROCESS:
                    yield ref
        except LimitExceeded:
            self._exceeded.setdefault(limit, []).append(pid)


def _problem(what: str, why: str, user: int | None) -> Problem:
    remedy = f"limit them, for example with `ulimit -n` and TasksMax= of user-{user}.slice"
    return Problem("namespaces", what, why, remedy)


def _user(pid: int) -> int | None:
    """Return the greatest user id of a process, None if it is gone.

    A process that runs a setuid program has several; the greatest is 0 only if all of them are.
    """
    try:
        descriptor = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(descriptor, _STATUS_BYTES)
        finally:
            os.close(descriptor)
    except OSError:
        return None
    _, found, rest = text.partition(b"\nUid:")
    return max(map(int, rest.split(b"\n", 1)[0].split())) if found else None
