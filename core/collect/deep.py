"""The deep look for namespaces: threads, mounts and descriptors of every process, bounded for other users'.

Any user can hold a million descriptors or mount namespaces of their own full of mounts. So processes of root
and of the user who looks come first and are read whole, and all others share a budget of time, each of them
with limits of its own. What exceeds them becomes a problem.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from core.collect import netns, nsfile, traces
from core.collect.traces import TooMany, Trace
from core.model import Problem

MOST_DESCRIPTORS = 1 << 13
MOST_THREADS = 1 << 12
MOST_MOUNT_BYTES = 1 << 20
# Of processor time, for the threads and mounts of all processes of other users, and for their descriptors.
SECONDS = 0.5
# Traces from one process to one namespace that are kept; more lead to the same place.
_FEW = 16
_STATUS_BYTES = 1 << 10


class DeepLook:
    """One deep look into processes. `homes` has the network namespace of each one's main thread, where that
    is known; `problems` fills while the traces are read."""

    def __init__(self, pids: Collection[int], homes: Mapping[int, int]) -> None:
        users = {pid: _user(pid) for pid in pids}
        trusted = {0, os.geteuid()}
        host = nsfile.inode_of(netns.HOST_PATH)
        self._trusted = [pid for pid in pids if users[pid] in trusted]
        # Those in a namespace of their own first: more will be found there than in the thousandth shell.
        self._others = sorted(
            (pid for pid in pids if users[pid] not in trusted),
            key=lambda pid: (homes.get(pid, host) == host, pid),
        )
        self._users = users
        self._seen_mounts = {traces.mount_namespace("self")}
        self._exceeded: dict[str, list[int]] = {}
        self._spent: Counter[int | None] = Counter()
        self._stopped = False

    def threads_and_mounts(self) -> Iterator[Trace]:
        """What threads lead to that left their process's namespace, and the mounts of other mount namespaces,
        each seen through one of its processes."""
        for pid in self._trusted:
            yield from traces.in_threads(pid)
            yield from self._mounts(pid, None)
        yield from self._bounded(self._threads_and_mounts_of)

    def descriptors(self, places: Collection[str]) -> Iterator[Trace]:
        """What descriptors hold open; `places` are the paths where namespaces are mounted."""
        for pid in self._trusted:
            yield from traces.in_descriptors(pid, places)
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

    def _threads_and_mounts_of(self, pid: int) -> Iterator[Trace]:
        yield from self._noting(
            pid, traces.in_threads(pid, MOST_THREADS), f"more than {MOST_THREADS} threads"
        )
        mounts = self._mounts(pid, MOST_MOUNT_BYTES)
        yield from self._noting(pid, mounts, f"a list of mounts longer than {MOST_MOUNT_BYTES >> 20} MiB")

    def _descriptors_of(self, pid: int, places: Collection[str]) -> Iterator[Trace]:
        found = traces.in_descriptors(pid, places, MOST_DESCRIPTORS)
        yield from self._noting(pid, found, f"more than {MOST_DESCRIPTORS} descriptors")

    def _mounts(self, pid: int, most: int | None) -> Iterator[Trace]:
        mount_namespace = traces.mount_namespace(pid)
        if mount_namespace and mount_namespace not in self._seen_mounts:
            self._seen_mounts.add(mount_namespace)
            yield from traces.in_mounts(pid, most)

    def _bounded(self, read: Callable[[int], Iterable[Trace]]) -> Iterator[Trace]:
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

    def _noting(self, pid: int, found: Iterable[Trace], limit: str) -> Iterator[Trace]:
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
