"""Namespace ids: the small numbers by which one network namespace knows another (ip-netns(8), `set`)."""

from __future__ import annotations

import os
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import batched
from typing import Self

from core.collect import netns, nsfile
from core.collect.netlink import Netlink, attribute, attributes, s32
from core.model import Namespace

_RTM_NEWNSID, _RTM_GETNSID = 88, 90
_NETNSA_NSID, _NETNSA_FD = 1, 3
_RTGENMSG = struct.pack("=Bxxx", 0)
# Descriptors held open at once: far below the usual limit of 1024.
_AT_ONCE = 64
_LIKELY = 6

# A namespace to ask about: its inode and a path by which it can be entered.
Known = tuple[int, str]


def read_nsids(sock: Netlink, known: Iterable[Known]) -> dict[int, int]:
    """By inode the id that the namespace of `sock` has given to each of `known`; without those that have none
    or vanished."""
    found = {}
    for group in batched(known, _AT_ONCE):
        with _opened(group) as descriptors:
            found.update(_ids_of(sock, descriptors))
    return found


def assign_nsids(sock: Netlink, known: Iterable[Known]) -> None:
    """Give each of `known` an id in the namespace of `sock`, the next free one; those that have one keep it,
    those that vanished are passed over. Without CAP_NET_ADMIN the kernel refuses, and none gets one."""
    any_id = attribute(_NETNSA_NSID, struct.pack("=i", -1))
    for group in batched(known, _AT_ONCE):
        with _opened(group) as descriptors:
            sock.batch([(_RTM_NEWNSID, _about(descriptor) + any_id) for descriptor in descriptors.values()])


class NsidResolver:
    """Finds which namespaces the ids that links refer to stand for, with few questions: the kernel translates
    a namespace into an id only, not back, so the host and the hubs found so far are asked about first.

    A context manager: it holds these few open, as /proc/self leads elsewhere while the main thread visits."""

    def __init__(self, known: Collection[Namespace]) -> None:
        self._ids = {namespace.nsid: namespace.inode for namespace in known if namespace.nsid is not None}
        self._known = {namespace.inode: namespace.entry for namespace in known if not namespace.is_host}
        self._host = os.open(netns.HOST_PATH, os.O_RDONLY | os.O_CLOEXEC)
        self._likely = {os.fstat(self._host).st_ino: self._host}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._likely.values():
            os.close(descriptor)

    def resolve(self, sock: Netlink, namespace: Namespace, wanted: set[int | None]) -> dict[int, int]:
        """The inode for each id of `wanted` as seen from `namespace`, the one of `sock`; without those that
        none of the known namespaces has."""
        missing = {nsid for nsid in wanted if nsid is not None and nsid >= 0}
        if not missing:
            return {}
        if namespace.is_host:
            found = {nsid: self._ids[nsid] for nsid in missing & self._ids.keys()}
        else:
            found = {}
            for likely in self._guesses():
                found |= _inodes(_ids_of(sock, likely), missing)
                if not missing - found.keys():
                    break
        if missing - found.keys():
            found |= _inodes(read_nsids(sock, self._known.items()), missing)
            self._remember([namespace.inode] if len(found) >= _LIKELY else found.values())
        return found

    def _guesses(self) -> Iterator[dict[int, int]]:
        """The host alone, where nearly every link leads, then the others that are likely."""
        yield {inode: one for inode, one in self._likely.items() if one == self._host}
        yield {inode: one for inode, one in self._likely.items() if one != self._host}

    def _remember(self, inodes: Iterable[int]) -> None:
        """Hold open those that are likely to be the answer again, the latest few."""
        with _opened((inode, self._known[inode]) for inode in inodes if inode in self._known) as descriptors:
            self._likely |= {
                inode: os.dup(descriptor)
                for inode, descriptor in descriptors.items()
                if inode not in self._likely
            }
        oldest = [inode for inode, descriptor in self._likely.items() if descriptor != self._host]
        for inode in oldest[:-_LIKELY]:
            os.close(self._likely.pop(inode))


def _inodes(nsids: Mapping[int, int], wanted: Collection[int]) -> dict[int, int]:
    """The inodes by those ids that are wanted."""
    return {nsid: inode for inode, nsid in nsids.items() if nsid in wanted}


def _ids_of(sock: Netlink, descriptors: Mapping[int, int]) -> dict[int, int]:
    """The id of each namespace that has one, by inode, asked by its open descriptor."""
    found = {}
    answers = sock.batch([(_RTM_GETNSID, _about(descriptor)) for descriptor in descriptors.values()])
    for inode, answer in zip(descriptors, answers, strict=True):
        if isinstance(answer, list) and answer:
            nsid = s32(attributes(answer[0].payload, 4)[_NETNSA_NSID])
            if nsid >= 0:
                found[inode] = nsid
    return found


def _about(descriptor: int) -> bytes:
    return _RTGENMSG + attribute(_NETNSA_FD, struct.pack("=I", descriptor))


@contextmanager
def _opened(known: Iterable[Known]) -> Iterator[dict[int, int]]:
    """Open descriptors by inode, of those of `known` that are still there."""
    descriptors: dict[int, int] = {}
    try:
        for inode, path in known:
            try:
                descriptors[inode] = nsfile.open_namespace(path, inode)
            except OSError:
                continue
        yield descriptors
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)
