"""All network namespaces of the machine, gathered from every trace that leads to one."""

from __future__ import annotations

import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from core.collect import netns_refs
from core.collect.netns_refs import NAMES_DIR, NamespaceRef, TooMany
from core.model import Namespace, Problem
from core.netlink import netns
from core.netlink.client import Netlink
from core.netlink.netns import read_nsids
from core.text import quoted

# `ip netns add` makes the file a moment before it mounts the namespace on it.
_BEING_MADE = 2.0
_UNIT = re.compile(r"^(?:0::|\d+:name=systemd:).*/([^/\n]+\.(?:service|scope))(?:/.*)?$", re.MULTILINE)
# Mounts in other mount namespaces are named by the path through a process there.
_FOREIGN = "/proc/"


def read_namespaces(deep: bool = True) -> tuple[dict[int, Namespace], tuple[Problem, ...]]:
    """Every network namespace in sight by its inode, the host's first, and what kept some out of sight.

    The shallow look takes in processes, names and mounts; the deep one also threads, open descriptors and the
    mounts of other mount namespaces, within bounds. What this process itself holds open does not count.
    """
    unreadable: list[int] = []
    problems: list[Problem] = []
    pids = netns_refs.all_pids()
    mounts = list(netns_refs.in_mounts())
    found = [*mounts, *_names(mounts, problems), *netns_refs.in_processes(pids, unreadable)]
    if deep:
        others = [pid for pid in pids if pid != os.getpid()]
        homes = {trace.value: trace.inode for trace in found if isinstance(trace.value, int)}
        look = DeepScan(others, homes)
        found += look.threads_and_mounts()
        places = {_place(str(trace.value)) for trace in found if trace.kind == "mounts"}
        found += look.descriptors(places)
        problems += look.problems()
    if unreadable:
        problems.append(_unreadable(unreadable))
    return with_nsids(_namespaces(found)), tuple(problems)


def keep_deep(old: Mapping[int, Namespace], found: Mapping[int, Namespace]) -> dict[int, Namespace]:
    """What a shallow look `found`, with all that an earlier deep look told and that still holds."""
    kept = dict(found)
    for inode, before in old.items():
        known = set(_traces_of(found[inode])) if inode in found else set()
        further = [
            trace for trace in _traces_of(before) if trace not in known and netns_refs.still_leads(trace)
        ]
        if further:
            merged = _namespaces([*known, *further])[inode]
            kept[inode] = replace(merged, nsid=found[inode].nsid if inode in found else before.nsid)
    return kept


def with_nsids(namespaces: Mapping[int, Namespace]) -> dict[int, Namespace]:
    """The same namespaces with the ids that the host namespace knows them by now."""
    with netns.entered(netns.HOST_PATH), Netlink() as sock:
        nsids = read_nsids(sock, ((inode, namespace.entry) for inode, namespace in namespaces.items()))
    return {
        inode: namespace if namespace.nsid == nsids.get(inode) else replace(namespace, nsid=nsids.get(inode))
        for inode, namespace in namespaces.items()
    }


def _names(mounts: Iterable[NamespaceRef], problems: list[Problem]) -> Iterator[NamespaceRef]:
    """The names that ip-netns(8) knows; those that lead nowhere become problems."""
    try:
        names = os.listdir(NAMES_DIR)
    except OSError:
        return
    mounted = {str(trace.value): trace.inode for trace in mounts}
    for name in names:
        path = f"{NAMES_DIR}/{name}"
        inode = mounted.get(path) or _behind(Path(path), problems)
        if inode:
            yield NamespaceRef(inode, "names", name)


def _behind(path: Path, problems: list[Problem]) -> int | None:
    """The namespace behind a name that is no mount: a link to that of a process, or nothing any more."""
    try:
        status = path.stat()
    except OSError as error:
        why = f"it links to {path.readlink()}" if path.is_symlink() else str(error.strerror)
        problems.append(_dead_name(path, why))
        return None
    if status.st_dev == netns.device():
        return status.st_ino
    if time.time() - status.st_mtime > _BEING_MADE:
        problems.append(_dead_name(path, "it is a plain file: the mount of its namespace is gone"))
    return None


def _dead_name(path: Path, why: str) -> Problem:
    what = f"the name {path} leads to no network namespace"
    return Problem("namespaces", what, why, f"remove it: rm {quoted(str(path))}")


_WITH_ALL = "start it with all capabilities, in a container with --privileged"


def _unreadable(pids: list[int]) -> Problem:
    """Worded without their number, so that it stays the same while processes come and go."""
    which = f"process {pids[0]}" + (" and others" if len(pids) > 1 else "")
    instead = "; this program's own is shown as the host's" if 1 in pids else ""
    return Problem(
        "namespaces",
        f"can't read the network namespace of {which}{instead}",
        "that needs CAP_SYS_PTRACE, and every capability that the other process has",
        "run it as root" if os.geteuid() else _WITH_ALL,
    )


def _namespaces(found: Iterable[NamespaceRef]) -> dict[int, Namespace]:
    """The traces put together, namespace by namespace."""
    grouped: defaultdict[int, list[NamespaceRef]] = defaultdict(list)
    for trace in found:
        grouped[trace.inode].append(trace)
    host = netns.inode_of(netns.HOST_PATH)
    order = sorted(grouped, key=lambda inode: (inode != host, inode))
    return {inode: _namespace(inode, inode == host, grouped[inode]) for inode in order}


def _namespace(inode: int, is_host: bool, found: list[NamespaceRef]) -> Namespace:
    pids = tuple(sorted({trace.value for trace in found if isinstance(trace.value, int)}))
    names = tuple(sorted(str(trace.value) for trace in found if trace.kind == "names"))
    mounts = _mounts(str(trace.value) for trace in found if trace.kind == "mounts")
    namespace = Namespace(
        inode,
        is_host=is_host,
        names=names,
        pids=pids,
        mounts=mounts,
        held_fds=tuple(sorted(trace.value for trace in found if isinstance(trace.value, tuple))),
        unit=unit_of(_read(f"/proc/{pids[0]}/cgroup")) if pids else "",
        command=_read(f"/proc/{pids[0]}/comm").rstrip("\n") if pids else "",
    )
    return replace(namespace, entry=netns.HOST_PATH if is_host else entry_of(namespace))


def entry_of(namespace: Namespace) -> str:
    """A path into the namespace that leads there now, "" where none does: what only visited it (another look
    like this one, say) has left meanwhile."""
    return next((netns_refs.path_of(way) for way in _traces_of(namespace) if netns_refs.still_leads(way)), "")


def _mounts(paths: Iterable[str]) -> tuple[str, ...]:
    """Paths sorted, those of this mount namespace first; of the same path in others one, if none is here."""
    by_place: dict[str, str] = {}
    for path in sorted(paths, key=lambda path: (path.startswith(_FOREIGN), path)):
        by_place.setdefault(_place(path), path)
    return tuple(by_place.values())


def _place(mount: str) -> str:
    """Where a mount is in its own mount namespace: without the /proc/PID/root before it."""
    return "/" + mount.split("/", 4)[4] if mount.startswith(_FOREIGN) else mount


def _traces_of(namespace: Namespace) -> Iterator[NamespaceRef]:
    """What leads to a namespace, the most lasting first."""
    inode, here = namespace.inode, [m for m in namespace.mounts if not m.startswith(_FOREIGN)]
    yield from (NamespaceRef(inode, "names", name) for name in namespace.names)
    yield from (NamespaceRef(inode, "mounts", path) for path in here)
    yield from (NamespaceRef(inode, "pids", pid) for pid in namespace.pids)
    yield from (NamespaceRef(inode, "mounts", path) for path in namespace.mounts if path not in here)
    yield from (NamespaceRef(inode, "held_fds", pair) for pair in namespace.held_fds)


def unit_of(cgroups: str) -> str:
    """The systemd unit (systemd.unit(5)) in what /proc/PID/cgroup tells, "" where there is none."""
    match = _UNIT.search(cgroups)
    return match[1] if match else ""


def _read(path: str) -> str:
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


# The deep look for namespaces: threads, mounts and descriptors of every process, bounded for other users'.
#
# Any user can hold a million descriptors or mount namespaces of their own full of mounts. So processes of
# root and of the user who looks come first and are read whole, and all others share a budget of time, each
# of them with limits of its own. What exceeds them becomes a problem.

MOST_DESCRIPTORS = 1 << 13
MOST_THREADS = 1 << 12
MOST_MOUNT_BYTES = 1 << 20
# Of processor time, for the threads and mounts of all processes of other users, and for their descriptors.
SECONDS = 0.5
# Traces from one process to one namespace that are kept; more lead to the same place.
_FEW = 16
_STATUS_BYTES = 1 << 10


class DeepScan:
    """One deep look into processes. `homes` has the network namespace of each one's main thread, where that
    is known; `problems` fills while the traces are read."""

    def __init__(self, pids: Collection[int], homes: Mapping[int, int]) -> None:
        users = {pid: _user(pid) for pid in pids}
        trusted = {0, os.geteuid()}
        host = netns.inode_of(netns.HOST_PATH)
        self._trusted = [pid for pid in pids if users[pid] in trusted]
        # Those in a namespace of their own first: more will be found there than in the thousandth shell.
        self._others = sorted(
            (pid for pid in pids if users[pid] not in trusted),
            key=lambda pid: (homes.get(pid, host) == host, pid),
        )
        self._users = users
        self._seen_mounts = {netns_refs.mount_namespace("self")}
        self._exceeded: dict[str, list[int]] = {}
        self._spent: Counter[int | None] = Counter()
        self._stopped = False

    def threads_and_mounts(self) -> Iterator[NamespaceRef]:
        """What threads lead to that left their process's namespace, and the mounts of other mount namespaces,
        each seen through one of its processes."""
        for pid in self._trusted:
            yield from netns_refs.in_threads(pid)
            yield from self._mounts(pid, None)
        yield from self._bounded(self._threads_and_mounts_of)

    def descriptors(self, places: Collection[str]) -> Iterator[NamespaceRef]:
        """What descriptors hold open; `places` are the paths where namespaces are mounted."""
        for pid in self._trusted:
            yield from netns_refs.in_descriptors(pid, places)
        yield from self._bounded(lambda pid: self._descriptors_of(pid, places))

    def problems(self) -> Iterator[Problem]:
        """What was not looked through, in words that stay the same from look to look."""
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
        yield from self._noting(
            pid, netns_refs.in_threads(pid, MOST_THREADS), f"more than {MOST_THREADS} threads"
        )
        mounts = self._mounts(pid, MOST_MOUNT_BYTES)
        yield from self._noting(pid, mounts, f"a list of mounts longer than {MOST_MOUNT_BYTES >> 20} MiB")

    def _descriptors_of(self, pid: int, places: Collection[str]) -> Iterator[NamespaceRef]:
        found = netns_refs.in_descriptors(pid, places, MOST_DESCRIPTORS)
        yield from self._noting(pid, found, f"more than {MOST_DESCRIPTORS} descriptors")

    def _mounts(self, pid: int, most: int | None) -> Iterator[NamespaceRef]:
        mount_namespace = netns_refs.mount_namespace(pid)
        if mount_namespace and mount_namespace not in self._seen_mounts:
            self._seen_mounts.add(mount_namespace)
            yield from netns_refs.in_mounts(pid, most)

    def _bounded(self, read: Callable[[int], Iterable[NamespaceRef]]) -> Iterator[NamespaceRef]:
        """What is read of each of the other users' processes, until the time is up."""
        began = before = time.thread_time()
        for pid in self._others:
            if before - began > SECONDS:
                self._stopped = True
                return
            found = list(read(pid))
            now = time.thread_time()
            self._spent[self._users[pid]] += int((now - before) * 1e9)
            before = now
            yield from found

    def _noting(self, pid: int, found: Iterable[NamespaceRef], limit: str) -> Iterator[NamespaceRef]:
        """A few of the traces to each namespace; the limit is noted where it was exceeded."""
        to: Counter[int] = Counter()
        try:
            for trace in found:
                to[trace.inode] += 1
                if to[trace.inode] <= _FEW:
                    yield trace
        except TooMany:
            self._exceeded.setdefault(limit, []).append(pid)


def _problem(what: str, why: str, user: int | None) -> Problem:
    remedy = f"limit what they may have, such as by `ulimit -n` and TasksMax= of user-{user}.slice"
    return Problem("namespaces", what, why, remedy)


def _user(pid: int) -> int | None:
    """Who runs a process: of its user ids (one that runs a setuid program has several) the greatest, which is
    root's for processes that are root's alone; None where it is gone."""
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
