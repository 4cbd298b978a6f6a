"""Entering network namespaces: the one place that calls setns(2)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import re
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import batched
from typing import Self

from core.model import Namespace
from core.netlink.client import Netlink, attribute, attributes, s32

HOST_PATH = "/proc/self/ns/net"
# Where the thread is: a thread beside the main one is in the host while that one visits others.
THREAD_PATH = "/proc/thread-self/ns/net"


class NamespaceGone(Exception):
    """The namespace to enter is no longer there."""


def entry_of(namespace: Namespace) -> str:
    """The path by which it can be entered; raises NamespaceGone where there is none."""
    if namespace.entry:
        return namespace.entry
    if namespace.is_host:
        return HOST_PATH
    raise NamespaceGone(f"net:[{namespace.inode}]")


@contextmanager
def entered(path: str, inode: int | None = None) -> Iterator[None]:
    """Run the body with this thread inside the network namespace at `path`; other threads stay.

    Sockets opened and processes started in the body belong to that namespace. Do not keep such a socket
    open: it would hold the namespace after its owner let it go. Raises NamespaceGone when `path` no longer
    leads to a namespace, or to another one than `inode`; PermissionError without CAP_SYS_ADMIN.
    """
    home = os.open(THREAD_PATH, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            target = open_namespace(path, inode)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise NamespaceGone(path) from error
        try:
            if os.fstat(target).st_ino == os.fstat(home).st_ino:
                yield
                return
            try:
                os.setns(target, os.CLONE_NEWNET)
            except OSError as error:
                if isinstance(error, PermissionError):
                    raise
                raise NamespaceGone(path) from error
        finally:
            os.close(target)
        try:
            yield
        finally:
            os.setns(home, os.CLONE_NEWNET)
    finally:
        os.close(home)


# Opening the files of namespaces, and of nothing else.
#
# Any user can have a path that should lead to a namespace lead to a FIFO or a device instead, by mounting
# in a mount namespace of their own or by moving a folder at the right moment. So a file is first reached
# without being opened (O_PATH of open(2)), and opened only where it is a namespace: nsfs, where these files
# are, is one file system with one device number.

_NS_GET_NSTYPE = 0xB703  # ioctl_nsfs(2)
_LINK = re.compile(r"/proc/(?:\d+|self|thread-self)/ns/[a-z_]+")  # the kernel's own: leads nowhere else
_THROUGH_PROCESS = re.compile(r"(/proc/\d+/root)/(.*)", re.DOTALL)
# Folders that only root may write: what is there is the same a moment later.
_ROOTS = ("/run/netns/", "/run/docker/netns/")
# What leads there may be a link: people make names of /proc/PID/ns/net.
_FOLLOWED = ("/run/netns/", "/proc/")
_O_PATH = os.O_PATH | os.O_CLOEXEC

_OPENAT2 = 437  # on every architecture
_OPEN_HOW = struct.Struct("=QQQ")  # flags, mode, resolve
_NO_MAGICLINKS, _NO_SYMLINKS, _IN_ROOT, _CACHED = 0x02, 0x04, 0x10, 0x20
_TRIES = 5  # of a look into the cache: a mount made elsewhere at the same moment spoils one

_STATX = struct.Struct("=32xQ96xII112x")  # stx_ino, stx_dev_major, stx_dev_minor
_AT_EMPTY_PATH, _AT_STATX_DONT_SYNC, _STATX_INO = 0x1000, 0x4000, 0x100

_libc = ctypes.CDLL(None, use_errno=True)


def open_namespace(path: str, inode: int | None = None) -> int:
    """A descriptor of the namespace at `path`, for setns(2). Raises FileNotFoundError where there is none, or
    another one than `inode`."""
    if path.startswith(_ROOTS) and (status := os.lstat(path)).st_dev == device():
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        found = status.st_ino
    elif _LINK.fullmatch(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        found = os.fstat(descriptor).st_ino
    else:
        handle = _reach(path)
        try:
            found = _inode(handle, path)
            descriptor = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(handle)
    if inode is not None and found != inode:
        os.close(descriptor)
        raise _absent(path)
    return descriptor


def inode_of(path: str) -> int:
    """The inode that identifies the namespace at `path` (namespaces(7)). Raises FileNotFoundError where there
    is none."""
    if path.startswith(_ROOTS):
        status = os.stat(path)  # noqa: PTH116 (called for each namespace of the machine)
        if status.st_dev != device():
            raise _absent(path)
        return status.st_ino
    if _LINK.fullmatch(path):
        return os.stat(path).st_ino  # noqa: PTH116
    handle = _reach(path)
    try:
        return _inode(handle, path)
    finally:
        os.close(handle)


def net_inode(path: str) -> int:
    """The inode of the network namespace at `path`, 0 for everything else."""
    try:
        descriptor = open_namespace(path)
        try:
            is_net = fcntl.ioctl(descriptor, _NS_GET_NSTYPE) == os.CLONE_NEWNET
            return os.fstat(descriptor).st_ino if is_net else 0
        finally:
            os.close(descriptor)
    except OSError:
        return 0


@functools.cache
def device() -> int:
    """The device number that all namespaces' files have in common, and no other file."""
    return os.stat("/proc/self/ns/net").st_dev  # noqa: PTH116


def _absent(path: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "no such namespace", path)


def _reach(path: str) -> int:
    """A descriptor that stands for the file at `path` without having opened it."""
    if through := _THROUGH_PROCESS.fullmatch(path):
        root = os.open(through[1], _O_PATH | os.O_DIRECTORY)
        try:
            return _reach_mount(through[2], root, _IN_ROOT)
        finally:
            os.close(root)
    if path.startswith(_FOLLOWED):
        return os.open(path, _O_PATH)
    return _reach_mount(path)


def _reach_mount(path: str, root: int = -1, resolve: int = 0) -> int:
    """Reach a mount. Its path has no symlinks, and the kernel keeps all of it in memory while it is mounted:
    no file system is asked on the way, for one that a user provides (FUSE) might never answer."""
    resolve |= _NO_MAGICLINKS | _NO_SYMLINKS | _CACHED
    for _ in range(_TRIES):
        how = _OPEN_HOW.pack(_O_PATH, 0, resolve)
        descriptor: int = _libc.syscall(_OPENAT2, root, os.fsencode(path), how, ctypes.c_size_t(len(how)))
        if descriptor >= 0:
            return descriptor
        number = ctypes.get_errno()
        if number == errno.EINVAL:  # before Linux 5.12
            resolve &= ~_CACHED
        elif number != errno.EAGAIN:
            break
    if number in (errno.EACCES, errno.EPERM):
        raise PermissionError(number, os.strerror(number), path)
    raise _absent(path)


def _inode(handle: int, path: str) -> int:
    """The inode of a namespace's file. Raises FileNotFoundError for every other file. Asks no file system for
    what it does not hold in memory."""
    found = ctypes.create_string_buffer(_STATX.size)
    flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
    if _libc.statx(handle, b"", flags, _STATX_INO, found):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    inode, major, minor = _STATX.unpack(found.raw)
    if os.makedev(major, minor) != device():
        raise _absent(path)
    return int(inode)


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
        self._host = os.open(HOST_PATH, os.O_RDONLY | os.O_CLOEXEC)
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
                descriptors[inode] = open_namespace(path, inode)
            except OSError:
                continue
        yield descriptors
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)
