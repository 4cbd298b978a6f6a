"""Enter network namespaces with setns(2), open their files, resolve their ids."""

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
# The calling thread's namespace; HOST_PATH follows the main thread, which enters others.
THREAD_PATH = "/proc/thread-self/ns/net"


class NamespaceGone(Exception):
    """The namespace to enter no longer exists."""


def entry_of(namespace: Namespace) -> str:
    """Return a path by which the namespace can be entered; raises NamespaceGone."""
    if namespace.entry:
        return namespace.entry
    if namespace.is_host:
        return HOST_PATH
    raise NamespaceGone(f"the namespace net:[{namespace.inode}] no longer exists")


@contextmanager
def entered(path: str, inode: int | None = None) -> Iterator[None]:
    """Run the body with this thread, and no other, in the network namespace at `path`.

    Sockets opened and processes started in the body belong to that namespace. Don't keep such a socket open:
    it would keep the namespace alive after its owner is gone. Raises NamespaceGone if `path` isn't a
    namespace any more or not the one with `inode`; PermissionError without CAP_SYS_ADMIN.
    """
    home = os.open(THREAD_PATH, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            target = open_namespace(path, inode)
        except (FileNotFoundError, ProcessLookupError) as error:
            raise NamespaceGone(f"there is no namespace at {path}") from error
        try:
            if os.fstat(target).st_ino == os.fstat(home).st_ino:
                yield
                return
            try:
                os.setns(target, os.CLONE_NEWNET)
            except OSError as error:
                if isinstance(error, PermissionError):
                    raise
                raise NamespaceGone(f"there is no namespace at {path}") from error
        finally:
            os.close(target)
        try:
            yield
        finally:
            os.setns(home, os.CLONE_NEWNET)
    finally:
        os.close(home)


# Open files of namespaces and of nothing else.
#
# Any user can replace a path of a namespace by a FIFO or a device, with a mount in an own mount namespace or
# by moving a folder at the right moment. So a path is first resolved without opening the file (O_PATH of
# open(2)), and opened only if it is a namespace: these files are on nsfs, a single file system with one
# device number.

_NS_GET_NSTYPE = 0xB703  # ioctl_nsfs(2)
_LINK = re.compile(r"/proc/(?:\d+|self|thread-self)/ns/[a-z_]+")  # magic links, which can't be replaced
_THROUGH_PROCESS = re.compile(r"(/proc/\d+/root)/(.*)", re.DOTALL)
# Only root can write to these folders, so their content doesn't change between check and use.
_ROOT_FOLDERS = ("/run/netns/", "/run/docker/netns/")
# Symlinks are followed here: names may be symlinks to /proc/PID/ns/net.
_SYMLINK_FOLDERS = ("/run/netns/", "/proc/")
_O_PATH = os.O_PATH | os.O_CLOEXEC

_OPENAT2 = 437  # on every architecture
_OPEN_HOW = struct.Struct("=QQQ")  # flags, mode, resolve
_NO_MAGICLINKS, _NO_SYMLINKS, _IN_ROOT, _CACHED = 0x02, 0x04, 0x10, 0x20
_TRIES = 5  # a concurrent mount can make RESOLVE_CACHED fail

_STATX = struct.Struct("=32xQ96xII112x")  # stx_ino, stx_dev_major, stx_dev_minor
_AT_EMPTY_PATH, _AT_STATX_DONT_SYNC, _STATX_INO = 0x1000, 0x4000, 0x100

_libc = ctypes.CDLL(None, use_errno=True)


def open_namespace(path: str, inode: int | None = None) -> int:
    """Return a descriptor of the namespace at `path` for setns(2).

    Raises FileNotFoundError if there is none, or not the one with `inode`.
    """
    if path.startswith(_ROOT_FOLDERS) and (status := os.lstat(path)).st_dev == device():
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        found = status.st_ino
    elif _LINK.fullmatch(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        found = os.fstat(descriptor).st_ino
    else:
        handle = _resolve(path)
        try:
            found = _inode(handle, path)
            descriptor = os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(handle)
    if inode is not None and found != inode:
        os.close(descriptor)
        raise _not_found(path)
    return descriptor


def inode_of(path: str) -> int:
    """Return the inode that identifies the namespace at `path` (namespaces(7)).

    Raises FileNotFoundError if there is none.
    """
    if path.startswith(_ROOT_FOLDERS):
        status = os.stat(path)  # noqa: PTH116 (called for each namespace of the machine)
        if status.st_dev != device():
            raise _not_found(path)
        return status.st_ino
    if _LINK.fullmatch(path):
        return os.stat(path).st_ino  # noqa: PTH116
    handle = _resolve(path)
    try:
        return _inode(handle, path)
    finally:
        os.close(handle)


def net_inode(path: str) -> int:
    """Return the inode of the network namespace at `path`, 0 for any other file."""
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
    """Return the device number of nsfs, which all namespace files share."""
    return os.stat("/proc/self/ns/net").st_dev  # noqa: PTH116


def _not_found(path: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, "no such namespace", path)


def _resolve(path: str) -> int:
    """Return an O_PATH descriptor for the file at `path`, which isn't opened."""
    if through := _THROUGH_PROCESS.fullmatch(path):
        root = os.open(through[1], _O_PATH | os.O_DIRECTORY)
        try:
            return _resolve_mount(through[2], root, _IN_ROOT)
        finally:
            os.close(root)
    if path.startswith(_SYMLINK_FOLDERS):
        return os.open(path, _O_PATH)
    return _resolve_mount(path)


def _resolve_mount(path: str, root: int = -1, resolve: int = 0) -> int:
    """Return an O_PATH descriptor of a mount point, from the kernel's cache only.

    The path of a mount has no symlinks, and the kernel keeps all of it in memory while it is mounted. No file
    system is asked, because a user's (FUSE) might never answer.
    """
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
    raise _not_found(path)


def _inode(handle: int, path: str) -> int:
    """Return the inode of a namespace file; raises FileNotFoundError for other files.

    It uses only what the kernel has in memory, without asking the file system.
    """
    found = ctypes.create_string_buffer(_STATX.size)
    flags = _AT_EMPTY_PATH | _AT_STATX_DONT_SYNC
    if _libc.statx(handle, b"", flags, _STATX_INO, found):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    inode, major, minor = _STATX.unpack(found.raw)
    if os.makedev(major, minor) != device():
        raise _not_found(path)
    return int(inode)


_RTM_NEWNSID, _RTM_GETNSID = 88, 90
_NETNSA_NSID, _NETNSA_FD = 1, 3
_RTGENMSG = struct.pack("=Bxxx", 0)
# Descriptors held open at once: far below the usual limit of 1024.
_OPEN_DESCRIPTORS = 64
_MAX_LIKELY = 6

# A namespace to resolve: its inode and a path by which it can be entered.
Known = tuple[int, str]


def read_nsids(sock: Netlink, known: Iterable[Known]) -> dict[int, int]:
    """Return the ids of `known` namespaces in the namespace of `sock`, by inode.

    Namespaces without an id and those that no longer exist are left out.
    """
    found = {}
    for group in batched(known, _OPEN_DESCRIPTORS):
        with _open_all(group) as descriptors:
            found.update(_request_ids(sock, descriptors))
    return found


def assign_nsids(sock: Netlink, known: Iterable[Known]) -> None:
    """Assign the next free id in the namespace of `sock` to each of `known`.

    Existing ids stay, namespaces that no longer exist are skipped. Without CAP_NET_ADMIN nothing is assigned.
    """
    any_id = attribute(_NETNSA_NSID, struct.pack("=i", -1))
    for group in batched(known, _OPEN_DESCRIPTORS):
        with _open_all(group) as descriptors:
            sock.batch([(_RTM_NEWNSID, _nsid_body(one) + any_id) for one in descriptors.values()])


class NsidResolver:
    """Resolves the namespace ids that links refer to.

    The kernel translates namespaces to ids only, not back. So the likely namespaces are tried first: the host
    and a few found before. They are held open, as /proc/self changes while the main thread is in another
    namespace; use the resolver as a context manager.
    """

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
        """Return inodes for the ids `wanted` in `namespace`, the one of `sock`.

        Ids that belong to none of the known namespaces are left out.
        """
        missing = {nsid for nsid in wanted if nsid is not None and nsid >= 0}
        if not missing:
            return {}
        if namespace.is_host:
            found = {nsid: self._ids[nsid] for nsid in missing & self._ids.keys()}
        else:
            found = {}
            for likely in self._candidates():
                found |= _inodes(_request_ids(sock, likely), missing)
                if not missing - found.keys():
                    break
        if missing - found.keys():
            found |= _inodes(read_nsids(sock, self._known.items()), missing)
            self._remember([namespace.inode] if len(found) >= _MAX_LIKELY else found.values())
        return found

    def _candidates(self) -> Iterator[dict[int, int]]:
        """Yield the host, where nearly every link leads, then the other likely ones."""
        yield {inode: fd for inode, fd in self._likely.items() if fd == self._host}
        yield {inode: fd for inode, fd in self._likely.items() if fd != self._host}

    def _remember(self, inodes: Iterable[int]) -> None:
        """Hold open the last few namespaces found."""
        with _open_all(
            (inode, self._known[inode]) for inode in inodes if inode in self._known
        ) as descriptors:
            self._likely |= {
                inode: os.dup(descriptor)
                for inode, descriptor in descriptors.items()
                if inode not in self._likely
            }
        oldest = [inode for inode, descriptor in self._likely.items() if descriptor != self._host]
        for inode in oldest[:-_MAX_LIKELY]:
            os.close(self._likely.pop(inode))


def _inodes(nsids: Mapping[int, int], wanted: Collection[int]) -> dict[int, int]:
    """Invert `nsids` (ids by inode), for the ids `wanted`."""
    return {nsid: inode for inode, nsid in nsids.items() if nsid in wanted}


def _request_ids(sock: Netlink, descriptors: Mapping[int, int]) -> dict[int, int]:
    """Return the ids of the namespaces that have one, by inode."""
    found = {}
    answers = sock.batch([(_RTM_GETNSID, _nsid_body(descriptor)) for descriptor in descriptors.values()])
    for inode, answer in zip(descriptors, answers, strict=True):
        if isinstance(answer, list) and answer:
            nsid = s32(attributes(answer[0].payload, 4)[_NETNSA_NSID])
            if nsid >= 0:
                found[inode] = nsid
    return found


def _nsid_body(descriptor: int) -> bytes:
    return _RTGENMSG + attribute(_NETNSA_FD, struct.pack("=I", descriptor))


@contextmanager
def _open_all(known: Iterable[Known]) -> Iterator[dict[int, int]]:
    """Open the `known` namespaces that still exist; yield descriptors by inode."""
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
