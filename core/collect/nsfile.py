"""Opening the files of namespaces, and of nothing else.

Any user can have a path that should lead to a namespace lead to a FIFO or a device instead, by mounting in a
mount namespace of their own or by moving a folder at the right moment. So a file is first reached without
being opened (O_PATH of open(2)), and opened only where it is a namespace: nsfs, where these files are, is one
file system with one device number.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import functools
import os
import re
import struct

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
