"""Namespace ids: the small numbers by which one network namespace knows another (ip-netns(8), `set`)."""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import batched
from typing import Self

from core.collect import netns
from core.collect.netlink import Answer, Netlink, attribute, attributes, s32
from core.model import Namespace

RTM_NEWNSID, RTM_GETNSID = 88, 90
_NETNSA_NSID, _NETNSA_FD = 1, 3
_RTGENMSG = struct.pack("=Bxxx", 0)
# Descriptors held open at once: far below the usual limit of 1024.
_AT_ONCE = 64

# A namespace to ask about: its inode and a path by which it can be entered.
Known = tuple[int, str]


def read_nsids(sock: Netlink, known: Iterable[Known]) -> dict[int, int]:
    """By inode the id that the namespace of `sock` has given to each of `known`; without those that have none
    or vanished."""
    found = {}
    for inode, answer in _ask(sock, RTM_GETNSID, known):
        if isinstance(answer, list) and answer:
            nsid = s32(attributes(answer[0].payload, 4)[_NETNSA_NSID])
            if nsid >= 0:
                found[inode] = nsid
    return found


def assign_nsids(sock: Netlink, known: Iterable[Known]) -> None:
    """Give each of `known` an id in the namespace of `sock`, the next free one; those that have one keep it,
    those that vanished are passed over. Without CAP_NET_ADMIN the kernel refuses, and none gets one."""
    for _ in _ask(sock, RTM_NEWNSID, known, attribute(_NETNSA_NSID, struct.pack("=i", -1))):
        pass


class NsidResolver:
    """Finds which namespaces the ids that links refer to stand for, with few questions: the kernel translates
    a namespace into an id only, not back, so those that were the answer before are tried first. A context
    manager: it keeps the host at hand, whose path in /proc leads elsewhere while the main thread visits."""

    def __init__(self, known: Collection[Namespace]) -> None:
        self._ids = {namespace.nsid: namespace.inode for namespace in known if namespace.nsid is not None}
        self._known = {namespace.inode: namespace.entry for namespace in known if not namespace.is_host}
        self._likely: deque[Known] = deque(maxlen=4)
        self._host = open(netns.HOST_PATH)  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._host.close()

    def resolve(self, sock: Netlink, namespace: Namespace, wanted: set[int | None]) -> dict[int, int]:
        """The inode for each id of `wanted` as seen from `namespace`, the one of `sock`; without those that
        none of the known namespaces has."""
        missing = {nsid for nsid in wanted if nsid is not None and nsid >= 0}
        found = {nsid: self._ids[nsid] for nsid in missing & self._ids.keys()} if namespace.is_host else {}
        missing -= found.keys()
        for candidates in self._guesses(namespace):
            if not missing:
                break
            found |= self._try(sock, candidates, missing)
            missing -= found.keys()
        return found

    def _guesses(self, namespace: Namespace) -> Iterator[list[Known]]:
        """Namespaces to ask about, in groups: the host, former answers, all."""
        if not namespace.is_host:
            host = self._host.fileno()
            yield [(os.fstat(host).st_ino, f"/proc/self/fd/{host}")]
            yield list(self._likely)
        yield list(self._known.items())

    def _try(self, sock: Netlink, candidates: list[Known], missing: set[int]) -> dict[int, int]:
        nsids = read_nsids(sock, candidates)
        found = {nsid: inode for inode, nsid in nsids.items() if nsid in missing}
        self._likely += [
            known for known in candidates if nsids.get(known[0]) in missing and known not in self._likely
        ]
        return found


def _ask(
    sock: Netlink, msg_type: int, known: Iterable[Known], extra: bytes = b""
) -> Iterator[tuple[int, Answer]]:
    """One request about each namespace of `known`, with its descriptor."""
    for group in batched(known, _AT_ONCE):
        with _opened(group) as descriptors:
            requests = [
                (msg_type, _RTGENMSG + attribute(_NETNSA_FD, struct.pack("=I", descriptor)) + extra)
                for _, descriptor in descriptors
            ]
            answers = sock.batch(requests)
        yield from zip((inode for inode, _ in descriptors), answers, strict=True)


@contextmanager
def _opened(known: Sequence[Known]) -> Iterator[list[tuple[int, int]]]:
    """(inode, descriptor) of those of `known` that are still there."""
    descriptors = []
    try:
        for inode, path in known:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            descriptors.append((os.fstat(descriptor).st_ino, descriptor, inode))
        yield [(inode, descriptor) for found, descriptor, inode in descriptors if found == inode]
    finally:
        for _, descriptor, _ in descriptors:
            os.close(descriptor)
